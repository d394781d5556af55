"""Reporting, shared by the benchmark scripts: the machine, timing with its spread, a table, a JSON file."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from time import perf_counter
from typing import NamedTuple


class Timing(NamedTuple):
    """Seconds of one call: median and quartiles over `repeats` calls."""

    median: float
    first_quartile: float
    third_quartile: float
    repeats: int

    def milliseconds(self) -> str:
        """Formats the timing for a table."""
        low, high = 1e3 * self.first_quartile, 1e3 * self.third_quartile
        return f"{1e3 * self.median:.2f} ms ({low:.2f} to {high:.2f})"


def time_in_turns(
    calls: Mapping[str, Callable[[], object]], repeats: Mapping[str, int], warmups: int = 1
) -> dict[str, Timing]:
    """Times several calls in one run, alternating between them so that all see the same machine.

    Args:
        calls: The functions to time, by name.
        repeats: The number of timings of each, at least two; a call with fewer sits out the last rounds.
        warmups: The number of calls of each before the clock starts.
    """
    for call in calls.values():
        for _ in range(warmups):
            call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(max(repeats[name] for name in calls)):
        for name, call in calls.items():
            if turn < repeats[name]:
                start = perf_counter()
                call()
                seconds[name].append(perf_counter() - start)
    return {name: summarise(times) for name, times in seconds.items()}


def summarise(seconds: Sequence[float]) -> Timing:
    """Median and quartiles of at least two measurements."""
    low, median, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return Timing(median, low, high, len(seconds))


def machine(packages: Sequence[str]) -> dict[str, str]:
    """Processor, cores, system, and the versions of Python and the named packages."""
    versions = {package: metadata.version(package) for package in packages}
    cores = f"{os.cpu_count()} cores"
    system = f"{platform.system()} {platform.machine()}"
    return {
        "processor": _processor(),
        "cores": cores,
        "system": system,
        "python": platform.python_version(),
    } | versions


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown processor"


def print_header(title: str, facts: Mapping[str, str]) -> None:
    """Prints a title and facts about the machine."""
    print(title)
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    print()


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints an aligned Markdown table, ready to paste into a README."""
    widths = [max(map(len, cells)) for cells in zip(columns, *rows, strict=True)]
    lines = [columns, ["-" * width for width in widths], *rows]
    for cells in lines:
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |")


def write_json(path: Path | None, figures: Mapping[str, object]) -> None:
    """Writes the figures to a file, if one is requested."""
    if path is not None:
        path.write_text(json.dumps(figures, indent=2) + "\n")
