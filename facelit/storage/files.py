"""Writing a file whole or not at all."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from facelit.errors import FacelitError


@contextmanager
def replacing(path: Path, staging: Path | None = None) -> Iterator[Path]:
    """Yields a temporary path; what was written there replaces `path` in one move, unless the block raised.

    A device or a pipe (`/dev/null`, `/dev/stdout`) stays what it is: it is written to.

    Args:
        path: The file to replace, or to create.
        staging: Where the temporary file goes, on the same file system; by default beside `path`.

    Raises:
        OSError: The file cannot be moved into place; the block's own errors pass through.
    """
    is_device = _is_device(path)
    temporary = temporary_path(path, Path(tempfile.gettempdir()) if is_device else staging)
    try:
        yield temporary
        if is_device:
            with temporary.open("rb") as source, path.open("wb") as device:
                shutil.copyfileobj(source, device)
        else:
            os.replace(temporary, path)
    finally:
        with suppress(OSError):  # usually it has been moved
            temporary.unlink()


@contextmanager
def replace_file(path: Path) -> Iterator[BinaryIO]:
    """Yields a file to write; it replaces `path` in one move, unless the block raised.

    Raises:
        FacelitError: It cannot be written.
    """
    try:
        with replacing(path) as temporary, temporary.open("wb") as file:
            yield file
    except OSError as error:
        raise cannot_write(path, error) from None


def check_writable(path: Path, option: str) -> None:
    """Creates and removes the temporary file of `replacing`, before long work rather than after it.

    Args:
        path: The file to be written later.
        option: The command-line option that names it.

    Raises:
        FacelitError: It cannot be written.
    """
    if _is_device(path) and os.access(path, os.W_OK):
        return
    temporary = temporary_path(path)
    try:
        with suppress(FileNotFoundError):
            path.lstat()  # refuses a name that the temporary file's shorter one would hide
        temporary.touch()
        temporary.unlink()
    except OSError as error:
        raise cannot_write(path, error, f" Name another one with --{option} FILE.") from None


def _is_device(path: Path) -> bool:
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def temporary_path(path: Path, staging: Path | None = None) -> Path:
    """A hidden name for this process's unfinished version of a file."""
    return (staging or path.parent) / f".{path.name[-80:]}.{os.getpid()}.tmp"


def cannot_write(path: Path, error: OSError, way_out: str = "") -> FacelitError:
    """The error for a file that cannot be written."""
    return FacelitError(f"{path}: cannot write this file ({error.strerror or error}).{way_out}")
