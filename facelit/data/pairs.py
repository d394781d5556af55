"""Verification pairs from a pairs file in LFW's format, over a folder of crops."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from facelit.data.sources import VerificationSource
from facelit.errors import FacelitError
from facelit.storage.images import Crop, read_crop

ImageKey = tuple[str, int]
"""A person's name and the number of one of their images, as a pairs file names an image."""


@dataclass(frozen=True)
class Pair:
    """One row of a pairs file."""

    first: ImageKey
    second: ImageKey
    is_same: bool
    fold: int


class PairsFolder(VerificationSource):
    """LFW, or anything laid out like it: `root/<name>/<name>_0001.jpg` and a pairs file.

    Args:
        root: Folder of crops. `.jpg`, `.jpeg`, `.png` and `.webp` are looked for, in this order.
        pairs: The pairs file; see `read_pairs`.
        folds: Only the pairs of these folds, counted from 1; all where not given.
        allow_missing: Leave out pairs whose images are absent (their count is logged) instead of stopping.
        resize: Resize images of another size to 112x112 instead of refusing them.

    Raises:
        FacelitError: The folder or the pairs file is missing or malformed, or images are absent.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        pairs: str | os.PathLike[str],
        folds: list[int] | None = None,
        allow_missing: bool = False,
        resize: bool = False,
    ) -> None:
        self.root = Path(root)
        self.resize = resize
        if not self.root.is_dir():
            raise FacelitError(
                f"verification folder not found: {self.root} (option root of data.verification). Point it at the aligned"
                " crops, or train without verification: --data.verification null"
            )
        listed = read_pairs(pairs, folds)
        paths = {key: _find_image(self.root, key) for pair in listed for key in (pair.first, pair.second)}
        missing = sorted(key for key, path in paths.items() if path is None)
        if missing and not allow_missing:
            first_names = ", ".join(f"{name}_{number:04d}" for name, number in missing[:3])
            raise FacelitError(
                f"{pairs}: {len(missing)} of its {len(paths)} images are absent below {self.root} ({first_names}...)."
                " Check the folder, or leave those pairs out with `allow_missing: true`."
            )
        if len({pair.fold for pair in listed}) < 2:
            raise FacelitError(
                f"{pairs}: verification needs at least two folds, as each one's threshold is chosen on the others; only one"
                " is listed or asked for (option folds of data.verification)."
            )
        usable = [pair for pair in listed if paths[pair.first] and paths[pair.second]]
        _check_folds(Path(pairs), listed, usable)
        keys = sorted({key for pair in usable for key in (pair.first, pair.second)})
        number = {key: position for position, key in enumerate(keys)}
        super().__init__(
            names=[os.fspath(paths[key]) for key in keys],  # type: ignore[arg-type]  # usable ones have a path
            first=np.array([number[pair.first] for pair in usable], dtype=np.int64),
            second=np.array([number[pair.second] for pair in usable], dtype=np.int64),
            is_same=np.array([pair.is_same for pair in usable], dtype=np.bool_),
            folds=np.array([pair.fold for pair in usable], dtype=np.int64),
            num_missing_pairs=len(listed) - len(usable),
        )

    def image(self, number: int) -> Crop:
        """Reads crop `number`, uint8 RGB (112, 112, 3)."""
        return read_crop(self.names[number], self.resize)


def read_pairs(path: str | os.PathLike[str], folds: Collection[int] | None = None) -> list[Pair]:
    """Reads a pairs file in LFW's format.

    The first line is `folds<TAB>n`, or `n` alone for one fold (View 1's lists). Each fold is n genuine rows
    `name i j`, then n impostor rows `name1 i name2 j`, separated by tabs or spaces; LF or CRLF line ends.

    Args:
        path: The file.
        folds: Only these folds, counted from 1.

    Raises:
        FacelitError: The file is missing, empty or malformed (with the line number), or lacks a fold asked for.
    """
    path = Path(path)
    if not path.is_file():
        raise FacelitError(f"pairs file not found: {path} (option pairs of data.verification).")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise FacelitError(f"{path}: this is not a text file; a pairs file is (option pairs).") from None
    rows = [(number, line.split()) for number, line in enumerate(lines, start=1) if line.strip()]
    if not rows:
        raise FacelitError(f"{path}: the pairs file is empty (option pairs of data.verification).")
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


def _find_image(root: Path, key: ImageKey) -> str | None:
    name, number = key
    stem = os.path.join(root, name, f"{name}_{number:04d}")
    for suffix in (".jpg", ".jpeg", ".png", ".webp", ".JPG", ".JPEG", ".PNG", ".WEBP"):
        if os.path.isfile(stem + suffix):
            return stem + suffix
    return None


def _check_folds(path: Path, listed: list[Pair], usable: list[Pair]) -> None:
    """Leaving pairs out must not leave a fold empty or one-sided: its figures would mean nothing."""
    kinds = {(pair.fold, pair.is_same) for pair in usable}
    for fold in sorted({pair.fold for pair in listed}):
        if (fold, True) not in kinds or (fold, False) not in kinds:
            raise FacelitError(
                f"{path}: with the absent images left out, fold {fold} has no genuine or no impostor pair."
                " Check the folder of crops (option root)."
            )
