"""TripletHead against plain loops over listed triplets, in float64."""

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from facelit.errors import FacelitError
from facelit.heads import TripletHead
from facelit.heads.base import metrics_wanted
from facelit.heads.triplet import take_drawn
from two_processes import run_on_two_processes

MININGS = ["semihard", "hard", "all", "random"]


class Reference(NamedTuple):
    loss: Tensor
    active: int
    candidates: int


def distance(x: Tensor, i: int, j: int) -> Tensor:
    return (x[i] / x[i].norm() - x[j] / x[j].norm()).square().sum()


def reference(x: Tensor, labels: Tensor, margin: float, mining: str) -> Reference:
    """The loss by its definition: one loop over anchors, positives and negatives."""
    y, n = labels.tolist(), len(labels)
    d = [[distance(x, i, j) for j in range(n)] for i in range(n)]
    chosen: list[tuple[int, int, int]] = []
    candidates = 0
    if mining == "random":
        chosen = [(i, i + 1, i + 2) for i in range(0, n, 3)]
        candidates = len(chosen)
    for a in range(n) if mining != "random" else []:
        positives = [i for i in range(n) if i != a and y[i] == y[a]]
        negatives = [i for i in range(n) if y[i] != y[a]]
        if not positives or not negatives:
            continue
        if mining == "all":
            chosen += [(a, p, q) for p in positives for q in negatives]
            candidates += len(positives) * len(negatives)
        elif mining == "hard":
            hardest = max(positives, key=lambda i: d[a][i].item())
            chosen.append((a, hardest, min(negatives, key=lambda i: d[a][i].item())))
            candidates += 1
        else:
            for p in positives:
                candidates += 1
                band = [q for q in negatives if d[a][p] < d[a][q] < d[a][p] + margin]
                if band:
                    chosen.append((a, p, min(band, key=lambda i: d[a][i].item())))
    terms = [d[a][p] - d[a][q] + margin for a, p, q in chosen]
    active = [term for term in terms if term > 0]
    loss = torch.stack(active).mean() if active else x.sum() * 0
    return Reference(loss, len(active), candidates)


def make_batch(seed: int, mining: str, spread: float = 0.7) -> tuple[Tensor, Tensor]:
    """Embeddings around one direction for each identity: there are easy, semi-hard and hard triplets."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.tensor([0, 0, 1, 1, 1, 2, 2, 3, 3, 0, 4, 2])  # identity 4 has one image
    if mining == "random":
        labels = torch.tensor([0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 0])
    means = torch.randn(5, 6, generator=generator)
    return means[labels] + spread * torch.randn(len(labels), 6, generator=generator), labels


def run(head: TripletHead, x: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    x = x.clone().requires_grad_()
    loss, metrics = head(x, labels)
    loss.backward()
    return loss.detach(), metrics, x.grad


@pytest.mark.parametrize("margin", [0.05, 0.2, 1.0])
@pytest.mark.parametrize("mining", MININGS)
@pytest.mark.parametrize("seed", range(4))
def test_loss_and_gradient(seed: int, mining: str, margin: float) -> None:
    x, labels = make_batch(seed, mining)
    loss, metrics, grad = run(TripletHead(margin, mining), x, labels)
    x64 = x.double().requires_grad_()
    expected = reference(x64, labels, margin, mining)
    expected.loss.backward()
    assert loss.item() == pytest.approx(expected.loss.item(), abs=2e-6)
    torch.testing.assert_close(grad.double(), x64.grad, atol=2e-6, rtol=1e-4)
    assert metrics["candidates"].item() == expected.candidates
    assert metrics["active_fraction"].item() == pytest.approx(expected.active / expected.candidates)


@pytest.mark.parametrize("mining", MININGS)
def test_the_cases_above_are_not_empty(mining: str) -> None:
    found = [reference(*make_batch(seed, mining), 0.2, mining) for seed in range(4)]
    active, candidates = sum(f.active for f in found), sum(f.candidates for f in found)
    assert active > 0
    assert mining == "hard" or active < candidates  # easy triplets too


def test_distances_of_the_pairs() -> None:
    x, labels = make_batch(0, "all")
    metrics = TripletHead()(x, labels).metrics
    pairs = [(i, j) for i in range(len(x)) for j in range(i)]
    same = [float(distance(x.double(), i, j)) for i, j in pairs if labels[i] == labels[j]]
    other = [float(distance(x.double(), i, j)) for i, j in pairs if labels[i] != labels[j]]
    assert metrics["genuine_distance"].item() == pytest.approx(sum(same) / len(same), rel=1e-5)
    assert metrics["impostor_distance"].item() == pytest.approx(sum(other) / len(other), rel=1e-5)
    assert metrics["embedding_norm"].item() == pytest.approx(x.norm(dim=1).mean().item())
    assert not any(value.requires_grad for value in metrics.values())


def test_metrics_that_nobody_looks_at_are_not_computed() -> None:
    torch.manual_seed(0)
    x, labels = torch.randn(6, 4), torch.arange(6) // 2
    with metrics_wanted(False):
        loss, metrics = TripletHead()(x, labels)
    assert not metrics
    assert torch.equal(loss, TripletHead()(x, labels).loss)


@pytest.mark.parametrize("mining", ["semihard", "hard", "all"])
@pytest.mark.parametrize("labels", [[3, 3, 3, 3], [0, 1, 2, 3]])
def test_no_valid_triplet(mining: str, labels: list[int]) -> None:
    head = TripletHead(mining=mining)
    loss, metrics, grad = run(head, torch.randn(4, 5), torch.tensor(labels))
    assert loss == 0
    assert torch.equal(grad, torch.zeros(4, 5))
    assert all(value.isfinite() for value in metrics.values())
    warning = head.diagnose({name: value.item() for name, value in metrics.items()})
    assert warning is not None
    assert "no triplet" in warning


@pytest.mark.parametrize("mining", MININGS)
def test_no_active_triplet(mining: str) -> None:
    x = torch.eye(4)[[0, 0, 1, 1, 1, 0]]  # d_ap = 0 and d_an = 2
    head = TripletHead(0.5, mining)
    loss, metrics, grad = run(head, x, torch.tensor([0, 0, 1, 1, 1, 0]))
    assert loss == 0
    assert torch.equal(grad, torch.zeros_like(x))
    assert metrics["active_fraction"] == 0
    assert head.diagnose({name: value.item() for name, value in metrics.items()}) is None


@pytest.mark.parametrize("mining", MININGS)
@pytest.mark.parametrize("value", [1.0, 0.0])
def test_collapsed_embeddings(mining: str, value: float) -> None:
    x, labels = torch.full((6, 4), value), torch.tensor([0, 0, 1, 1, 1, 0])
    head = TripletHead(0.2, mining)
    loss, metrics, grad = run(head, x, labels)
    assert grad.isfinite().all()
    # d_ap = d_an: no negative is farther than the positive (semi-hard), or every term equals the margin.
    assert loss.item() == pytest.approx(0.0 if mining == "semihard" else 0.2, abs=1e-6)
    if value:
        warning = head.diagnose({name: m.item() for name, m in metrics.items()})
        assert warning is not None
        for way_out in ("learning rate", "semihard", "--model.init_backbone", "P identities x K"):
            assert way_out in warning


@pytest.mark.parametrize("mining", MININGS)
def test_duplicate_images_give_no_nan(mining: str) -> None:
    x, labels = make_batch(0, mining)
    x[1] = x[0]
    x[4] = x[3]
    loss, _, grad = run(TripletHead(0.3, mining), x, labels)
    assert loss.item() == pytest.approx(reference(x.double(), labels, 0.3, mining).loss.item(), abs=2e-6)
    assert grad.isfinite().all()


@pytest.mark.parametrize("mining", MININGS)
def test_float32_under_autocast(mining: str) -> None:
    x, labels = make_batch(1, mining)
    head = TripletHead(0.2, mining)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = head(x, labels).loss
        half = head(x.bfloat16(), labels).loss
    assert torch.equal(mixed, head(x, labels).loss)
    assert half.dtype == torch.float32


@pytest.mark.parametrize("mining", ["semihard", "hard", "all"])
def test_a_large_batch_fits(mining: str) -> None:
    torch.manual_seed(0)
    labels = torch.arange(512) // 8
    loss, metrics, grad = run(TripletHead(0.2, mining), torch.randn(512, 8), labels)
    assert loss > 0
    assert grad.isfinite().all()
    assert metrics["candidates"] == {"semihard": 512 * 7, "hard": 512, "all": 512 * 7 * 504}[mining]


@pytest.mark.parametrize("labels", [[0, 0, 1, 1], [0, 1, 0, 1, 1, 0], [0, 0, 0, 1, 1, 0], [0, 0, 1, 1, 0, 1]])
def test_random_needs_its_sampler(labels: list[int]) -> None:
    with pytest.raises(FacelitError, match=r"facelit\.data\.RandomTripletSampler"):
        TripletHead(mining="random")(torch.randn(len(labels), 4), torch.tensor(labels))


def test_random_asks_a_gpu_for_the_order_when_metrics_are_logged_only() -> None:
    """The meta device stands for a GPU: it refuses to be asked."""
    labels, distances = torch.zeros(6, device="meta"), torch.zeros(6, 6, device="meta")
    with metrics_wanted(False):
        take_drawn(distances, labels, 0.2)
    with metrics_wanted(True), pytest.raises(RuntimeError, match="meta"):
        take_drawn(distances, labels, 0.2)


def test_unknown_mining_lists_the_choices() -> None:
    with pytest.raises(ValueError, match="semihard, hard, all, random"):
        TripletHead(mining="easy")  # type: ignore[arg-type]


def test_margin_must_be_positive() -> None:
    with pytest.raises(ValueError, match="margin"):
        TripletHead(margin=0.0)


def make_backbone() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(6, 5)


def train_on_each() -> list[dict[str, Any]]:
    """Loss and gradient for each mining rule, each process holding half of the batch."""
    rank = torch.distributed.get_rank()
    results = []
    for mining in MININGS:
        x, labels = make_batch(2, mining)
        half = slice(6 * rank, 6 * rank + 6)
        backbone = DistributedDataParallel(make_backbone())
        loss, metrics = TripletHead(0.5, mining)(backbone(x[half]), labels[half])
        loss.backward()
        grads = [p.grad for p in backbone.parameters()]
        results.append({"loss": loss.item(), "grads": grads, "active": metrics["active_fraction"].item()})
    return results


def test_two_processes_equal_one() -> None:
    on_each = run_on_two_processes(train_on_each)
    for number, mining in enumerate(MININGS):
        x, labels = make_batch(2, mining)
        backbone = make_backbone()
        loss, metrics = TripletHead(0.5, mining)(backbone(x), labels)
        loss.backward()
        assert loss > 0
        for results in on_each:
            assert results[number]["loss"] == pytest.approx(loss.item(), abs=1e-6)
            assert results[number]["active"] == pytest.approx(metrics["active_fraction"].item())
            for grad, p in zip(results[number]["grads"], backbone.parameters(), strict=True):
                torch.testing.assert_close(grad, p.grad, atol=1e-6, rtol=1e-5)
