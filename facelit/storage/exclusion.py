"""Lists of images and identities to leave out: `facelit check` writes them, `exclude_images` and `exclude_identities` read them.

UTF-8 text with one name a line: an identity's, or an image's `identity/file`. What follows a tab is for people to read; lines that
start with # are comments.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

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


class NamedRows(NamedTuple):
    """The images of a store that a list names.

    Attributes:
        rows: Their rows, ascending, int64.
        respelled: Pairs of a listed name and the image's own, where they differ in spelling.
        absent: Listed names that are not an image's, sorted.
    """

    rows: npt.NDArray[np.int64]
    respelled: list[tuple[str, str]]
    absent: list[str]


def rows_named(store: ImageStore, names: Collection[str]) -> NamedRows:
    """Finds the images that a list names.

    A name that is not an image's is taken for the one that `facelit.storage.people.comparable` calls the same, with backslashes as
    slashes.

    Raises:
        FacelitError: A name fits several images, and is none's exactly.
    """
    keys = np.array([_key(identity) for identity in store.identities], object)
    # Only images of listed identities are asked for their names: there may be millions of others.
    likely = np.flatnonzero(_are_among(keys, names)[store.labels])
    called = [store.name(int(row)) for row in likely]
    is_named = np.array([name in names for name in called], np.bool_)
    inexact = sorted(set(names).difference(called))
    if not inexact:
        return NamedRows(likely[is_named], [], [])
    places: dict[str, list[int]] = {}
    for place in np.flatnonzero(~is_named & _are_among(keys, inexact)[store.labels[likely]]).tolist():
        places.setdefault(_image_key(called[place]), []).append(place)
    respelled, absent = [], []
    for name in inexact:
        fitting = places.get(_image_key(_slashed(name)), [])
        if len(fitting) > 1:
            ones = " or ".join(called[place] for place in fitting[:3])
            raise FacelitError(f"{name[:200]} (option exclude_images) may be {ones}: list the exact name.")
        if fitting:
            is_named[fitting] = True
            respelled.append((name, called[fitting[0]]))
        else:
            absent.append(name)
    return NamedRows(likely[is_named], respelled, absent)


def _are_among(keys: npt.NDArray[np.object_], names: Iterable[str]) -> npt.NDArray[np.bool_]:
    """Which identities, by their keys, are those of some images."""
    listed = {_key(name.rpartition("/")[0]) for name in map(_slashed, names)}
    return np.array([key in listed for key in keys], np.bool_)


def _slashed(name: str) -> str:
    return name.replace("\\", "/").removeprefix("./")


def _key(identity: str) -> str:
    """Folder by folder: each may have spaces at its ends."""
    return "/".join(map(comparable, identity.split("/")))


def _image_key(name: str) -> str:
    """As for identities, except that an underscore at either end of a file's name counts: `_1.jpg` is not `1.jpg`."""
    identity, _, file = name.rpartition("/")
    return f"{_key(identity)}/{comparable(f'/{file}/')}"
