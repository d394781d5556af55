"""Losses are computed in float32 or wider, and what they accumulate is kept in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from typing_extensions import Self


def at_least_float32(x: Tensor) -> Tensor:
    """The tensor in float32, or in its own dtype if that is wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class KeepsFloat32(nn.Module):
    """A module that ``half()`` and the like move but do not narrow: small updates would be rounded away.

    This also holds when they are called on a module that contains it.
    """

    def keeps(self, tensor: Tensor) -> bool:
        """Whether a parameter or buffer of this module must not be narrowed; a subclass may pick some of them."""
        return True

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            narrowed = moved.element_size() < tensor.element_size()
            return tensor.to(moved.device) if narrowed and self.keeps(tensor) else moved

        super()._apply(move, recurse)  # type: ignore[no-untyped-call]  # torch's own
        return self
