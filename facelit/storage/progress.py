"""How far long work is: a bar on a terminal, a line now and then in a log file."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 30.0


@contextmanager
def progress_bar(description: str, total: int, quiet_below: int = 0, done: int = 0) -> Iterator[Callable[[int], None]]:
    """Shows how far a piece of work is, on standard error.

    On a terminal that is a bar, which goes away at the end. Elsewhere it is a line every half minute with the count, the rate and
    the time left; work that takes less prints nothing.

    Args:
        description: What is being done.
        total: How much there is to do.
        quiet_below: Less than this is done without a bar.
        done: How much an earlier run has done: it says nothing about the rate.

    Yields:
        A function that is told how much is done so far.
    """
    if not draws_bars(sys.stderr):
        yield ProgressLines(description, total, done).show
        return
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=total < quiet_below) as progress:
        bar = progress.add_task(description, total=total, completed=done)
        yield lambda done: progress.update(bar, completed=done)


def draws_bars(stream: TextIO) -> bool:
    """Whether a stream is a terminal on which a bar can move, whatever variables such as `FORCE_COLOR` want Rich to believe."""
    return stream.isatty() and os.environ.get("TERM", "").lower() not in ("dumb", "unknown")


class ProgressLines:
    """Prints a line, on standard error, when the last one is half a minute old.

    Args:
        description: See `progress_bar`.
        total: Likewise; 0 where nobody knows.
        done: Likewise.
    """

    def __init__(self, description: str, total: int, done: int = 0) -> None:
        self._description = description
        self._total = total
        self._earlier = done
        self._start = self._last = monotonic()

    def show(self, done: int) -> None:
        """Says how much is done so far; called as often as one likes."""
        self.show_with(done, str)

    def show_with(self, done: int, note: Callable[[], str]) -> None:
        """The same, with what `note` returns behind it; it is called for the lines that are printed."""
        now = monotonic()
        if now - self._last < SECONDS_BETWEEN_LINES:
            return
        self._last = now
        line = f"{self._description}: {done:,}{f' of {self._total:,}' if self._total else ''}"
        if self._earlier < done <= self._total:
            rate = (done - self._earlier) / (now - self._start)
            line += f" ({100 * done / self._total:.0f} %), {_rate(rate)}, about {_duration((self._total - done) / rate)} left"
        line = ", ".join(filter(None, (line, note())))
        print(line, file=sys.stderr, flush=True)


def _rate(per_second: float) -> str:
    if per_second >= 10:
        return f"{per_second:,.0f} per second"
    return f"{per_second:.1f} per second" if per_second >= 1 else f"{60 * per_second:.1f} per minute"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
