"""Pairs files in LFW's format."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from facelit.errors import FacelitError

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
    `name i j`, then n impostor rows `name1 i name2 j`, separated by tabs or spaces; LF or CRLF line ends.

    Args:
        path: The file.
        folds: Only these folds, counted from 1.
        option: The option that named the file, for messages.

    Raises:
        FacelitError: The file is missing, empty or malformed (with the line number), or lacks a fold asked for.
    """
    path = Path(path)
    if not path.is_file():
        raise FacelitError(f"pairs file not found: {path} (option {option}).")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise FacelitError(f"{path}: this is not a text file; a pairs file is (option {option}).") from None
    rows = [(number, line.split()) for number, line in enumerate(lines, start=1) if line.strip()]
    if not rows:
        raise FacelitError(f"{path}: the pairs file is empty (option {option}).")
    num_folds, per_kind = _read_header(path, *rows[0])
    expected = num_folds * 2 * per_kind
    pairs = []
    for position, (line_number, fields) in enumerate(rows[1:]):
        if position >= expected:
            raise FacelitError(
                f"{path}, line {line_number}: more rows than the first line promises ({num_folds} fold(s) of"
                f" {per_kind} genuine and {per_kind} impostor pairs)."
            )
        fold, within = divmod(position, 2 * per_kind)
        pairs.append(_read_row(path, line_number, fields, fold + 1, must_be_same=within < per_kind))
    if len(pairs) < expected:
        raise FacelitError(f"{path}: the first line promises {expected} pairs, the file has {len(pairs)}.")
    if folds is None:
        return pairs
    absent = sorted(fold for fold in folds if not 1 <= fold <= num_folds)
    if absent or not folds:
        raise FacelitError(f"{path}: has {num_folds} fold(s); option folds asks for {sorted(folds)}.")
    return [pair for pair in pairs if pair.fold in folds]


def _read_header(path: Path, line_number: int, fields: list[str]) -> tuple[int, int]:
    counts = [int(field) for field in fields if field.isdigit()]
    if len(counts) != len(fields) or len(counts) > 2 or not all(counts):
        raise FacelitError(
            f"{path}, line {line_number}: expected the number of folds and of pairs per fold (as in LFW's `10 300`),"
            f" found {' '.join(fields)[:60]!r}."
        )
    return (counts[0], counts[1]) if len(counts) == 2 else (1, counts[0])


def _read_row(path: Path, line_number: int, fields: list[str], fold: int, must_be_same: bool) -> Pair:
    kind, form, width = ("genuine", "name i j", 3) if must_be_same else ("impostor", "name1 i name2 j", 4)
    numbers = [fields[position] for position in (1, width - 1) if position < len(fields)]
    if len(fields) != width or not all(number.isdigit() for number in numbers):
        raise FacelitError(
            f"{path}, line {line_number}: expected the {kind} pair `{form}`, found {' '.join(fields)[:80]!r}."
        )
    first, second = (fields[0], int(fields[1])), (fields[width - 2 if width == 4 else 0], int(fields[-1]))
    return Pair(first, second, must_be_same, fold)


def find_image(root: Path, key: ImageKey) -> str | None:
    """The path of an image that a pairs file names, `root/<name>/<name>_0001.jpg`; None where there is none."""
    name, number = key
    stem = os.path.join(root, name, f"{name}_{number:04d}")
    for suffix in (".jpg", ".jpeg", ".png", ".webp", ".JPG", ".JPEG", ".PNG", ".WEBP"):
        if os.path.isfile(stem + suffix):
            return stem + suffix
    return None
