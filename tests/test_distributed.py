"""Gathering over processes, alone and on two."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parent))
from two_processes import run_on_two_processes

from facelit.distributed import all_gather, all_gather_with_grad, rank, world_size


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


@pytest.fixture(scope="module")
def results() -> list[dict[str, Any]]:
    return run_on_two_processes(gather_on_each)


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
