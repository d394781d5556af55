"""torch.compile for the backbone, kept out of checkpoints and away from odd batch sizes."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from facelit.errors import FacelitError
from facelit.lightning import CompilationError

CompileMode = Literal["default", "reduce-overhead", "max-autotune"]
"""torch.compile's modes: the last two replay CUDA graphs on a GPU, the last one also tries kernels out."""

_WITH_CUDA_GRAPHS = ("reduce-overhead", "max-autotune")


class CompiledBackbone:
    """Calls a backbone through torch.compile.

    The backbone itself does not change, and neither do its state dict, copies and exports. A compiled program is specialised
    to one batch size, which is fastest. There is one program for training and one for evaluation, each for the largest batch
    so far; smaller batches (the last of an epoch) run uncompiled, instead of causing another compilation for every size.

    Copies and unpickled objects compile again when they are first called.

    Args:
        mode: One of torch.compile's modes.

    Raises:
        FacelitError: There is no such mode.
    """

    def __init__(self, mode: str = "default") -> None:
        if mode not in get_args(CompileMode):
            raise FacelitError(
                f"model.compile must be true, false or one of {', '.join(get_args(CompileMode))}, not {mode}."
            )
        self.mode = mode
        self._sizes = {True: 0, False: 0}
        self._run = torch.compile(_run, dynamic=False, mode=mode)

    def __call__(self, backbone: nn.Module, images: Tensor) -> Tensor:
        """Embeds crops.

        Args:
            backbone: The network; another with the same layout needs no new compilation.
            images: float (N, 3, 112, 112).

        Returns:
            Embeddings (N, D).

        Raises:
            FacelitError: The machine has no compiler that torch.compile works with.
        """
        if len(images) < self._sizes[backbone.training]:
            return _run(backbone, images)
        self._sizes[backbone.training] = len(images)
        if self.mode in _WITH_CUDA_GRAPHS:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]  # torch's own
        try:
            embeddings: Tensor = self._run(backbone, images)
        except CompilationError as error:  # a failing backend, or no Triton
            lines = [line for line in str(error).strip().splitlines() if line and not line.startswith("backend=")]
            reason = next(iter(lines), type(error).__name__)
            raise FacelitError(
                f"model.compile: torch.compile failed ({reason[:200]}). It needs a C++ compiler, and Triton on a GPU; or"
                " turn the option off."
            ) from error
        # A CUDA graph writes its next result into the same memory, but evaluation keeps its results.
        return embeddings if backbone.training or self.mode not in _WITH_CUDA_GRAPHS else embeddings.clone()

    def check_accumulation(self, batches: int) -> None:
        """Rejects CUDA graphs with accumulated gradients, which the graph would overwrite.

        Args:
            batches: The number of batches per optimizer step.

        Raises:
            FacelitError: The mode uses CUDA graphs, and a step takes several batches.
        """
        if batches > 1 and self.mode in _WITH_CUDA_GRAPHS:
            raise FacelitError(
                f"model.compile {self.mode} cannot be combined with trainer.accumulate_grad_batches: use model.compile default."
            )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.mode,)


def make_compiled(option: bool | str) -> CompiledBackbone | None:
    """The compiled backbone for the option `model.compile`; None if it is off."""
    if option is False:
        return None
    return CompiledBackbone("default" if option is True else option)


def _run(backbone: nn.Module, images: Tensor) -> Tensor:
    embeddings: Tensor = backbone(images)
    return embeddings
