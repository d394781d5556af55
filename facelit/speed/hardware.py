"""Chooses settings that suit the hardware, once before a run of the command line."""

from __future__ import annotations

from collections.abc import Mapping

import torch


def best_precision(accelerator: str) -> str:
    """The precision to use, by Lightning's name: bf16 on GPUs that support it, float32 elsewhere."""
    bf16 = runs_on_gpu(accelerator) and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16-mixed" if bf16 else "32-true"


def faster_precision(accelerator: str) -> str | None:
    """A line about a precision that is faster on this CPU than its own, if there is one.

    Intel's AMX multiplies bf16 matrices in units of their own. It is not turned on unasked: a run would round differently on
    the next machine, and CPUs without it are slower in bf16 than in float32.
    """
    # Not in older releases of torch.
    capabilities: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    if runs_on_gpu(accelerator) or not capabilities.get("amx_bf16"):
        return None
    return "This CPU multiplies bf16 matrices in hardware (AMX): --trainer.precision bf16-mixed trains a VGG16 about twice as fast."


def runs_on_gpu(accelerator: str) -> bool:
    """Whether Lightning's option `accelerator` selects an NVIDIA GPU here."""
    return accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()


def allow_tf32(accelerator: str, precision: object) -> None:
    """Lets float32 matrix products round their inputs to TF32 if the rest of the network runs at lower precision anyway.

    Under mixed precision, heads compute in float32. Full float32 products are several times slower on a GPU, for digits that
    the embeddings do not have. Other precisions are unaffected.
    """
    if runs_on_gpu(accelerator) and precision in ("bf16-mixed", "16-mixed"):
        torch.set_float32_matmul_precision("high")


def default_cudnn_benchmark(accelerator: str, deterministic: object) -> bool | None:
    """The default of Lightning's option `benchmark`: whether cuDNN times its algorithms and picks the fastest.

    That pays on a GPU, as all crops and nearly all batches have the same size. The choice, and hence rounding, may differ from
    run to run, so deterministic runs do without.
    """
    return True if runs_on_gpu(accelerator) and deterministic in (None, False) else None
