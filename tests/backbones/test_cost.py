"""What a backbone costs: by hand, and the table of the docs against it."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from facelit import backbones
from facelit.backbones.cost import Cost, measure_cost

DOCS = Path(__file__).resolve().parents[2] / "docs" / "backbones.md"


def test_counts_by_hand() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )
    images, maps = 3 * 112 * 112, 8 * 56 * 56
    parameters = 8 * 27 + 8 + 8 * 5 + 5
    # Kept: the images for the convolution, its map once (ReLU works in place, the mean needs no values), eight means.
    assert measure_cost(model) == Cost(parameters, 2 * (27 * maps + 8 * 5), 4 * (images + maps + 8))


@pytest.mark.parametrize(
    "model",
    [
        backbones.IResNet(18, 8, width=0.125, dropout=0.3),
        backbones.MobileFaceNet(8, width=0.125),
        backbones.VGG16(8, width=0.02, batch_norm=True),
    ],
    ids=lambda model: type(model).__name__,
)
def test_kept_activations_are_those_of_a_real_pass(model: nn.Module) -> None:
    kept: dict[int, int] = {}
    alive: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        alive.append(tensor)
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    own = {value.untyped_storage().data_ptr() for value in (*model.parameters(), *model.buffers())}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    cost = measure_cost(model)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(torch.randn(2, 3, 112, 112))
    real = sum(size for address, size in kept.items() if address not in own)
    assert cost.activation_bytes == pytest.approx(real / 2, rel=0.01)


def table() -> list[list[str]]:
    """Rows whose first cell is a call."""
    lines = [line for line in DOCS.read_text(encoding="utf-8").splitlines() if re.match(r"\| `\w+\(", line)]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def build(call: str) -> nn.Module:
    """`IResNet(depth=50)` as a backbone; on the meta device, but for timm, whose older releases cannot be built there."""
    expression = ast.parse(call, mode="eval").body
    assert isinstance(expression, ast.Call)
    assert isinstance(expression.func, ast.Name)
    arguments: list[Any] = [ast.literal_eval(argument) for argument in expression.args]
    options = {str(option.arg): ast.literal_eval(option.value) for option in expression.keywords}
    with torch.device("cpu" if expression.func.id == "TimmBackbone" else "meta"):
        network: nn.Module = getattr(backbones, expression.func.id)(*arguments, **options)
    return network


def test_every_backbone_is_in_the_table() -> None:
    around_others = {"ImportedBackbone", "OnnxModel"}  # what they cost is what they hold
    assert {row[0].strip("`").partition("(")[0] for row in table()} == set(backbones.__all__) - around_others


@pytest.mark.parametrize("row", table(), ids=lambda row: row[0].strip("`"))
def test_the_table_of_the_docs_is_true(row: list[str]) -> None:
    call = row[0].strip("`")
    if call.startswith("Timm") and importlib.util.find_spec("timm") is None:
        pytest.skip('needs facelit[timm]: pip install "facelit[timm]"')
    cost = measure_cost(build(call))
    assert row == [row[0], f"{cost.parameters:,}", f"{cost.flops / 1e9:.2f}", f"{cost.activation_bytes / 1e6:.1f}"]
