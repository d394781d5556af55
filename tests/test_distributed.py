"""Gathering over processes, alone and on two."""

from typing import Any

import pytest
import torch
import torch.distributed as dist

from facelit.distributed import (
    all_gather,
    all_gather_with_grad,
    global_batch,
    part_sizes,
    parts_of_batch,
    rank,
    weigh_part,
    world_size,
)
from two_processes import run_on_two_processes


def gather_on_each() -> dict[str, Any]:
    me = dist.get_rank()
    numbers = torch.arange(4).view(2, 2) + 10 * me
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).add(me).requires_grad_()
    gathered = all_gather_with_grad(x)
    weights = torch.arange(8.0).view(4, 2)
    (gathered.square() * weights).sum().backward()
    return {
        "rank": rank(),
        "world_size": world_size(),
        "integers": all_gather(numbers),
        "strided": all_gather(numbers.T),
        "detached": all_gather(x).requires_grad,
        "gathered": gathered.detach(),
        "grad": x.grad,
    }


def uneven_on_each() -> dict[str, Any]:
    """A global batch of seven rows, 4 + 3; row i is (i, 10 i)."""
    rows = torch.arange(7.0)[4 * dist.get_rank() :][: 4 - dist.get_rank()]
    x = torch.stack([rows, 10 * rows], dim=1).requires_grad_()
    with global_batch(7):
        gathered = all_gather_with_grad(x)
        mean = weigh_part(x.detach()[:, 0].mean(), len(x))
        parts = parts_of_batch(len(x))
        with pytest.raises(ValueError, match=r"this process holds 2 rows of the batch, not the [43]"):
            all_gather(x[:2])
        with global_batch(6):
            inner = all_gather(x.detach()[:3])
        with pytest.raises(ZeroDivisionError), global_batch(6):
            raise ZeroDivisionError
        integers = all_gather(rows.long())
    (gathered.square() * torch.arange(14.0).view(7, 2)).sum().backward()
    own = torch.ones(3, 1)
    with global_batch(6):
        even = weigh_part(own.mean(), 3) == 1 and weigh_part(own, 3) is own
    return {
        "gathered": gathered.detach(),
        "grad": x.grad,
        "integers": integers,
        "mean": mean,
        "parts": parts,
        "inner": inner[:, 0],
        "even": even,
        "outside": weigh_part(own, 3) is own,
        "told": all_gather(rows[: 1 + dist.get_rank()], parts=[1, 2]),
    }


@pytest.fixture(scope="module")
def results() -> list[dict[str, Any]]:
    return run_on_two_processes(gather_on_each)


@pytest.fixture(scope="module")
def uneven() -> list[dict[str, Any]]:
    return run_on_two_processes(uneven_on_each)


@pytest.mark.parametrize(
    ("total", "num_parts", "sizes"),
    [(7, 2, (4, 3)), (8, 2, (4, 4)), (11, 4, (3, 3, 3, 2)), (2, 3, (1, 1, 0)), (5, 1, (5,))],
)
def test_part_sizes(total: int, num_parts: int, sizes: tuple[int, ...]) -> None:
    assert part_sizes(total, num_parts) == sizes


def test_a_single_process_holds_the_whole_batch() -> None:
    x = torch.randn(7, 2)
    with global_batch(7):
        assert torch.equal(all_gather(x), x)
        assert parts_of_batch(7) == (7,)
        assert weigh_part(x, 7) is x


def test_alone_it_is_the_identity() -> None:
    x = torch.randn(3, 2, requires_grad=True)
    assert (world_size(), rank()) == (1, 0)
    assert torch.equal(all_gather(x), x)
    assert not all_gather(x).requires_grad
    all_gather_with_grad(x).sum().backward()
    assert torch.equal(x.grad, torch.ones(3, 2))


def test_processes_know_their_rank(results: list[dict[str, Any]]) -> None:
    assert [(r["rank"], r["world_size"]) for r in results] == [(0, 2), (1, 2)]


def test_integers_come_in_rank_order(results: list[dict[str, Any]]) -> None:
    for result in results:
        assert result["integers"].tolist() == [[0, 1], [2, 3], [10, 11], [12, 13]]
        assert result["strided"].tolist() == [[0, 2], [1, 3], [10, 12], [11, 13]]


def test_gradient_is_the_own_slice_times_world_size(results: list[dict[str, Any]]) -> None:
    whole = torch.tensor([[1.0, 2.0], [3.0, 4.0], [2.0, 3.0], [4.0, 5.0]])
    expected = 2 * whole * torch.arange(8.0).view(4, 2)  # what one process would get from the whole batch
    for r, result in enumerate(results):
        assert not result["detached"]
        assert torch.equal(result["gathered"], whole)
        assert torch.equal(result["grad"], 2 * expected[2 * r : 2 * r + 2])


def test_uneven_parts_are_joined(uneven: list[dict[str, Any]]) -> None:
    whole = torch.stack([torch.arange(7.0), 10 * torch.arange(7.0)], dim=1)
    for result in uneven:
        assert torch.equal(result["gathered"], whole)
        assert result["integers"].tolist() == list(range(7))
        assert result["parts"] == (4, 3)
        assert result["inner"].tolist() == [0, 1, 2, 4, 5, 6]
        assert result["told"].tolist() == [0, 4, 5]


def test_gradient_of_uneven_parts(uneven: list[dict[str, Any]]) -> None:
    whole = torch.stack([torch.arange(7.0), 10 * torch.arange(7.0)], dim=1)
    expected = 2 * whole * torch.arange(14.0).view(7, 2)
    assert torch.equal(torch.cat([result["grad"] for result in uneven]), 2 * expected)


def test_weighed_means_average_to_the_global_mean(uneven: list[dict[str, Any]]) -> None:
    assert sum(result["mean"].item() for result in uneven) / 2 == pytest.approx(3.0)
    assert [result["mean"].item() for result in uneven] == pytest.approx([1.5 * 8 / 7, 5.0 * 6 / 7])
    assert all(result["even"] and result["outside"] for result in uneven)
