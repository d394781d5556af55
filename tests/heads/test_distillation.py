"""DistillationLoss against a literal float64 reference, on one process and two."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from facelit.distributed import global_batch, part_sizes
from facelit.heads import DistillationHead, DistillationLoss
from two_processes import run_on_two_processes

STUDENT, TEACHER, BATCH = 5, 3, 7


def data(columns: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    embeddings = torch.randn(BATCH, STUDENT, dtype=torch.float64, generator=generator)
    return embeddings, torch.randn(BATCH, columns, dtype=torch.float64, generator=generator)


def literal(embeddings: Tensor, targets: Tensor, distance: str, weight: Tensor | None) -> float:
    """One image after another, in Python floats."""
    total = 0.0
    for row, target in zip(embeddings.tolist(), targets.tolist(), strict=True):
        if weight is not None:
            row = [sum(w * x for w, x in zip(line, row, strict=True)) for line in weight.tolist()]
        own, other = math.sqrt(sum(x * x for x in row)), math.sqrt(sum(x * x for x in target))
        student, teacher = [x / own for x in row], [x / other for x in target]
        if distance == "squared":
            total += sum((s - t) ** 2 for s, t in zip(student, teacher, strict=True))
        else:
            total += 1 - sum(s * t for s, t in zip(student, teacher, strict=True))
    return total / len(embeddings)


@pytest.mark.parametrize("distance", ["cosine", "squared"])
@pytest.mark.parametrize("columns", [STUDENT, TEACHER])
def test_the_loss_and_its_gradients_are_those_of_the_literal_reference(distance: Any, columns: int) -> None:
    embeddings, targets = data(columns)
    loss = DistillationLoss(STUDENT, columns, distance).double()
    weight = None if loss.map is None else loss.map.weight
    assert (weight is None) == (columns == STUDENT)
    embeddings.requires_grad_()
    value = loss(embeddings, targets)
    assert float(value.detach()) == pytest.approx(literal(embeddings, targets, distance, weight), abs=1e-12)

    value.backward()
    step = 1e-6
    for tensor in [embeddings] if weight is None else [embeddings, weight]:
        assert tensor.grad is not None
        for place in [(0, 0), (2, 4), (1, 3)]:
            moved = []
            for sign in (1, -1):
                with torch.no_grad():
                    tensor[place] += sign * step
                    moved.append(literal(embeddings.detach(), targets, distance, weight))
                    tensor[place] -= sign * step
            assert float(tensor.grad[place]) == pytest.approx((moved[0] - moved[1]) / (2 * step), abs=1e-8)


def test_lengths_do_not_count() -> None:
    embeddings, targets = data(STUDENT)
    loss = DistillationLoss(STUDENT, STUDENT)
    assert torch.allclose(loss(embeddings * 40, targets / 3), loss(embeddings, targets), atol=1e-12)
    assert float(loss(targets * 2, targets)) == pytest.approx(0, abs=1e-12)


def test_an_embedding_without_direction_is_at_distance_1_and_gets_no_gradient() -> None:
    embeddings = torch.zeros(2, STUDENT, requires_grad=True)
    value = DistillationLoss(STUDENT, STUDENT)(embeddings, torch.ones(2, STUDENT))
    value.backward()
    assert float(value.detach()) == 1.0
    assert embeddings.grad is not None
    assert not embeddings.grad.any()


def test_the_teacher_gets_no_gradient() -> None:
    embeddings, targets = data(STUDENT)
    embeddings.requires_grad_()
    targets.requires_grad_()
    DistillationLoss(STUDENT, STUDENT)(embeddings, targets).backward()
    assert targets.grad is None


def test_it_is_computed_in_float32_under_autocast_and_in_a_half_precision_module() -> None:
    embeddings, targets = (x.float() for x in data(TEACHER))
    loss = DistillationLoss(STUDENT, TEACHER)
    expected = loss(embeddings, targets)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(loss(embeddings, targets), expected)
    loss.bfloat16()
    assert loss.map is not None
    assert loss.map.weight.dtype == torch.float32
    assert torch.allclose(loss(embeddings.bfloat16(), targets), expected, atol=5e-3)


@pytest.mark.parametrize(
    ("embeddings", "targets"),
    [((2, STUDENT + 1), (2, TEACHER)), ((2, STUDENT), (2, STUDENT)), ((2, STUDENT), (3, TEACHER))],
)
def test_shapes_that_do_not_fit_are_refused(embeddings: tuple[int, int], targets: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="expected embeddings of shape"):
        DistillationLoss(STUDENT, TEACHER)(torch.ones(embeddings), torch.ones(targets))


def test_options_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="must be positive"):
        DistillationLoss(0, 3)
    with pytest.raises(ValueError, match="one of cosine, squared"):
        DistillationLoss(3, 3, "euclidean")  # type: ignore[arg-type]


def gradients(rank: int, world_size: int) -> dict[str, Any]:
    """The loss and gradients of a batch of 7, divided among the processes."""
    torch.manual_seed(0)
    embeddings, targets = data(TEACHER)
    layer = torch.nn.Linear(STUDENT, STUDENT).double()
    loss = DistillationLoss(STUDENT, TEACHER).double()
    model: Any = torch.nn.ModuleDict({"layer": layer, "loss": loss})
    model.forward = lambda x, t: loss(layer(x), t)
    wrapped = DistributedDataParallel(model) if world_size > 1 else model
    parts = part_sizes(BATCH, world_size)
    rows = slice(sum(parts[:rank]), sum(parts[: rank + 1]))
    with global_batch(BATCH):
        wrapped(embeddings[rows], targets[rows]).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def gradients_of_part(world_size: int) -> dict[str, Any]:
    return gradients(torch.distributed.get_rank(), world_size)


def test_two_processes_with_uneven_parts_have_the_gradients_of_one() -> None:
    expected = gradients(0, 1)
    for found in run_on_two_processes(gradients_of_part, 2):
        assert found.keys() == expected.keys()
        for name, gradient in found.items():
            assert torch.allclose(gradient, expected[name], atol=1e-12), name


def test_the_head_without_labels_adds_nothing() -> None:
    output = DistillationHead()(torch.tensor([[3.0, 4.0], [0.0, 2.0]]).bfloat16(), torch.tensor([0, 10**9]))
    assert float(output.loss) == 0.0
    assert output.loss.dtype == torch.float32
    assert float(output.metrics["embedding_norm"]) == 3.5
