"""Pictures of the answers: two crops with the verdict, or a face with its best matches."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from facelit.inference.model import Identification, Verdict
from facelit.inference.thresholds import NAMES, Threshold, percent
from facelit.storage.images import Crop
from facelit.verification.figures import printable

_YES, _NO = "#00734F", "#B3261E"  # colour is not the only cue: the text says it too
_LETTERS, _MANY_LETTERS = 22, 34
_MOST_ROWS = 20


def verdict_figure(crops: Sequence[Crop], names: Sequence[str], verdict: Verdict) -> Figure:
    """Draws two crops side by side, as the network saw them, with score, threshold and verdict.

    Args:
        crops: The two crops.
        names: The names of their photos.
        verdict: The result of `FaceModel.verify`.
    """
    figure = Figure(figsize=(5.4, 3.9), layout="constrained")
    colour = _YES if verdict.same else _NO
    figure.suptitle("same person" if verdict.same else "different people", fontsize=15, color=colour, weight="bold")
    for axes, crop, name in zip(figure.subplots(1, 2), crops, names, strict=True):
        _draw(axes, crop, _shortened(PurePath(name).name, _MANY_LETTERS), colour)
    sign = ">=" if verdict.same else "<"
    figure.supxlabel(
        f"score {verdict.score:.4f} {sign} threshold {verdict.threshold:.4f}\n{_threshold_lines(verdict.details)}",
        fontsize=9,
        parse_math=False,
    )
    return figure


def identification_figure(
    crops: Sequence[Crop],
    names: Sequence[str],
    answers: Sequence[Identification],
    examples: dict[str, Crop],
) -> Figure:
    """Draws a row for each of the first 20 faces: the crop, and the most similar people.

    Args:
        crops: The query faces, at least one.
        names: The names of their photos.
        answers: One for each crop.
        examples: A crop of each person; people without one are shown by name.
    """
    rows = min(len(crops), _MOST_ROWS)
    columns = 1 + max(len(answer.matches) for answer in answers[:rows])
    figure = Figure(figsize=(1.75 * columns + 0.3, 2.15 * rows + 0.9), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for column, axes in enumerate(grid[0]):
        axes.set_title(f"{column}." if column else "photo", fontsize=9, color="#555555")
    for row, crop, name, answer in zip(grid, crops[:rows], names[:rows], answers[:rows], strict=True):
        colour = _NO if answer.identity is None else _YES
        _draw(row[0], crop, f"{_shortened(PurePath(name).name)}\n{_shortened(answer.identity or 'unknown')}", colour)
        for axes in row[1 + len(answer.matches) :]:
            axes.set_axis_off()
        for axes, match in zip(row[1:], answer.matches, strict=False):
            accepted = match.score >= answer.threshold.value
            text = f"{_shortened(match.name)}\n{match.score:.3f}"
            _draw(axes, examples.get(match.name), text, _YES if accepted else "#BBBBBB", 2.5 if accepted else 1)
    limit = answers[0].threshold
    rest = f"; the first {rows} of {len(crops):,} faces" if len(crops) > rows else ""
    figure.supxlabel(
        f"green: score at or above the threshold {limit.value:.4f}\n{_threshold_lines(limit)}{rest}",
        fontsize=8.5,
        parse_math=False,
    )
    return figure


def save_png(figure: Figure, file: Any) -> None:
    """Writes a figure as PNG to a path or an open file, without a warning for each letter that the font lacks."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(file, format="png", dpi=140)


def _threshold_lines(threshold: Threshold) -> str:
    if threshold.at is None or threshold.far is None or threshold.pairs is None:
        return "set by the user"
    name = NAMES.get(threshold.at, threshold.at)
    return f"{name} on {threshold.measured_on}: FAR {percent(threshold.far)}, {threshold.pairs:,} pairs"


def _draw(axes: Axes, crop: Crop | None, text: str, colour: str, width: float = 3) -> None:
    if crop is None:
        axes.text(0.5, 0.5, "no picture", ha="center", va="center", fontsize=8, color="#777777")
        axes.set_aspect("equal")
    else:
        axes.imshow(crop, interpolation="bilinear")
    axes.set(xticks=[], yticks=[])
    axes.set_xlabel(text, fontsize=8.5, parse_math=False)  # a dollar sign in a name would start a formula
    for spine in axes.spines.values():
        spine.set(color=colour, linewidth=width)


def _shortened(text: str, letters: int = _LETTERS) -> str:
    """Shortens a name in its first half, as photo names differ at the end."""
    text = printable(text)
    return text if len(text) <= letters else f"{text[: letters // 3]}…{text[letters // 3 + 1 - letters :]}"
