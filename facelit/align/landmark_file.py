"""Landmarks that somebody else has found, in a TSV or CSV file."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from facelit.align.template import estimate_similarity
from facelit.errors import FacelitError

Landmarks = npt.NDArray[np.float64]
"""Five points in a photo's pixels, float64 (5, 2), in the order of `Faces`."""

_FORM = "Each line is a photo's path relative to SRC and ten numbers, separated by tabs or commas: x and y of the left eye, the right eye, the nose, the left and the right mouth corner"


def read_landmarks(path: Path | str) -> dict[str, Landmarks]:
    """Reads a file of landmarks; a first line without numbers is a header.

    Args:
        path: One photo a line: its path relative to the folder of photos, then x and y, in pixels of the photo as it is looked
            at (EXIF rotation applied), of the left eye, the right eye, the nose, the left and the right mouth corner, left
            and right as the viewer sees them. Separated by tabs, or else by commas.

    Returns:
        Landmarks by the photo's path, with forward slashes.

    Raises:
        FacelitError: The file is absent, is no such file, or names a photo twice; the message has the line's number.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise FacelitError(f"{path} (option landmarks): cannot read this file ({error.strerror or error}).") from None
    found: dict[str, Landmarks] = {}
    for line, fields in _rows(text):
        place = f"{path}, line {line}"
        if not found and line == 1 and len(fields) == 11 and all(_number(field) is None for field in fields[1:]):
            continue
        name, landmarks = _parse(place, fields)
        if name in found:
            raise FacelitError(f"{place}: {name} stands in an earlier line already. Keep one.")
        found[name] = landmarks
    if not found:
        raise FacelitError(f"{path} (option landmarks): no landmarks here. {_FORM}.")
    return found


def _rows(text: str) -> Iterator[tuple[int, list[str]]]:
    """Lines that are not blank, by their number."""
    lines = text.splitlines()
    is_tsv = any("\t" in line for line in lines[:1])
    for number, line in enumerate(lines, start=1):
        if line.strip():
            # A quotation mark in a TSV is a letter like any other.
            yield number, line.split("\t") if is_tsv else next(csv.reader([line], skipinitialspace=True))


def _parse(place: str, fields: list[str]) -> tuple[str, Landmarks]:
    if len(fields) != 11:
        raise FacelitError(f"{place}: {len(fields)} fields instead of 11. {_FORM}.")
    numbers = [_number(field) for field in fields[1:]]
    for field, number in zip(fields[1:], numbers, strict=True):
        if number is None:
            raise FacelitError(f"{place}: {field!r} is not a number. {_FORM}.")
    landmarks = np.array(numbers, np.float64).reshape(5, 2)
    try:
        estimate_similarity(landmarks)
    except FacelitError as error:
        raise FacelitError(f"{place}: {error}") from None
    return fields[0].strip().replace("\\", "/").removeprefix("./"), landmarks


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
