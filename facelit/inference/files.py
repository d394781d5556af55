"""Writing a file whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from facelit.errors import FacelitError


@contextmanager
def replace_file(path: Path) -> Iterator[BinaryIO]:
    """Writes beside `path`, then moves the file into its place: nobody sees half of it.

    Yields:
        The file, open for writing.

    Raises:
        FacelitError: It cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
        os.replace(temporary, path)
    except OSError as error:
        raise FacelitError(f"{path}: cannot write this file ({error.strerror or error}).") from None
    finally:
        temporary.unlink(missing_ok=True)
