"""Every head on two processes whose parts of a batch differ in size: loss, gradients and centers of one process."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from facelit.distributed import global_batch, part_sizes
from facelit.heads import (
    AdaFaceHead,
    ArcFaceHead,
    CenterLossHead,
    CenterTerm,
    CombinedMarginHead,
    CosFaceHead,
    Head,
    SoftmaxHead,
    TripletHead,
)
from two_processes import run_on_two_processes

IDENTITIES, DIM = 4, 5
HEADS = ["softmax", "center", "triplet", "arcface", "cosface", "combined", "adaface"]
WITH_CENTERS = {"center", "arcface", "cosface", "combined", "adaface"}
STEPS = {  # sizes of the global micro-batches of each step
    "one odd batch": [[7]],
    "accumulated": [[8, 7], [7, 5], [6]],
}
CASES = [(head, steps) for head in HEADS for steps in STEPS]


class Model(nn.Module):
    """A backbone of one layer, and a head; float64."""

    def __init__(self, name: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        heads: dict[str, Head] = {
            "softmax": SoftmaxHead(IDENTITIES, DIM, label_smoothing=0.1),
            "center": CenterLossHead(IDENTITIES, DIM, weight=0.5),
            "triplet": TripletHead(0.5, "all"),
            "arcface": ArcFaceHead(IDENTITIES, DIM, scale=8.0, center=CenterTerm(0.5), label_smoothing=0.1),
            "cosface": CosFaceHead(IDENTITIES, DIM, scale=8.0, center=CenterTerm(0.5), margin_ramp=4),
            "combined": CombinedMarginHead(IDENTITIES, DIM, scale=8.0, m1=1.2, center=CenterTerm(0.5)),
            "adaface": AdaFaceHead(IDENTITIES, DIM, scale=8.0, momentum=0.3, margin_ramp=2, center=CenterTerm(0.5)),
        }
        self.backbone = nn.Linear(6, DIM)
        self.head = heads[name]
        self.double()

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        loss: Tensor = self.head(self.backbone(images), labels).loss
        return loss


def train(name: str, steps: list[list[int]], rank: int = 0, world_size: int = 1) -> dict[str, Any]:
    """Plain SGD, gradients accumulated over the micro-batches of a step; gradients of all steps, last losses, weights."""
    model = Model(name)
    wrapped = model if world_size == 1 else DistributedDataParallel(model)
    generator = torch.Generator().manual_seed(1)
    center_optimizer = model.head.make_optimizer()
    losses, gradients = [], []
    for sizes in steps:
        for number, total in enumerate(sizes):
            images = torch.randn(total, 6, generator=generator, dtype=torch.float64)
            labels = torch.randint(IDENTITIES, (total,), generator=generator)
            parts = part_sizes(total, world_size)
            own = slice(sum(parts[:rank]), sum(parts[: rank + 1]))
            waits = world_size > 1 and number < len(sizes) - 1
            with global_batch(total), wrapped.no_sync() if waits else nullcontext():
                loss = wrapped(images[own], labels[own])
            # After the context, and between batches of other sizes, as in Lightning's closures.
            loss.backward()
            losses.append(loss.item())
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        gradients.append([parameter.grad.clone() for parameter in trained])
        with torch.no_grad():
            for parameter in trained:
                parameter -= 0.1 * parameter.grad
                parameter.grad = None
        if center_optimizer is not None:
            center_optimizer.step()
    return {"losses": losses, "gradients": gradients, "state": dict(model.state_dict())}


def train_on_each() -> list[dict[str, Any]]:
    rank = torch.distributed.get_rank()
    return [train(head, STEPS[steps], rank, 2) for head, steps in CASES]


@pytest.fixture(scope="module")
def on_two() -> list[list[dict[str, Any]]]:
    return run_on_two_processes(train_on_each)


@pytest.mark.parametrize(("head", "steps"), CASES)
def test_two_processes_equal_one(on_two: list[list[dict[str, Any]]], head: str, steps: str) -> None:
    one = train(head, STEPS[steps])
    results = [results[CASES.index((head, steps))] for results in on_two]
    mean_losses = [sum(losses) / 2 for losses in zip(*(result["losses"] for result in results), strict=True)]
    assert mean_losses == pytest.approx(one["losses"], abs=1e-12)
    for result in results:
        for step, expected in zip(result["gradients"], one["gradients"], strict=True):
            assert max(gradient.abs().max() for gradient in expected) > 1e-3
            for gradient, whole in zip(step, expected, strict=True):
                torch.testing.assert_close(gradient, whole, atol=1e-12, rtol=1e-9)
        for name, value in one["state"].items():
            torch.testing.assert_close(result["state"][name], value, atol=1e-12, rtol=1e-9, msg=name)
    moved = {name for name, value in one["state"].items() if not torch.equal(value, Model(head).state_dict()[name])}
    assert ("head.center_loss.centers" in moved) == (head in WITH_CENTERS)
    assert moved >= {name for name in one["state"] if "norm_" in name or "batches_seen" in name}
