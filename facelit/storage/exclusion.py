"""Lists of images and identities to leave out: `facelit check` writes them, `exclude_images` and `exclude_identities` read them.

UTF-8 text with one name a line: an identity's, or an image's `identity/file`. What follows a tab is for people to read; lines that
start with # are comments.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from facelit.errors import FacelitError
from facelit.storage.base import ImageStore
from facelit.storage.files import replace_file
from facelit.storage.text import read_text


def write_exclusion(path: Path, heading: str, rows: Iterable[Sequence[str]]) -> list[str]:
    """Writes a list.

    Args:
        path: Replaced in one move.
        heading: A comment for the first line.
        rows: For each line the name, and what people may want to know about it.

    Returns:
        Names that a line cannot hold, and which are left out: with tabs or line breaks, spaces at an end, a # at the start, or
        bytes that are not UTF-8.

    Raises:
        FacelitError: The file cannot be written.
    """
    left_out: list[str] = []
    with replace_file(path) as file:
        file.write(f"# {heading}\n".encode("utf-8", "replace"))
        for name, *remarks in rows:
            if _fits_a_line(name):
                file.write(
                    "\t".join([name, *(" ".join(text.split()) for text in remarks)]).encode("utf-8", "replace") + b"\n"
                )
            else:
                left_out.append(name)
    return left_out


def _fits_a_line(name: str) -> bool:
    has_no_text = any("\ud800" <= character <= "\udfff" for character in name)
    return (
        not has_no_text
        and name == name.strip()
        and name.splitlines() == [name]
        and "\t" not in name
        and name[:1] != "#"
    )


def read_excluded_images(path: str | os.PathLike[str]) -> frozenset[str]:
    """Reads the names of images; those of a list made on Windows may have backslashes.

    Raises:
        FacelitError: The file is missing, empty, or not text.
    """
    lines = read_text(path, "list of images", "exclude_images").splitlines()
    listed = (line.split("\t")[0].strip() for line in lines if not line.startswith("#"))
    # With a slash in it, a backslash is part of a file's name.
    named = (name if "/" in name else name.replace("\\", "/") for name in listed)
    names = frozenset(name.removeprefix("./") for name in named if name)
    if not names:
        raise FacelitError(f"{os.fspath(path)}: the list of images is empty (option exclude_images).")
    return names


def rows_named(store: ImageStore, names: Collection[str]) -> npt.NDArray[np.int64]:
    """Rows of the images that are named, ascending, int64."""
    folders = {name.rpartition("/")[0] for name in names}
    # Only images of these identities are asked for their names: there may be millions of others.
    concerned = np.array([identity in folders for identity in store.identities], np.bool_)
    likely = np.flatnonzero(concerned[store.labels])
    return likely[np.array([store.name(int(row)) in names for row in likely], np.bool_)]
