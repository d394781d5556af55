"""Fetches logged figures from the device, all at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


def fetch_scalars(
    figures: Mapping[str, Tensor], average: Callable[[Tensor], Tensor] | None = None
) -> dict[str, Tensor]:
    """Brings figures to the CPU with a single wait for the device, and a single collective if there are several processes.

    A logged tensor on the GPU costs a wait at every later step that shows it in the progress bar; on the CPU it costs none.

    Args:
        figures: Scalars by name; the same names on all processes.
        average: Averages a tensor over the processes; None for one process.

    Returns:
        The figures by name, on the CPU: float32, or float64 if any of them is.
    """
    if not figures:
        return {}
    dtype = torch.float64 if any(value.dtype == torch.float64 for value in figures.values()) else torch.float32
    values = torch.stack([value.detach().to(dtype) for value in figures.values()])
    return dict(zip(figures, (values if average is None else average(values)).cpu().unbind(), strict=True))
