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
from facelit.storage.people import comparable
from facelit.storage.text import read_text, unquoted


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
    """Reads the names of images.

    Raises:
        FacelitError: The file is missing, empty, or not text.
    """
    lines = read_text(path, "list of images", "exclude_images").splitlines()
    fields = (unquoted(line.split("\t")[0]) for line in lines if not line.startswith("#"))
    names = frozenset(name for field in fields if (name := field.removeprefix("./")))
    if not names:
        raise FacelitError(f"{os.fspath(path)}: the list of images is empty (option exclude_images).")
    return names


def rows_named(store: ImageStore, names: Collection[str]) -> tuple[npt.NDArray[np.int64], list[str]]:
    """Finds the images that a list names.

    A name that is not an image's is taken for those that `facelit.storage.people.comparable` calls the same, with backslashes as slashes.

    Returns:
        Their rows, ascending, int64; and the names that are not an image's, sorted.
    """
    folders = {_key(name).rpartition("/")[0] for name in names}
    # Only images of these identities are asked for their names: there may be millions of others.
    concerned = np.array([_key(identity) in folders for identity in store.identities], np.bool_)
    likely = np.flatnonzero(concerned[store.labels])
    called = [store.name(int(row)) for row in likely]
    inexact = set(names).difference(called)
    keys = set(map(_key, inexact))
    found = [name in names or _key(name) in keys for name in called]
    known = set(map(_key, called))
    return likely[np.array(found, np.bool_)], sorted(name for name in inexact if _key(name) not in known)


def _key(name: str) -> str:
    """Part by part, as an end of a name may have spaces."""
    return "/".join(map(comparable, name.replace("\\", "/").removeprefix("./").split("/")))
