"""Where tables and remarks are printed."""

from __future__ import annotations

from rich.console import Console

_WIDTH = 10_000


def open_console() -> Console:
    """Standard output: as wide as the terminal, or, in a file or a pipe, so wide that no name is broken."""
    console = Console()
    return console if console.is_terminal else Console(width=_WIDTH)
