"""What an alignment found: a table, lists of photos, landmarks, and a picture of examples."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from rich.console import Console
from rich.table import Table
from rich.text import Text

from facelit.align.detection import Faces
from facelit.align.journal import FOLDER, Outcome, replace_bytes
from facelit.align.landmark_file import HEADER, LANDMARKS, Lines, parse_lines
from facelit.align.photos import Photo, read_photo, shrink
from facelit.errors import FacelitError
from facelit.pictures.contact_sheet import TILES
from facelit.pictures.findings import Finding, Item, Picture
from facelit.storage.base import ImageStore
from facelit.storage.images import read_file

SHEET = "align-contact-sheet.png"
"""The picture's name, in the hidden folder of the crops."""

_THUMBNAIL, _FRAME = 224, "#D55E00"
_WORTH_A_WARNING = 0.1
"""Share of all crops' pixels that lies beyond the photos, from which the table says so."""
_MUCH = 0.25
"""Share of a photo's crops that lies beyond its edge, from which the photo is listed."""
_EXAMPLES = 3
_KINDS: tuple[tuple[str, str, str, Callable[[Outcome], bool]], ...] = (
    ("aligned", "Aligned", "The photo, and its crop.", lambda o: bool(o.crops)),
    (
        "several-faces",
        "Several faces",
        "Is the crop of the right one? See option which.",
        lambda o: o.faces > 1,
    ),
    (
        "beyond-the-edge",
        "Beyond the edge",
        "A quarter of the crop or more lies beyond the photo's edge. See option border.",
        lambda o: o.beyond >= _MUCH,
    ),
    (
        "no-face",
        "No face",
        "No crop. See options min_face and max_side, or give landmarks.",
        lambda o: not o.crops and not o.reason,
    ),
    ("unreadable", "Unreadable", "Broken, not an image, or absurdly large.", lambda o: bool(o.reason)),
)
"""Name of the list, title, what it means, and which photos are in it. Those of the second and third list are in the first, too."""


def sort_outcomes(outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    """The photos of each list, by its name: aligned, several-faces, beyond-the-edge, no-face, unreadable."""
    return {name: [outcome for outcome in outcomes if holds(outcome)] for name, _, _, holds in _KINDS}


def print_table(console: Console, outcomes: Sequence[Outcome]) -> None:
    """Prints how many photos each list has, with the first names."""
    table = Table("", box=None, pad_edge=False, header_style="bold")
    table.add_column("Photos", justify="right")
    table.add_column("For example", overflow="fold")
    for (name, title, _, _), found in zip(_KINDS, sort_outcomes(outcomes).values(), strict=True):
        examples = (
            [] if name == "aligned" else [_line(name, outcome).replace("\t", ": ") for outcome in found[:_EXAMPLES]]
        )
        more = [f"and {len(found) - _EXAMPLES:,} more"] if examples and len(found) > _EXAMPLES else []
        style = "" if found else "dim"
        table.add_row(title, f"{len(found):,}", Text(_printable("\n".join(examples + more))), style=style)
    console.print(table)


def border_warning(outcomes: Sequence[Outcome]) -> str:
    """A line about crops that are black to a good part; empty if they are not. Made for `border black`."""
    crops = sum(len(outcome.crops) for outcome in outcomes)
    beyond = sum(outcome.beyond * len(outcome.crops) for outcome in outcomes) / max(1, crops)
    if beyond < _WORTH_A_WARNING:
        return ""
    return (
        f"{100 * beyond:.0f} % of all pixels of the crops lie beyond their photos and are black. `--border replicate --recrop`"
        " repeats the photos' edges there instead, without looking for faces again."
    )


def write_landmarks(target: Path, outcomes: Sequence[Outcome]) -> int:
    """Writes `align-landmarks.tsv`: a face a line, those without a crop too.

    Returns:
        How many photos it leaves out because their names have a tab or a line break in them.

    Raises:
        FacelitError: It cannot be written.
    """
    written = [outcome for outcome in outcomes if not set("\t\n\r").intersection(outcome.photo)]
    lines = [HEADER, *(f"{outcome.photo}\t{face}" for outcome in written for face in outcome.found), ""]
    _replace(target, LANDMARKS, "\n".join(lines).encode("utf-8", "surrogateescape"))
    return len(outcomes) - len(written)


def write_lists(target: Path, outcomes: Sequence[Outcome]) -> None:
    """Writes `align-<list>.txt` for each list: a photo a line.

    Its path relative to SRC is followed by a tab and its crops, the number of its faces, the share of its crops that lies beyond
    the photo, or why it cannot be read.

    Raises:
        FacelitError: A file cannot be written.
    """
    for name, found in sort_outcomes(outcomes).items():
        text = "".join(f"{_line(name, outcome)}\n" for outcome in found)
        _replace(target, f"align-{name}.txt", text.encode("utf-8", "surrogateescape"))


def write_sheet(source: Path, target: Path, outcomes: Sequence[Outcome], title: str, images: int = TILES) -> None:
    """Writes a picture with photos from each list and, beside each, its crops; a photo with several faces shows their boxes.

    Args:
        source: The folder of photos.
        target: The folder of crops.
        outcomes: What became of each photo.
        title: The title of the sheet.
        images: The most photos and crops from each list.

    Raises:
        FacelitError: It cannot be written.
    """
    from facelit.pictures.contact_sheet import contact_sheet, save_png  # matplotlib: not for --help

    lists = sort_outcomes(outcomes)
    findings = [_finding(source, target, kind[:3], lists[kind[0]]) for kind in _KINDS]
    file = io.BytesIO()
    save_png(contact_sheet(findings, title, images), file)
    _replace(target, SHEET, file.getvalue())


class _Pictures(ImageStore):
    """Photos, or their crops, as a contact sheet wants them.

    Args:
        folder: Where they lie.
        names: Paths relative to it.
        are_photos: Whether they are photos.
        found: The faces to frame, in a single photo.
    """

    def __init__(self, folder: Path, names: list[str], are_photos: bool, found: Lines = ()) -> None:
        self.path = folder
        self.identities: Sequence[str] = ["unknown"]
        self.labels = np.zeros(len(names), np.int32)
        self._names = names
        self._are_photos = are_photos
        self._found = found

    def encoded(self, row: int) -> bytes:
        """An image file's bytes; a photo is small, and upright."""
        if not self._are_photos:
            return read_file(self.place(row))
        photo = read_photo(self.place(row))
        small = shrink(photo, _THUMBNAIL)
        file = io.BytesIO()
        Image.fromarray(_framed(small, parse_lines(self._found).resized(photo, small))).save(file, "PNG")
        return file.getvalue()

    def name(self, row: int) -> str:
        """Path relative to the folder."""
        return self._names[row]

    def place(self, row: int) -> str:
        """The file's path."""
        return os.path.join(self.path, self._names[row])


def _framed(photo: Photo, faces: Faces) -> Photo:
    """A copy of a photo with a frame around each face."""
    picture = Image.fromarray(photo)
    draw = ImageDraw.Draw(picture)
    for box in faces.boxes:
        (left, right), (top, bottom) = sorted(box[::2].tolist()), sorted(box[1::2].tolist())
        draw.rectangle((left, top, right, bottom), outline=_FRAME, width=2)
    return np.asarray(picture)


def _finding(source: Path, target: Path, kind: tuple[str, str, str], outcomes: list[Outcome]) -> Finding:
    name, title, explanation = kind

    def item(number: int) -> Item:
        outcome = outcomes[number]
        note = f"{outcome.faces} faces" if outcome.faces > 1 else ""
        framed = outcome.found if outcome.faces > 1 else ()
        photo = Picture(_Pictures(source, [outcome.photo], are_photos=True, found=framed), 0, note)
        crops = _Pictures(target, list(outcome.crops), are_photos=False)
        return Item({}, "", [photo, *(Picture(crops, row, "crop") for row in range(len(outcome.crops)))])

    identities = len({os.path.dirname(outcome.photo) for outcome in outcomes})
    return Finding(name, title, explanation, len(outcomes), identities, len(outcomes), item)


def _line(name: str, outcome: Outcome) -> str:
    detail = {
        "aligned": " ".join(outcome.crops),
        "several-faces": f"{outcome.faces} faces",
        "beyond-the-edge": f"{100 * outcome.beyond:.0f} %",
        "no-face": "",
        "unreadable": outcome.reason,
    }
    return f"{outcome.photo}\t{detail[name]}".rstrip()


def _printable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def _replace(target: Path, name: str, data: bytes) -> None:
    path = target / FOLDER / name
    try:
        replace_bytes(target, path, data)
    except OSError as error:
        raise FacelitError(f"{path}: cannot write this file ({error.strerror or error}).") from None
