"""A progress bar for long work: on a terminal, and only where there is much to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def progress_bar(description: str, total: int, quiet_below: int = 0) -> Iterator[Callable[[int], None]]:
    """Shows how far a piece of work is, on standard error; the bar goes away at the end.

    Args:
        description: What is being done.
        total: How much there is to do.
        quiet_below: Less than this is done without a bar.

    Yields:
        A function that is told how much is done so far.
    """
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    hidden = total < quiet_below or not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=hidden) as progress:
        bar = progress.add_task(description, total=total)
        yield lambda done: progress.update(bar, completed=done)
