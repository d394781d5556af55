"""The command that goes on with a run that ended early."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from facelit.cli.program import program


def way_on(arguments: Sequence[str], checkpoint: Path | None) -> str:
    """A sentence that ends in the command to type.

    Args:
        arguments: What the run was started with.
        checkpoint: The `last.ckpt` to go on from; None where none was written.
    """
    own = list(arguments)
    ckpt_path = _take_ckpt_path(own)
    if ckpt_path == "auto":
        own += ["--ckpt_path", "auto"]
    elif checkpoint is not None:
        own += ["--ckpt_path", _short(checkpoint)]
    elif ckpt_path is not None:
        own += ["--ckpt_path", ckpt_path]
    started_by = "under the same torchrun, " if "TORCHELASTIC_RUN_ID" in os.environ else ""
    again = "To go on" if checkpoint is not None else "No checkpoint was written yet. To start again"
    return f"{again}: {started_by}{program()} {shlex.join(own)}"


def _take_ckpt_path(arguments: list[str]) -> str | None:
    value = None
    for place in range(len(arguments) - 1, -1, -1):
        option, equals, typed = arguments[place].partition("=")
        if option == "--ckpt_path":
            taken = arguments[place : place + (1 if equals else 2)]
            del arguments[place : place + len(taken)]
            value = value or (typed if equals else taken[-1])
    return value


def _short(path: Path) -> str:
    absolute = path.resolve()
    return os.path.relpath(absolute) if absolute.is_relative_to(Path.cwd().resolve()) else str(absolute)
