"""Faces in a TSV or CSV file: landmarks that somebody else has found, or that `facelit align` found earlier."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from facelit.align.detection import Faces
from facelit.align.template import estimate_similarity
from facelit.errors import FacelitError
from facelit.storage.text import read_text

LANDMARKS = "align-landmarks.tsv"
"""All faces that `facelit align` has found, in the form that `--landmarks` reads; in the hidden folder of the crops."""

Lines = tuple[str, ...]
"""The faces of a photo as text: for each the ten landmark coordinates, the box and the score, separated by tabs."""

HEADER = "\t".join(
    (
        "image",
        *(
            f"{point}_{axis}"
            for point in ("left_eye", "right_eye", "nose", "mouth_left", "mouth_right")
            for axis in "xy"
        ),
        *("box_x1", "box_y1", "box_x2", "box_y2", "score"),
    )
)
"""First line of a file that `facelit align` writes."""

_POINTS, _WHOLE = 10, 15
_FORM = (
    "Each line is a photo's path relative to SRC and ten numbers, separated by tabs or commas: x and y of the left eye, the right"
    " eye, the nose, the left and the right mouth corner; then, if known, the box (x1, y1, x2, y2) and the score"
)


def face_lines(faces: Faces) -> Lines:
    """Faces as text, coordinates rounded to 1/100 pixel."""
    return tuple(
        "\t".join([*(f"{value:.2f}" for value in (*points.ravel(), *box)), f"{score:.4f}"])
        for points, box, score in zip(faces.landmarks, faces.boxes, faces.scores, strict=True)
    )


def parse_lines(lines: Sequence[str]) -> Faces:
    """The faces that `face_lines` wrote."""
    numbers = np.array([line.split("\t") for line in lines], np.float32).reshape(-1, _WHOLE)
    return Faces(numbers[:, _POINTS:-1], numbers[:, -1], numbers[:, :_POINTS].reshape(-1, 5, 2))


def read_landmarks(path: Path | str) -> dict[str, Lines]:
    """Reads a file of landmarks; a first line without numbers is a header.

    Args:
        path: One face a line: the photo's path relative to the folder of photos, then x and y, in pixels of the photo as it is
            looked at (EXIF rotation applied), of the left eye, the right eye, the nose, the left and the right mouth corner,
            left and right as the viewer sees them. The face's box (x1, y1, x2, y2) and score may follow; a photo may have
            several lines if they do. Separated by tabs, or else by commas.

    Returns:
        Faces by the photo's path, with forward slashes; see `parse_lines`. A face without a box gets the rectangle around its
        landmarks and the score 1.

    Raises:
        FacelitError: The file cannot be read, holds something else, or names a photo twice; the message has the line's number.
    """
    text = read_text(path, "landmarks file", "landmarks", errors="surrogateescape")
    found: dict[str, Lines] = {}
    for line, fields in _rows(text):
        place = f"{path}, line {line}"
        if line == 1 and len(fields) in (1 + _POINTS, 1 + _WHOLE) and not any(map(_is_number, fields[1:])):
            continue
        name, face = _parse(place, fields)
        if name in found and len(fields) == 1 + _POINTS:
            raise FacelitError(
                f"{place}: {name} has an earlier line already. Keep one; several faces in a photo need boxes and scores."
            )
        found[name] = (*found.get(name, ()), face)
    if not found:
        raise FacelitError(f"{path} (option landmarks): no landmarks here. {_FORM}.")
    return found


def _rows(text: str) -> Iterator[tuple[int, list[str]]]:
    """The lines that are not blank, with their numbers."""
    lines = text.split("\n")
    is_tsv = "\t" in lines[0]
    for number, line in enumerate(lines, start=1):
        if line.strip():
            # A quotation mark in a TSV is a letter like any other.
            yield number, line.split("\t") if is_tsv else next(csv.reader([line], skipinitialspace=True))


def _parse(place: str, fields: list[str]) -> tuple[str, str]:
    numbers = fields[1:]
    if len(numbers) not in (_POINTS, _WHOLE):
        raise FacelitError(f"{place}: {len(fields)} fields instead of {1 + _POINTS} or {1 + _WHOLE}. {_FORM}.")
    for field in numbers:
        if not _is_number(field):
            raise FacelitError(f"{place}: {field!r} is not a number. {_FORM}.")
    points = np.array(numbers[:_POINTS], np.float64).reshape(5, 2)
    try:
        estimate_similarity(points)
    except FacelitError as error:
        raise FacelitError(f"{place}: {error}") from None
    rest = np.array(numbers[_POINTS:], np.float64) if len(numbers) == _WHOLE else [*points.min(0), *points.max(0), 1.0]
    box, score = np.array([rest[:4]], np.float32), np.array([rest[4]], np.float32)
    (face,) = face_lines(Faces(box, score, points[None].astype(np.float32)))
    return fields[0].strip().replace("\\", "/").removeprefix("./"), face


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
