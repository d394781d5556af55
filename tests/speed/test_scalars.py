"""Figures come to the CPU together."""

import torch
from torch import Tensor

from facelit.speed.scalars import fetch_scalars


def test_names_values_and_one_average() -> None:
    calls: list[Tensor] = []

    def average(values: Tensor) -> Tensor:
        calls.append(values)
        return values / 2

    figures = {"loss": torch.tensor(3.0, requires_grad=True), "share": torch.tensor(0.5, dtype=torch.float16)}
    read = fetch_scalars(figures, average)
    assert read == {"loss": 1.5, "share": 0.25}
    assert len(calls) == 1
    assert all(value.dtype == torch.float32 and not value.requires_grad for value in read.values())


def test_double_precision_is_kept() -> None:
    value = 1 + 2**-40
    assert fetch_scalars({"x": torch.tensor(value, dtype=torch.float64), "n": torch.tensor(3)}) == {"x": value, "n": 3}
    assert fetch_scalars({}) == {}
