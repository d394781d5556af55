"""Draws the findings of `facelit check` or `facelit align`: a row of faces for each kind."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import IO, TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from facelit.errors import FacelitError
from facelit.pictures.findings import Finding, Item, Picture
from facelit.storage.images import BadImageError, read_image

if TYPE_CHECKING:  # this import takes 0.2 s, to be spared a run that draws nothing
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TILES = 8
"""The most images in a row."""
MOST_IMAGES = 200
"""The most images of a finding; ten such findings still make a picture that other programs can open."""

# Lengths are in units of which a crop is 112 wide; the picture has _SCALE pixels to the unit.
_TILE, _GAP, _GROUP_GAP, _MARGIN = 112, 10, 20, 24
_HEADING, _CAPTION, _SPACE = 44, 38, 22
_WIDTH = 2 * _MARGIN + TILES * _TILE + (TILES - 1) * _GROUP_GAP
_SCALE = 1.5
_LETTERS = 23
"""The number of letters that fit below a tile."""
_FRAME = "#D55E00"


class _Shown(NamedTuple):
    """The pictures of an item that there is room for, and the number of the others."""

    pictures: list[Picture]
    left_out: int


def check_images(images: int) -> None:
    """Checks the option `sheet_images`, the number of images per finding.

    Raises:
        FacelitError: It is below 1, or more than fit into a picture.
    """
    if not 1 <= images <= MOST_IMAGES:
        raise FacelitError(f"option sheet_images: 1 to {MOST_IMAGES}, not {images}.")


def contact_sheet(findings: Sequence[Finding], title: str, images: int = TILES) -> Figure:
    """Draws findings, with examples of each kind evenly spread over all of them, in rows of eight images.

    Args:
        findings: The findings to draw; empty ones are omitted.
        title: The title of the sheet.
        images: The most images of each kind.

    Returns:
        A figure; images of one item (duplicates, say) are side by side in a frame.
    """
    from matplotlib.figure import Figure

    found = [(finding, in_rows(choose(finding, images))) for finding in findings if finding.count]
    heights = [
        _HEADING + max(1, len(rows)) * (_TILE + _CAPTION) + (max(1, len(rows)) - 1) * _GAP + _SPACE for _, rows in found
    ]
    height = 3 * _MARGIN + (sum(heights) if found else _HEADING + _TILE + _CAPTION + _SPACE)
    figure = Figure(figsize=(_WIDTH / 100, height / 100), dpi=100 * _SCALE, facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    _write(axes, _MARGIN, _MARGIN, title, 12, weight="bold")
    if not found:
        _write(axes, _MARGIN, 3 * _MARGIN, "Nothing was found.", 10)
    top = 2.6 * _MARGIN
    for (finding, rows), taken in zip(found, heights, strict=True):
        _draw_finding(axes, finding, rows, top)
        top += taken
    axes.set(xlim=(0, _WIDTH), ylim=(height, 0), aspect="auto")
    return figure


def save_png(figure: Figure, file: str | IO[bytes]) -> None:
    """Writes a picture as PNG, without a warning for each letter that the font lacks."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(file, format="png")


def choose(finding: Finding, images: int = TILES) -> list[_Shown]:
    """Chooses items, evenly spread over all, and the pictures to show of each (a row at most).

    Each item gets two places (one if its kind has a single picture); places left over go to the items with more.
    """
    per_item = min(2, max(1, len(finding.item(0).pictures)))
    count = min(finding.count, max(1, images // per_item))
    items = [finding.item(int(number)) for number in np.linspace(0, finding.count - 1, count).round()]
    items = [item for item in items if item.pictures]
    spare = images - sum(min(per_item, len(item.pictures)) for item in items)
    shown = []
    for item in items:
        more = max(0, min(spare, TILES - per_item, len(item.pictures) - per_item))
        spare -= more
        shown.append(_cut(item, per_item + more))
    return shown


def _cut(item: Item, places: int) -> _Shown:
    return _Shown(item.pictures[:places], max(0, len(item.pictures) - places))


def in_rows(shown: Sequence[_Shown]) -> list[list[_Shown]]:
    """Breaks items into rows of at most eight pictures, keeping their order; no item is split."""
    rows: list[list[_Shown]] = []
    for one in shown:
        if not rows or sum(len(other.pictures) for other in rows[-1]) + len(one.pictures) > TILES:
            rows.append([])
        rows[-1].append(one)
    return rows


def _draw_finding(axes: Axes, finding: Finding, rows: list[list[_Shown]], top: float) -> None:
    shown = sum(map(len, rows))
    figures = _counted(finding.num_images, "image", "s")
    if finding.num_identities:
        figures += f", {_counted(finding.num_identities, 'identit', 'ies', 'y')}"
    part = "" if shown == finding.count else f"; {shown} of {finding.count:,} shown"
    _write(axes, _MARGIN, top, f"{finding.title}: {figures}{part}", 10, weight="bold")
    _write(axes, _MARGIN, top + 18, finding.explanation, 7.5, color="#555555")
    for number, row in enumerate(rows):
        _draw_row(axes, row, top + _HEADING + number * (_TILE + _CAPTION + _GAP))


def _draw_row(axes: Axes, row: list[_Shown], top: float) -> None:
    left: float = _MARGIN
    for one in row:
        if len(one.pictures) > 1:
            _draw_frame(axes, left, top, len(one.pictures))
        for picture in one.pictures:
            _draw_tile(axes, left, top, picture, one.left_out if picture is one.pictures[-1] else 0)
            left += _TILE + _GAP
        left += _GROUP_GAP - _GAP


def _draw_frame(axes: Axes, left: float, top: float, count: int) -> None:
    from matplotlib.patches import Rectangle

    width = count * _TILE + (count - 1) * _GAP
    corner, size = (left - 5, top - 5), (width + 10, _TILE + _CAPTION + 7)
    axes.add_patch(Rectangle(corner, *size, facecolor="#FFF6EE", edgecolor=_FRAME, linewidth=1.2))


def _draw_tile(axes: Axes, left: float, top: float, picture: Picture, left_out: int) -> None:
    place = picture.store.place(picture.row)
    try:
        pixels = _thumbnail(read_image(picture.store.encoded(picture.row), place))
    except BadImageError as error:
        pixels = np.full((_TILE, _TILE, 3), 205, np.uint8)
        text = "\n".join(textwrap.wrap(_printable(error.reason), 19)[:7])
        _write(axes, left + _TILE / 2, top + _TILE / 2, text, 6.5, ha="center", va="center", zorder=5)
    height, width = pixels.shape[:2]
    x, y = left + (_TILE - width) / 2, top + (_TILE - height) / 2
    axes.imshow(pixels, extent=(x, x + width, y + height, y), interpolation="bilinear", zorder=3)
    path = PurePosixPath(picture.store.name(picture.row))
    notes = [picture.note] if picture.note else []
    notes += [f"and {left_out:,} more"] if left_out else []
    lines = [_shortened(str(path.parent)), _shortened(path.name), "; ".join(notes)]
    _write(axes, left, top + _TILE + 4, "\n".join(lines), 6, linespacing=1.15, zorder=5)


def _thumbnail(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Shrinks an image to fit a tile, if it is larger."""
    image = Image.fromarray(pixels)
    image.thumbnail((_TILE, _TILE), Image.Resampling.LANCZOS)
    return np.asarray(image)


def _write(axes: Axes, x: float, y: float, text: str, size: float, **style: object) -> None:
    # A dollar sign in a file name must not start a formula.
    style = {"va": "top", **style}
    axes.text(x, y, _printable(text), fontsize=size, parse_math=False, **style)  # type: ignore[arg-type]  # matplotlib names each


def _printable(text: str) -> str:
    """Replaces the surrogates for bytes of a file name that are not UTF-8: fonts and terminals reject them."""
    return text.encode("utf-8", "replace").decode()


def _counted(count: int, stem: str, plural: str, singular: str = "") -> str:
    return f"{count:,} {stem}{singular if count == 1 else plural}"


def _shortened(name: str) -> str:
    """A name on one line; one that is too long for a tile is cut in the middle."""
    name = " ".join(name.split())
    if len(name) <= _LETTERS:
        return name
    end = _LETTERS // 2
    return f"{name[: _LETTERS - end - 1]}…{name[-end:]}"
