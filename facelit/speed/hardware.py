"""What the hardware is told once, before a run of the command line."""

from __future__ import annotations

import torch


def best_precision(accelerator: str) -> str:
    """bf16 where a GPU has it, float32 elsewhere: Lightning's name of the precision."""
    bf16 = runs_on_gpu(accelerator) and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16-mixed" if bf16 else "32-true"


def runs_on_gpu(accelerator: str) -> bool:
    """Whether Lightning's option `accelerator` comes to an NVIDIA GPU here."""
    return accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()


def allow_tf32(accelerator: str, precision: object) -> None:
    """Lets float32 matrix products round their inputs to TF32, where the rest of the network runs in less than that.

    Under the mixed precisions heads compute in float32; a product of full float32 is several times slower on a GPU, and
    its extra digits are those that the embeddings do not have. Other precisions are left alone.
    """
    if runs_on_gpu(accelerator) and precision in ("bf16-mixed", "16-mixed"):
        torch.set_float32_matmul_precision("high")


def default_cudnn_benchmark(accelerator: str, deterministic: object) -> bool | None:
    """Lightning's option `benchmark` where the user leaves it open: whether cuDNN tries its convolutions out.

    Crops and batches are of one size, but for the last batches, so that it pays on a GPU. What it chooses may differ from
    run to run by rounding: not where a run asks to be deterministic.
    """
    return True if runs_on_gpu(accelerator) and deterministic in (None, False) else None
