"""What all identity heads share: losses against literal ones, degenerate inputs, labels, metrics, precisions."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.classification import multiclass_accuracy

from facelit.heads import (
    AdaFaceHead,
    ArcFaceHead,
    CenterLossHead,
    CenterTerm,
    CombinedMarginHead,
    CosFaceHead,
    IdentityHead,
    MarginHead,
    SoftmaxHead,
)
from facelit.heads.base import metrics_wanted
from literal_softmax import assert_equals_literal

IDENTITIES, DIM = 5, 4
LABELS = torch.tensor([0, 1, 1, 4, 3, 2, 4])
HEADS = [SoftmaxHead, ArcFaceHead, CosFaceHead, CombinedMarginHead, AdaFaceHead]


class CosineHead(IdentityHead):
    """Scaled cosines without a margin."""

    scale = 16.0


def make_head(make: Callable[..., IdentityHead], seed: int = 0, **options: Any) -> IdentityHead:
    torch.manual_seed(seed)
    return make(IDENTITIES, DIM, **options)


def make_embeddings(count: int = len(LABELS), dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(count, DIM, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("make", [SoftmaxHead, CosineHead])
@pytest.mark.parametrize("bias", [True, False])
def test_loss_and_gradients(make: Callable[..., IdentityHead], smoothing: float, bias: bool) -> None:
    head = make_head(make, label_smoothing=smoothing, bias=bias and make is SoftmaxHead).double()
    assert_equals_literal(head, 3 * make_embeddings(), LABELS, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("make", [SoftmaxHead, CosineHead])
def test_equals_torchs_cross_entropy_of_the_logits(make: Callable[..., IdentityHead], smoothing: float) -> None:
    head, x = make_head(make, label_smoothing=smoothing), make_embeddings()
    loss = head(x, LABELS).loss
    expected = F.cross_entropy(head.logits(x), LABELS, label_smoothing=smoothing)
    torch.testing.assert_close(loss, expected)
    gradients = (torch.autograd.grad(value, (x, head.weight)) for value in (loss, expected))
    for gradient, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make", HEADS)
def test_degenerate_inputs_give_finite_losses_and_gradients(make: Callable[..., IdentityHead]) -> None:
    own = make_head(make).weight.detach()[LABELS]
    inputs = {
        "along their vectors": 50 * own,
        "against their vectors": -50 * own,
        "0": torch.zeros(7, DIM),
        "1e-20 long": 1e-20 * own,
        "1e-13 long": 1e-13 * own,
        "1e20 long": 1e20 * own / own.norm(dim=1, keepdim=True),
        "all alike": torch.ones(7, DIM),
    }
    for zeros in (False, True):
        for name, rows in inputs.items():
            for x in (rows, rows.double()):
                head = make_head(make, label_smoothing=0.1).to(x.dtype)
                head.weight.data[1] *= 0 if zeros else 1
                x = x.clone().requires_grad_()
                loss, metrics = head(x, LABELS)
                loss.backward()
                tensors = {"loss": loss, "embeddings": x.grad, "weight": head.weight.grad, **metrics}
                if name == "1e20 long" and x.dtype == torch.float32:
                    del tensors["embedding_norm"]  # its square is beyond float32
                for what, value in tensors.items():
                    assert value.isfinite().all(), f"{name}: {what}"


@pytest.mark.parametrize("make", [CosineHead, *HEADS[1:]])
def test_directions_of_long_and_short_embeddings_count(make: Callable[..., IdentityHead]) -> None:
    """The squares of 1e20 do not fit in float32. AdaFace counts norms above 100 as 100."""
    x = F.normalize(make_embeddings().detach(), dim=1)
    expected = make_head(make).eval()(100 * x, LABELS).loss
    torch.testing.assert_close(make_head(make).eval()(1e20 * x, LABELS).loss, expected)
    if make is not AdaFaceHead:
        torch.testing.assert_close(make_head(make).eval()(1e-4 * x, LABELS).loss, expected)


@pytest.mark.parametrize("make", [CosineHead, *HEADS[1:]])
def test_an_embedding_without_direction_gets_no_gradient(make: Callable[..., IdentityHead]) -> None:
    """It would be 1e12 times the others', and clipping would leave nothing of these."""
    x = make_embeddings().detach()
    x[2] = 0
    x.requires_grad_()
    make_head(make)(x, LABELS).loss.backward()
    assert not x.grad[2].any()
    assert (x.grad.norm(dim=1) > 1e-6).tolist() == [True, True, False, True, True, True, True]


@pytest.mark.parametrize("make", [CosineHead, *HEADS])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_broken_embedding_is_not_hidden(make: Callable[..., IdentityHead], value: float) -> None:
    x = make_embeddings().detach()
    x[2, 1] = value
    assert not make_head(make)(x, LABELS).loss.isfinite()


@pytest.mark.parametrize("make", HEADS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_single_identity_has_nothing_to_learn(make: Callable[..., IdentityHead], smoothing: float) -> None:
    torch.manual_seed(0)
    head, x = make(1, DIM, label_smoothing=smoothing), make_embeddings(3)
    loss, metrics = head(x, torch.tensor([0, 0, 0]))
    loss.backward()
    assert loss.item() == 0
    assert not x.grad.any()
    assert not head.weight.grad.any()
    assert metrics["identity_accuracy"].item() == 1


@pytest.mark.parametrize("make", HEADS)
def test_a_batch_is_the_mean_of_its_samples(make: Callable[..., IdentityHead]) -> None:
    """Batches of one, and one identity several times. (AdaFace's margin knows other batches: in eval mode.)"""
    x = make_embeddings(dtype=torch.float64)
    head = make_head(make, label_smoothing=0.1).double().eval()
    loss = head(x, LABELS).loss
    single = torch.stack([head(x[i : i + 1], LABELS[i : i + 1]).loss for i in range(len(LABELS))]).mean()
    torch.testing.assert_close(loss, single)
    for gradient, wanted in zip(
        *(torch.autograd.grad(value, (x, head.weight)) for value in (loss, single)), strict=True
    ):
        torch.testing.assert_close(gradient, wanted)


@pytest.mark.parametrize("make", [*HEADS, CenterLossHead])
def test_labels_of_any_integer_type(make: Callable[..., IdentityHead]) -> None:
    results = []
    for dtype in (torch.int64, torch.int8, torch.int16, torch.int32, torch.uint8, torch.uint16, torch.uint64):
        head, x = make_head(make), make_embeddings()
        loss, metrics = head(x, LABELS.to(dtype))
        loss.backward()
        results.append([loss.detach(), x.grad, head.weight.grad, *metrics.values()])
    for result in results[1:]:
        assert all(torch.equal(value, wanted) for value, wanted in zip(result, results[0], strict=True))


@pytest.mark.parametrize("make", [*HEADS, CenterLossHead])
def test_wrong_labels_and_shapes_are_named(make: Callable[..., IdentityHead]) -> None:
    head, x = make_head(make), make_embeddings(2)
    for dtype in (torch.float32, torch.bool):
        with pytest.raises(ValueError, match="integers"):
            head(x, torch.tensor([0, 1]).to(dtype))
    for label in (-1, 5):
        with pytest.raises(ValueError, match=f"label {label} .*num_identities=5"):
            head(x, torch.tensor([0, label], dtype=torch.int8))
    for shape in ((2, DIM + 1), (3, DIM), (2,), (1, DIM)):
        with pytest.raises(ValueError, match="shape"):
            head(torch.randn(shape), torch.tensor([0, 1]))
    assert not any(value.any() for name, value in head.state_dict().items() if name == "batches_seen")


@pytest.mark.parametrize("make", [*HEADS, CosineHead])
def test_metrics(make: Callable[..., IdentityHead]) -> None:
    """Accuracy is before any margin, which would take the own identity out of the first place."""
    head, x = make_head(make), make_embeddings()
    head.weight.data = F.normalize(torch.randn(IDENTITIES, DIM), dim=1)
    x = (head.weight[LABELS] + 0.8 * x).detach().requires_grad_()
    loss, metrics = head(x, LABELS)
    accuracy = multiclass_accuracy(head.logits(x), LABELS, IDENTITIES, average="micro")
    assert 0 < accuracy < 1
    if isinstance(head, MarginHead):
        own = head.logits(x).gather(1, LABELS.unsqueeze(1)).squeeze(1)
        lowered = head.logits(x).scatter(1, LABELS.unsqueeze(1), head.target_logits(own, x.norm(dim=1)).unsqueeze(1))
        assert multiclass_accuracy(lowered, LABELS, IDENTITIES, average="micro") < accuracy
    assert metrics["identity_accuracy"].item() == pytest.approx(accuracy.item())
    assert metrics["embedding_norm"].item() == pytest.approx(sum(row.norm().item() for row in x) / len(x))
    assert metrics["loss_softmax"].item() == loss.item()
    assert set(metrics) == {"identity_accuracy", "embedding_norm", "loss_softmax"}
    assert all(value.shape == () and not value.requires_grad for value in metrics.values())


@pytest.mark.parametrize("make", [*HEADS, CenterLossHead])
def test_metrics_that_nobody_wants(make: Callable[..., IdentityHead]) -> None:
    results = []
    for wanted in (True, False):
        head, x = make_head(make), make_embeddings()
        with metrics_wanted(wanted):
            loss, metrics = head(x, LABELS)
        loss.backward()
        assert bool(metrics) == wanted
        results.append((loss.detach(), x.grad, head.weight.grad))
    assert all(torch.equal(value, other) for value, other in zip(*results, strict=True))


@pytest.mark.parametrize("make", [*HEADS, CenterLossHead])
def test_arithmetic_is_float32_under_autocast(make: Callable[..., IdentityHead]) -> None:
    results = []
    for enabled in (False, True):
        head, x = make_head(make, label_smoothing=0.1), make_embeddings(dtype=torch.bfloat16)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = head(x, LABELS).loss
            loss.backward()
            assert head.logits(x).dtype == loss.dtype == torch.float32
        assert (x.grad.dtype, head.weight.grad.dtype) == (torch.bfloat16, torch.float32)
        results.append((loss.detach(), x.grad, head.weight.grad))
    assert all(torch.equal(value, other) for value, other in zip(*results, strict=True))
    exact = make_head(make, label_smoothing=0.1).double()(x.detach().double(), LABELS).loss
    assert results[0][0].item() == pytest.approx(exact.item(), rel=1e-5)


@pytest.mark.parametrize("make", [*HEADS, CenterLossHead])
def test_modules_of_other_precisions(make: Callable[..., IdentityHead]) -> None:
    """bfloat16 weights are widened, as is whatever is narrower than the embeddings."""
    rounded = make_head(make)
    with torch.no_grad():
        for parameter in (rounded.weight, rounded.bias):
            if parameter is not None:
                parameter.copy_(parameter.bfloat16())
    x = make_embeddings(dtype=torch.bfloat16)
    head = make_head(make).bfloat16()
    loss, expected = head(x, LABELS).loss, rounded(x.float(), LABELS).loss
    assert torch.equal(loss, expected)
    gradients = (torch.autograd.grad(value, module.weight)[0] for value, module in ((loss, head), (expected, rounded)))
    torch.testing.assert_close(*(gradient.float() for gradient in gradients), rtol=1e-2, atol=1e-3)
    wide = make_embeddings(dtype=torch.float64)
    loss = make_head(make)(wide, LABELS).loss
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(make_head(make).double()(wide, LABELS).loss.item(), rel=1e-9)


@pytest.mark.parametrize("make", HEADS)
def test_second_order_is_refused(make: Callable[..., IdentityHead]) -> None:
    head, x = make_head(make), make_embeddings()
    (gradient,) = torch.autograd.grad(head(x, LABELS).loss, x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.square().sum().backward()


@pytest.mark.parametrize("make", HEADS)
def test_the_term_is_checked(make: Callable[..., IdentityHead]) -> None:
    for options in ({"weight": -1.0}, {"alpha": 0.0}, {"alpha": 1.5}):
        with pytest.raises(ValueError, match=next(iter(options))):
            make(3, 2, center=CenterTerm(**options))
