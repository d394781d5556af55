"""Pairs files in LFW's format."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from facelit.errors import FacelitError
from facelit.storage.images import USUAL_SUFFIXES, is_image
from facelit.storage.people import comparable, is_code, is_count
from facelit.storage.text import read_text
from facelit.storage.walking import is_folder, is_hidden

ImageKey = tuple[str, int]
"""A person's name and the number of one of their images, as a pairs file names an image."""


@dataclass(frozen=True)
class Pair:
    """One row of a pairs file."""

    first: ImageKey
    second: ImageKey
    is_same: bool
    fold: int


def read_pairs(
    path: str | os.PathLike[str], folds: Collection[int] | None = None, option: str = "pairs of data.verification"
) -> list[Pair]:
    """Reads a pairs file in LFW's format.

    The first line is `folds<TAB>n`, or `n` alone for one fold (View 1's lists). Each fold is n genuine rows
    `name i j`, then n impostor rows `name1 i name2 j`, separated by tabs or spaces (by tabs where a name has spaces in it); UTF-8,
    with or without a byte order mark; LF or CRLF line ends.

    Args:
        path: The file.
        folds: Only these folds, counted from 1.
        option: The option that named the file, for messages.

    Raises:
        FacelitError: The file is missing, empty or malformed (with the line number), pairs an image with itself, has an impostor
            pair of one person, or lacks a fold asked for.
    """
    path = Path(path)
    lines = read_text(path, "pairs file", option).splitlines()
    rows = [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]
    if not rows:
        raise FacelitError(f"{path}: the pairs file is empty (option {option}).")
    num_folds, per_kind = _read_header(path, rows[0][0], rows[0][1].split())
    expected = num_folds * 2 * per_kind
    pairs = []
    for position, (line_number, row) in enumerate(rows[1:]):
        if position >= expected:
            raise FacelitError(
                f"{path}, line {line_number}: more rows than the first line promises ({num_folds} fold(s) of"
                f" {per_kind} genuine and {per_kind} impostor pairs)."
            )
        fold, within = divmod(position, 2 * per_kind)
        pairs.append(_read_row(path, line_number, row, fold + 1, must_be_same=within < per_kind))
    if len(pairs) < expected:
        raise FacelitError(f"{path}: the first line promises {expected} pairs, the file has {len(pairs)}.")
    if folds is None:
        return pairs
    absent = sorted(fold for fold in folds if not 1 <= fold <= num_folds)
    if absent or not folds:
        raise FacelitError(f"{path}: has {num_folds} fold(s); option folds asks for {sorted(folds)}.")
    return [pair for pair in pairs if pair.fold in folds]


def _read_header(path: Path, line_number: int, fields: list[str]) -> tuple[int, int]:
    counts = [int(field) for field in fields if is_count(field)]
    if len(counts) != len(fields) or len(counts) > 2 or not all(counts):
        raise FacelitError(
            f"{path}, line {line_number}: expected the number of folds and of pairs per fold (as in LFW's `10 300`),"
            f" found {' '.join(fields)[:60]!r}. Each fold's genuine pairs `name i j` and impostor pairs `name1 i name2 j`"
            " follow, separated by tabs; bring other lists (CSV; CALFW's and CPLFW's `Ann_0001.jpg 1`) into this form."
        )
    return (counts[0], counts[1]) if len(counts) == 2 else (1, counts[0])


def _read_row(path: Path, line_number: int, row: str, fold: int, must_be_same: bool) -> Pair:
    kind, form, width = ("genuine", "name i j", 3) if must_be_same else ("impostor", "name1 i name2 j", 4)
    for fields in ([field.strip() for field in row.split("\t")], row.split()):
        if len(fields) == width and all(fields) and is_count(fields[1]) and is_count(fields[-1]):
            first, second = (fields[0], int(fields[1])), (fields[0 if must_be_same else 2], int(fields[-1]))
            for name, _ in (first, second):
                if "/" in name or name in (".", ".."):
                    raise FacelitError(
                        f"{path}, line {line_number}: {name[:80]!r} is not a folder's name: it leads elsewhere."
                    )
            if must_be_same and first == second:
                raise FacelitError(f"{path}, line {line_number}: the genuine pair {row[:80]!r} is one image twice.")
            is_one_person = first[0] == second[0] or (
                comparable(first[0]) == comparable(second[0]) and not is_code(first[0])
            )
            if not must_be_same and is_one_person:
                raise FacelitError(f"{path}, line {line_number}: the impostor pair {row[:80]!r} is of one person.")
            return Pair(first, second, must_be_same, fold)
    hint = "" if len(row.split()) <= width else " Where a name has spaces in it, separate the fields by tabs."
    raise FacelitError(f"{path}, line {line_number}: expected the {kind} pair `{form}`, found {row[:80]!r}.{hint}")


class PairImages:
    """The images that a pairs file names, in `root/<name>/<name>_0001.jpg`.

    The plain case costs a look or two at the disk. Where nothing is there, folder and file are looked for once more as
    `facelit.storage.people.comparable` compares names, with any number of zeros before the image's number, and with the suffix
    in any case.

    Args:
        root: The folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._folders: dict[str, list[str]] | None = None
        self._files: dict[str, dict[ImageKey, str]] = {}

    def find(self, key: ImageKey) -> str | None:
        """The path of an image; None where there is none.

        Raises:
            FacelitError: Several folders could be the person's, or a folder cannot be listed.
        """
        name, number = key
        stem = os.path.join(self.root, name, f"{name}_{number:04d}")
        for suffix in USUAL_SUFFIXES:
            if os.path.isfile(stem + suffix):
                return stem + suffix
        folder = self._folder_of(name)
        return None if folder is None else self._listed(folder).get((comparable(name), number))

    def nearest(self, key: ImageKey) -> str | None:
        """A file of the same person, to show beside an image that is not there; None where they have none."""
        folder = self._folder_of(key[0])
        return None if folder is None else next(filter(is_image, sorted(os.listdir(folder))), None)

    def _folder_of(self, name: str) -> str | None:
        if self._folders is None:
            self._folders = {}
            for entry in sorted(_entries(self.root), key=lambda entry: entry.name):
                if is_folder(entry) and not is_hidden(entry.name):
                    self._folders.setdefault(comparable(entry.name), []).append(entry.name)
        found = self._folders.get(comparable(name), [])
        if name in found:
            found = [name]
        if len(found) > 1:
            raise FacelitError(
                f"{self.root}: {found[0]!r} and {found[1]!r} could both be the {name!r} of the pairs file. Merge or rename them."
            )
        return os.path.join(self.root, found[0]) if found else None

    def _listed(self, folder: str) -> dict[ImageKey, str]:
        if folder not in self._files:
            numbered = self._files[folder] = {}
            # Reversed: of several files with one number, the one that sorts first counts.
            for entry in sorted(_entries(folder), key=lambda entry: entry.name, reverse=True):
                stem, separator, number = os.path.splitext(entry.name)[0].rpartition("_")
                if separator and number.isdecimal() and is_image(entry.name) and entry.is_file():
                    numbered[comparable(stem), int(number)] = entry.path
        return self._files[folder]


def _entries(folder: str | Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise FacelitError(f"{folder}: cannot list this folder ({error.strerror or error}).") from None
