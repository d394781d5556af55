"""A run outlives whoever reads what it prints."""

from __future__ import annotations

import io
import sys
from typing import Any


class _Lasting(io.FileIO):
    """A file descriptor that takes whatever is written, also when it is a pipe without a reader or a terminal that was closed."""

    replaced: Any = None
    """Kept, as it would close the descriptor."""

    def write(self, data: Any) -> int:
        """As `FileIO.write`; what cannot be written is lost."""
        try:
            return super().write(data)
        except OSError:
            return len(data)


def outlive_readers() -> None:
    """Lets `sys.stdout` and `sys.stderr` lose what nobody takes any more, instead of raising.

    Ctrl-C in `fit ... | tee log` ends `tee` too, and a terminal that is closed sends SIGHUP: the run has yet to save, and would
    end in a broken pipe.
    """
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        try:
            if not isinstance(stream, io.TextIOWrapper) or stream.fileno() != descriptor:
                continue  # a notebook's
        except OSError:  # it has no descriptor: a test's
            continue
        raw = _Lasting(descriptor, "w", closefd=False)
        raw.replaced = stream
        lasting = io.TextIOWrapper(
            raw if stream.write_through else io.BufferedWriter(raw),
            encoding=stream.encoding,
            errors=stream.errors,
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )
        setattr(sys, name, lasting)
