"""Comparing a batch with some of the identities only; a sharded head in a single process."""

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from facelit.heads import (
    AdaFaceHead,
    ArcFaceHead,
    CenterLossHead,
    CenterTerm,
    CombinedMarginHead,
    CosFaceHead,
    IdentityHead,
    SoftmaxHead,
)
from facelit.heads import identity as identity_module
from facelit.heads.rows import Rows
from literal_softmax import literal_loss, loss_and_gradients

IDENTITIES, DIM = 20, 4
LABELS = torch.tensor([3, 17, 17, 0])
HEADS = [SoftmaxHead, ArcFaceHead, CosFaceHead, CombinedMarginHead, AdaFaceHead]


class CosineHead(IdentityHead):
    """Scaled cosines without a margin."""

    scale = 3.0


def make_head(make: Callable[..., IdentityHead], **options: Any) -> IdentityHead:
    torch.manual_seed(0)
    return make(IDENTITIES, DIM, **options).double()


def make_embeddings(count: int = len(LABELS)) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, DIM, generator=generator, dtype=torch.float64).requires_grad_()


def sampled_rows(head: IdentityHead, x: Tensor, labels: Tensor) -> list[int]:
    """The identities that a batch was compared with: those whose vectors have a gradient."""
    head.zero_grad()
    head(x, labels).loss.backward()
    return head.weight.grad.abs().sum(dim=1).nonzero().squeeze(1).tolist()


@pytest.mark.parametrize("rate", [0.2, 0.45, 0.5, 0.95])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("make", [SoftmaxHead, CosineHead])
def test_loss_and_gradients(make: Callable[..., IdentityHead], rate: float, smoothing: float) -> None:
    """Those of a head that has no other identities than the sampled ones; the others have no gradient."""
    head, x = make_head(make, sample_rate=rate, label_smoothing=smoothing), make_embeddings()
    loss = head(x, LABELS).loss
    inputs = [x, head.weight, head.bias]
    loss, gradients = loss_and_gradients(loss, inputs)
    sampled = gradients[1].abs().sum(dim=1).nonzero().squeeze(1).tolist()
    assert len(sampled) == math.ceil(rate * IDENTITIES)
    assert set(sampled) >= set(LABELS.tolist())
    literal = literal_loss(x, head.weight, LABELS, head.bias, head.scale, smoothing=smoothing, among=sampled)
    expected, wanted = loss_and_gradients(literal, inputs)
    torch.testing.assert_close(loss, expected, rtol=1e-8, atol=1e-8)
    for gradient, other in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("make", HEADS)
def test_a_rate_that_leaves_none_out_is_no_sampling(make: Callable[..., IdentityHead]) -> None:
    results = []
    for rate in (1.0, 0.951):  # 19.02 of 20
        head, x = make_head(make, sample_rate=rate, label_smoothing=0.1), make_embeddings()
        loss, metrics = head(x, LABELS)
        results.append([*loss_and_gradients(loss, [x, head.weight, head.bias])[1], loss, *metrics.values()])
    for value, other in zip(*results, strict=True):
        torch.testing.assert_close(value, other)


@pytest.mark.parametrize("make", HEADS)
def test_validation_compares_with_all(make: Callable[..., IdentityHead]) -> None:
    x = make_embeddings()
    sampling = make_head(make, sample_rate=0.2, label_smoothing=0.1)
    assert torch.equal(sampling.eval()(x, LABELS).loss, make_head(make, label_smoothing=0.1).eval()(x, LABELS).loss)
    assert not torch.equal(sampling.train()(x, LABELS).loss, make_head(make, label_smoothing=0.1)(x, LABELS).loss)


def test_a_batch_of_more_identities_than_the_sample() -> None:
    """All of them are there, and nothing else; a batch of more images than identities is compared with all."""
    head = make_head(CosineHead, sample_rate=0.1, label_smoothing=0.1)
    labels = torch.tensor([5, 19, 0, 7, 8, 12, 1])
    assert sampled_rows(head, make_embeddings(7), labels) == sorted(labels.tolist())
    assert sampled_rows(head, make_embeddings(30), torch.randint(IDENTITIES, (30,))) == list(range(IDENTITIES))


def test_negatives_are_drawn_evenly_and_anew() -> None:
    """3 of 17 others with the 3 own ones: each is drawn 3 / 17 of the times, to four standard errors."""
    head, x, times = make_head(CosineHead, sample_rate=0.3), make_embeddings(), 400
    counts = Counter(row for _ in range(times) for row in sampled_rows(head, x, LABELS))
    own = set(LABELS.tolist())
    assert all(counts[row] == times for row in own)
    share = 3 / 17
    error = math.sqrt(share * (1 - share) / times)
    for row in set(range(IDENTITIES)) - own:
        assert counts[row] / times == pytest.approx(share, abs=4 * error)


def test_negatives_are_drawn_evenly_under_bfloat16() -> None:
    """Under bf16-true numbers are drawn in bfloat16 by default: 256 of them, many alike, the first taken first."""
    torch.manual_seed(0)
    head = IdentityHead(4000, 1, sample_rate=0.001)
    torch.set_default_dtype(torch.bfloat16)
    try:
        drawn = [head._sample(torch.tensor([0]))[1:] for _ in range(200)]
    finally:
        torch.set_default_dtype(torch.float32)
    assert drawn[0].dtype == torch.int64
    places = torch.cat(drawn).double()
    assert places.mean().item() == pytest.approx(2000, abs=4 * 4000 / math.sqrt(12 * len(places)))


def test_labels_of_other_processes_have_no_own_logit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A head that holds identities 5 to 14 only, sampled or not; numbers 4 and 15 are next to them."""
    monkeypatch.setattr(identity_module, "own_rows", lambda count: Rows(5, 10))
    labels = torch.tensor([4, 5, 9, 14, 15, 0, 19])
    inside = (labels >= 5) & (labels < 15)
    x = make_embeddings(len(labels))
    for rate in (1.0, 0.5):
        head = make_head(SoftmaxHead, sharded=True, sample_rate=rate, bias=False)
        head.shard()
        found = head._logits_of_all(x, labels)
        (gradient,) = torch.autograd.grad(found.others.sum(), head.weight)
        among = gradient.abs().sum(dim=1).nonzero().squeeze(1)
        logits = x @ head.weight.T
        for i, label in enumerate((labels - 5).tolist()):
            others = [logits[i, j].item() for j in among.tolist() if j != label]
            assert found.own[i].item() == (logits[i, label].item() if inside[i] else 0)
            assert found.others[i].item() == pytest.approx(math.log(sum(map(math.exp, others))))
        assert len(among) == (10 if rate == 1 else 7)


def test_a_seed_repeats_the_draw() -> None:
    results = []
    for seed in (1, 1, 2):
        head, x = make_head(SoftmaxHead, sample_rate=0.3), make_embeddings()
        torch.manual_seed(seed)
        results.append(sampled_rows(head, x, LABELS))
    assert results[0] == results[1] != results[2]


@pytest.mark.parametrize("make", HEADS)
@pytest.mark.parametrize("rate", [1.0, 0.3])
def test_a_sharded_head_in_one_process_is_the_whole_head(make: Callable[..., IdentityHead], rate: float) -> None:
    """Before `shard` it has no memory; the embeddings' device is where the rows are made, the CPU."""
    options = {"label_smoothing": 0.1, "sample_rate": rate, "center": CenterTerm(0.1)}
    whole, sharded = make_head(make, **options), make_head(make, sharded=True, **options)
    assert {parameter.device.type for parameter in sharded.parameters()} == {"meta"}
    assert [tuple(p.shape) for p in sharded.parameters()] == [tuple(p.shape) for p in whole.parameters()]
    sharded.shard()
    assert sharded.state_dict().keys() == whole.state_dict().keys()
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(sharded.state_dict()[name], value, rtol=0, atol=0)
    assert [p.requires_grad for p in sharded.parameters()] == [p.requires_grad for p in whole.parameters()]
    x, results = make_embeddings(), []
    for head in (whole, sharded):
        torch.manual_seed(3)
        optimizer = head.make_optimizer()
        loss, metrics = head(x, LABELS)
        results.append([*loss_and_gradients(loss, [x, head.weight, head.bias])[1], loss, *metrics.values()])
        head(x, LABELS).loss.backward()
        optimizer.step()
    for value, other in zip(*results, strict=True):
        torch.testing.assert_close(value, other)
    torch.testing.assert_close(sharded.center_loss.centers, whole.center_loss.centers)


@pytest.mark.parametrize("make", [SoftmaxHead, CenterLossHead, ArcFaceHead])
def test_shard_leaves_a_whole_head_alone(make: Callable[..., IdentityHead]) -> None:
    head = make_head(make)
    before = head.weight
    head.shard()
    assert head.weight is before
