"""Reading figures from the device all at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


def read_together(
    figures: Mapping[str, Tensor], average: Callable[[Tensor], Tensor] | None = None
) -> dict[str, Tensor]:
    """Brings figures to the CPU with one wait for the device, and one collective where there are several processes.

    Lightning reads a logged tensor of a GPU again at each later step that shows it in the progress bar, and waits for the
    GPU each time; it never waits for these.

    Args:
        figures: Scalars by name; the same names on all processes.
        average: Averages a tensor over the processes; None for one process.

    Returns:
        The figures by name, float32 (float64 where one is) on the CPU.
    """
    if not figures:
        return {}
    dtype = torch.float64 if any(value.dtype == torch.float64 for value in figures.values()) else torch.float32
    values = torch.stack([value.detach().to(dtype) for value in figures.values()])
    return dict(zip(figures, (values if average is None else average(values)).cpu().unbind(), strict=True))
