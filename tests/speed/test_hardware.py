"""What a run sets by the machine that it finds."""

import pytest
import torch

from facelit.speed.hardware import allow_tf32, best_precision, default_cudnn_benchmark, faster_precision


@pytest.fixture
def precisions(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """As on a machine with a GPU that has bf16; collects what float32 products are set to."""
    found: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: not including_emulation)
    monkeypatch.setattr(torch, "set_float32_matmul_precision", found.append)
    return found


@pytest.mark.parametrize("accelerator", ["auto", "gpu", "cuda"])
@pytest.mark.parametrize(
    ("precision", "expected"), [("bf16-mixed", ["high"]), ("16-mixed", ["high"]), ("32-true", []), ("bf16-true", [])]
)
def test_tf32_under_mixed_precisions(
    precisions: list[str], accelerator: str, precision: str, expected: list[str]
) -> None:
    allow_tf32(accelerator, precision)
    assert precisions == expected


@pytest.mark.usefixtures("precisions")
def test_on_a_gpu() -> None:
    assert best_precision("auto") == "bf16-mixed"
    assert default_cudnn_benchmark("auto", None) is True
    assert default_cudnn_benchmark("gpu", False) is True
    assert default_cudnn_benchmark("auto", True) is None
    assert default_cudnn_benchmark("auto", "warn") is None


def test_on_the_cpu(precisions: list[str]) -> None:
    allow_tf32("cpu", "bf16-mixed")
    assert precisions == []
    assert best_precision("cpu") == "32-true"
    assert default_cudnn_benchmark("cpu", None) is None


def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    before = torch.get_float32_matmul_precision()
    allow_tf32("auto", "bf16-mixed")
    assert torch.get_float32_matmul_precision() == before
    assert best_precision("auto") == "32-true"
    assert default_cudnn_benchmark("auto", None) is None


def test_a_cpu_with_bf16_units_is_told_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True}, raising=False)
    assert "--trainer.precision bf16-mixed" in (faster_precision("cpu") or "")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": False, "avx512_bf16": True})
    assert faster_precision("cpu") is None
    monkeypatch.delattr(torch.cpu, "get_capabilities")  # older releases of torch
    assert faster_precision("cpu") is None


@pytest.mark.usefixtures("precisions")
def test_a_gpu_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True}, raising=False)
    assert faster_precision("auto") is None
