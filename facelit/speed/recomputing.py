"""Recomputes activations in the backward pass instead of keeping them: less memory for more arithmetic.

Chen, Xu, Zhang & Guestrin: Training Deep Nets with Sublinear Memory Cost, arXiv 1604.06174, 2016.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from facelit.errors import FacelitError

_COUNTS_ONCE = (2, 11)
"""The first torch whose compiled programs were seen to write a recomputed BatchNorm's statistics once; 2.6 and 2.8 write them twice."""
_POOLINGS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveMaxPool2d, nn.AdaptiveAvgPool2d)


class RecomputedSequential(nn.Sequential):
    """A Sequential that keeps only the inputs of its segments, and runs each segment again in the backward pass.

    A segment is a block (a child with children of its own), or simple layers up to and including the next pooling.
    Gradients, random numbers and buffers (BatchNorm's running statistics) are the same as without recomputing.
    """

    def forward(self, input: Tensor) -> Tensor:
        """As nn.Sequential."""
        if not torch.is_grad_enabled():
            output: Tensor = super().forward(input)  # type: ignore[no-untyped-call]  # torch's own
            return output
        for segment in _segments(self):
            input = _recomputed(segment, input)
        return input


def recompute_activations(backbone: nn.Module, compiled: bool = False) -> None:
    """Makes the sequential stages of a network recompute their activations, in place.

    Only their class changes: parameters, names and state dict stay the same.

    Args:
        backbone: The network.
        compiled: Whether it will be compiled.

    Raises:
        FacelitError: It has no sequential stages; or this torch's compiled program would count batches twice.
    """
    stages = list(_stages(backbone))
    if not stages:
        raise FacelitError(
            f"model.checkpoint_activations: {type(backbone).__name__} has no nn.Sequential of blocks or convolutions whose"
            " activations could be recomputed. Turn the option off."
        )
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    has_statistics = any(name.endswith("running_mean") for stage in stages for name, _ in stage.named_buffers())
    if compiled and has_statistics and version < _COUNTS_ONCE:
        raise FacelitError(
            f"model.checkpoint_activations with model.compile needs torch {'.'.join(map(str, _COUNTS_ONCE))} or later where there is batch"
            f" normalisation: earlier ones (here {torch.__version__}) may count each batch twice in its running statistics. Upgrade torch, or"
            " turn one of the two off."
        )
    for stage in stages:
        stage.__class__ = RecomputedSequential


def _stages(module: nn.Module) -> Iterator[nn.Sequential]:
    """The outermost sequences of blocks or convolutions, below sequences of stages."""
    children = list(module.children())
    if type(module) is nn.Sequential and (any(map(_is_block, children)) or any(map(_is_convolution, children))):
        inner = [stage for child in children if type(child) is nn.Sequential for stage in _stages(child)]
        yield from inner or [module]
        return
    for child in children:
        yield from _stages(child)


def _is_block(module: nn.Module) -> bool:
    return any(True for _ in module.children())


def _is_convolution(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d)


def _segments(stage: nn.Sequential) -> Iterator[list[nn.Module]]:
    segment: list[nn.Module] = []
    for layer in stage:
        if _is_block(layer) and segment:
            yield segment
            segment = []
        segment.append(layer)
        if _is_block(layer) or isinstance(layer, _POOLINGS):
            yield segment
            segment = []
    if segment:
        yield segment


def _recomputed(segment: Sequence[nn.Module], input: Tensor) -> Tensor:
    if (
        torch.compiler.is_compiling()
    ):  # from `_COUNTS_ONCE` on, a compiled program writes each buffer once, even if recomputed
        output: Tensor = checkpoint(_run, segment, input, use_reentrant=False)
    else:
        output = checkpoint(_run, segment, input, use_reentrant=False, context_fn=partial(_contexts, segment))
    return output


def _run(segment: Sequence[nn.Module], input: Tensor) -> Tensor:
    for layer in segment:
        input = layer(input)
    return input


def _contexts(segment: Sequence[nn.Module]) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """The contexts of the forward pass and of its repetition."""
    return nullcontext(), _buffers_kept(segment)


@contextmanager
def _buffers_kept(segment: Sequence[nn.Module]) -> Iterator[None]:
    """Lets the second pass write into copies: BatchNorm's running statistics count each batch once."""
    owned = [
        (module, name, buffer)
        for layer in segment
        for module in layer.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    for module, name, buffer in owned:
        setattr(module, name, buffer.clone())
    try:
        yield
    finally:
        for module, name, buffer in owned:
            setattr(module, name, buffer)
