"""Where a GPU's time goes: torch.profiler's table of the twenty longest operations, a trace, and the share of idle time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch.autograd import DeviceType  # type: ignore[attr-defined]  # as torch.profiler itself does
from torch.profiler import ProfilerActivity, profile

_ROWS = 20


def profile_steps(step: Callable[[], object], steps: int, device: torch.device, out: Path, name: str) -> float | None:
    """Profiles some steps; writes `<name>-ops.txt` and `<name>-trace.json` (open it in Perfetto or chrome://tracing).

    Args:
        step: One training step.
        steps: The number of steps to profile, after one that is not.
        device: The device they run on.
        out: The folder to write to.
        name: The beginning of the files' names.

    Returns:
        The share of time that the GPU was idle, from 0 to 1; None on a CPU.
    """
    out.mkdir(parents=True, exist_ok=True)
    step()
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiled:
        for _ in range(steps):
            step()
        if on_gpu:
            torch.cuda.synchronize(device)
    order = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    table = profiled.key_averages().table(sort_by=order, row_limit=_ROWS, max_name_column_width=60)
    (out / f"{name}-ops.txt").write_text(table + "\n")
    profiled.export_chrome_trace(str(out / f"{name}-trace.json"))
    if not on_gpu:
        return None
    spans = [
        (event.time_range.start, event.time_range.end)
        for event in profiled.events() or ()
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation
    ]
    return idle_share(spans)


def idle_share(spans: Iterable[tuple[float, float]]) -> float:
    """The share of the time between the first start and the last end that no span covers; 0 without spans.

    Args:
        spans: Start and end of each piece of work, in any unit; they may overlap.
    """
    ordered = sorted(spans)
    if not ordered:
        return 0.0
    busy, covered_to = 0.0, ordered[0][0]
    for start, end in ordered:
        busy += max(0.0, end - max(start, covered_to))
        covered_to = max(covered_to, end)
    whole = covered_to - ordered[0][0]
    return 1 - busy / whole if whole > 0 else 0.0
