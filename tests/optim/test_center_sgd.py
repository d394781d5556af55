"""CenterSGD against eq. 4 of Wen et al. (ECCV 2016) written out as loops."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from facelit.heads import CenterLoss
from facelit.optim import CenterSGD
from two_processes import run_on_two_processes

IDENTITIES, DIM, STEPS, MICRO_BATCHES, BATCH = 7, 3, 5, 2, 8

Batch = tuple[Tensor, Tensor]


def make_batches() -> list[list[Batch]]:
    """STEPS lists of micro-batches; identities repeat, and the last one is always absent."""
    generator = torch.Generator().manual_seed(3)
    return [
        [
            (
                torch.randn(BATCH, DIM, generator=generator),
                torch.randint(0, IDENTITIES - 1, (BATCH,), generator=generator),
            )
            for _ in range(MICRO_BATCHES)
        ]
        for _ in range(STEPS)
    ]


def make_loss() -> CenterLoss:
    torch.manual_seed(0)
    return CenterLoss(IDENTITIES, DIM)


def eq4(centers: list[list[float]], batch: list[Batch], alpha: float) -> list[list[float]]:
    """One step of eq. 4 over all micro-batches, in Python's float64."""
    samples = [(x.tolist(), int(y)) for xs, ys in batch for x, y in zip(xs, ys, strict=True)]
    moved = []
    for j, center in enumerate(centers):
        mine = [x for x, y in samples if y == j]
        deltas = [sum(center[d] - x[d] for x in mine) / (1 + len(mine)) for d in range(len(center))]
        moved.append([c - alpha * delta for c, delta in zip(center, deltas, strict=True)])
    return moved


def train(alpha: float, rank: int = 0, world_size: int = 1) -> list[Tensor]:
    """The centers after each step, each process taking its part of every micro-batch."""
    loss = make_loss()
    optimizer = CenterSGD([loss.centers], alpha=alpha)
    history = []
    for step in make_batches():
        for x, y in step:
            part = slice(rank * BATCH // world_size, (rank + 1) * BATCH // world_size)
            loss(x[part].clone().requires_grad_(), y[part]).backward()
        optimizer.step()
        history.append(loss.centers.detach().clone())
    return history


def train_on_each(alpha: float) -> list[Tensor]:
    return train(alpha, torch.distributed.get_rank(), 2)


def one_step(lam: float = 1.0, steps: int = 1) -> Tensor:
    loss = make_loss()
    optimizer = CenterSGD([loss.centers], alpha=0.5)
    (x, y), _ = make_batches()[0]
    (lam * loss(x.clone().requires_grad_(), y)).backward()
    for _ in range(steps):
        optimizer.step()
    return loss.centers.detach()


def assert_eq4(history: list[Tensor], alpha: float) -> None:
    centers = make_loss().centers.tolist()
    for moved, batch in zip(history, make_batches(), strict=True):
        centers = eq4(centers, batch, alpha)
        torch.testing.assert_close(moved.double(), torch.tensor(centers).double(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("alpha", [0.1, 0.5, 1.0])
def test_one_process_follows_eq4(alpha: float) -> None:
    assert_eq4(train(alpha), alpha)


def test_two_processes_follow_eq4() -> None:
    first, second = run_on_two_processes(train_on_each, 0.5)
    assert_eq4(first, 0.5)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("lam", [0.0, 1e-3, 10.0])
def test_weight_of_the_loss_does_not_matter(lam: float) -> None:
    assert torch.equal(one_step(lam), one_step())
    assert not torch.equal(one_step(lam), make_loss().centers)


@pytest.mark.parametrize("lr", [0.0, 5.0])
def test_learning_rate_does_not_matter(lr: float) -> None:
    loss = make_loss()
    (x, y), _ = make_batches()[0]
    layer = torch.nn.Linear(DIM, DIM, bias=False)
    torch.nn.init.eye_(layer.weight)
    network = torch.optim.SGD([*layer.parameters(), loss.centers], lr=lr, momentum=0.9, weight_decay=0.1)
    centers = CenterSGD([loss.centers], alpha=0.5)
    loss(layer(x), y).backward()
    network.step()
    centers.step()
    assert torch.equal(loss.centers, one_step())


def test_a_step_counts_once() -> None:
    assert torch.equal(one_step(steps=3), one_step())


def test_absent_identities_stay() -> None:
    (_, y), _ = make_batches()[0]
    absent = [j for j in range(IDENTITIES) if j not in y.tolist()]
    assert absent
    assert torch.equal(one_step()[absent], make_loss().centers[absent])


def test_nothing_moves_without_backward() -> None:
    loss = make_loss()
    optimizer = CenterSGD([loss.centers])
    before = loss.centers.clone()
    (x, y), _ = make_batches()[0]
    loss(x.clone().requires_grad_(), y)  # never backpropagated
    with torch.no_grad():
        loss(x, y)
        loss(x.clone().requires_grad_(), y)
    loss.eval()
    loss(x, y)
    loss(x.clone().requires_grad_(), y).backward()
    optimizer.step()
    assert torch.equal(loss.centers, before)


def test_frozen_backbone_still_moves_the_centers() -> None:
    loss = make_loss()
    optimizer = CenterSGD([loss.centers])
    (x, y), _ = make_batches()[0]
    loss(x, y)
    optimizer.step()
    assert torch.equal(loss.centers, one_step())


def test_zero_grad_drops_what_was_recorded() -> None:
    loss = make_loss()
    optimizer = CenterSGD([loss.centers])
    before = loss.centers.clone()
    (x, y), _ = make_batches()[0]
    loss(x.clone().requires_grad_(), y).backward()
    optimizer.zero_grad()
    optimizer.step()
    assert torch.equal(loss.centers, before)


def test_bf16_embeddings_move_float32_centers() -> None:
    loss = make_loss().to(torch.bfloat16)  # the centers stay in float32
    assert torch.equal(loss.centers, make_loss().centers)
    optimizer = CenterSGD([loss.centers])
    (x, y), _ = make_batches()[0]
    x = x.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        loss(x.clone().requires_grad_(), y).backward()
        optimizer.step()
    expected = torch.tensor(eq4(make_loss().centers.tolist(), [(x, y)], 0.5))
    assert loss.centers.dtype == torch.float32
    torch.testing.assert_close(loss.centers.detach(), expected, atol=1e-6, rtol=0)


def test_closure_is_called_with_gradients() -> None:
    loss = make_loss()
    optimizer = CenterSGD([loss.centers], alpha=0.5)
    (x, y), _ = make_batches()[0]

    def closure() -> float:
        value = loss(x.clone().requires_grad_(), y)
        value.backward()
        return value.item()

    assert optimizer.step(closure) > 0
    assert torch.equal(loss.centers, one_step())


def test_recording_is_not_copied_or_pickled() -> None:
    loss = make_loss()
    CenterSGD([loss.centers])
    before = loss.centers.clone()
    (x, y), _ = make_batches()[0]
    loss(x.clone().requires_grad_(), y).backward()
    for copied in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert not any(vars(copied.centers).values())
        assert torch.equal(copied.centers, before)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
def test_a_copied_optimizer_moves_its_copied_centers(duplicate: Callable[[Any], Any]) -> None:
    loss = make_loss()
    (x, y), _ = make_batches()[0]
    twin_loss, twin_optimizer = duplicate((loss, CenterSGD([loss.centers])))
    twin_loss(x.clone().requires_grad_(), y).backward()
    twin_optimizer.step()
    assert torch.equal(twin_loss.centers, one_step())
    assert torch.equal(loss.centers, make_loss().centers)


def test_centers_without_an_optimizer_record_nothing() -> None:
    loss = make_loss()
    (x, y), _ = make_batches()[0]
    loss(x.clone().requires_grad_(), y).backward()
    assert not vars(loss.centers)


def test_state_dict_carries_alpha() -> None:
    loss = make_loss()
    saved = CenterSGD([loss.centers], alpha=0.25).state_dict()
    optimizer = CenterSGD([loss.centers], alpha=0.5)
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["alpha"] == 0.25


@pytest.mark.parametrize("alpha", [0.0, -0.5, float("nan")])
def test_alpha_must_be_positive(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha"):
        CenterSGD([make_loss().centers], alpha=alpha)
