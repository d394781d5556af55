"""Pictures of a verification result: the ROC curve, and the hardest pairs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePath
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.legend import Legend

from facelit.verification.protocol import MIN_IMPOSTORS, VerificationResult

# Okabe & Ito's colours, which colour-blind readers can tell apart.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_WRONG, _NEARLY = "#C1121F", "#8A8A8A"
_MARKERS = {"TAR at FAR 1e-2, 1e-3": "o", "EER": "D", "highest accuracy": "s"}
_COLUMNS = 2  # pairs side by side in a panel
_CHARACTER, _LINE = 0.0095, 11.0  # of a point's label: a character as a share of the axes' width, a line in points

Indices = npt.NDArray[np.int64]
Booleans = npt.NDArray[np.bool_]
ImageReader = Callable[[int], npt.NDArray[np.uint8]]


def roc_figure(results: Mapping[str, VerificationResult], title: str = "") -> Figure:
    """ROC curves on a logarithmic FAR axis, with the operating points marked.

    A FAR of 0, which a logarithmic axis cannot show, is drawn at its left end. With one curve the operating points are
    labelled in the plot; with several, where labels would collide, the legend explains the markers.

    Args:
        results: At least one result, by its name in the legend.
        title: Shown above the axes.

    Returns:
        A figure of one axes.

    Raises:
        ValueError: No result is given.
    """
    if not results:
        raise ValueError("roc_figure needs at least one result")
    figure = Figure(figsize=(7.2, 5.3 + 0.5 * len(results) + 0.6 * (len(results) > 1)), layout="constrained")
    axes = figure.add_subplot()
    draw_roc(axes, results)
    axes.set_title(title, parse_math=False)
    _plain(figure.legend(loc="outside lower center", fontsize=8.5, frameon=False))
    return figure


def draw_roc(axes: Axes, results: Mapping[str, VerificationResult], legend: bool = False) -> None:
    """Draws what `roc_figure` shows into axes.

    Args:
        axes: Where to draw.
        results: As for `roc_figure`.
        legend: Whether a legend is drawn inside the axes.
    """
    floor = min(0.5 / result.num_impostor for result in results.values())
    _draw_background(axes, results, floor)
    for number, (name, result) in enumerate(results.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        far = np.maximum(result.roc.far, floor)
        label = f"{name}: {_legend_figures(result)}"
        axes.step(far, result.roc.tar, where="post", color=colour, linewidth=1.8, label=label)
        _mark_operating_points(axes, result, colour, floor, labelled=len(results) == 1)
    if len(results) > 1:
        for label, marker in _MARKERS.items():
            axes.plot([], [], marker=marker, color="#555555", linestyle="none", label=label)
    axes.set(xscale="log", xlim=(floor, 1), ylim=(0, 1.06))
    axes.set(xlabel="FAR (false accept rate)", ylabel="TAR (true accept rate)")
    axes.grid(True, which="major", color="#DDDDDD", linewidth=0.7)
    if legend:
        _plain(axes.legend(loc="lower right", fontsize=8))


def hardest_pairs(
    scores: npt.ArrayLike, is_same: npt.ArrayLike, thresholds: npt.ArrayLike, count: int
) -> tuple[Indices, Indices]:
    """The most confident mistakes of each kind, followed by the nearest misses where there are not enough mistakes.

    Args:
        scores: float (N,), higher means more alike.
        is_same: bool (N,).
        thresholds: float (N,) or one number: a pair is accepted where score >= threshold.
        count: How many pairs of each kind to return, at least 1; all of them where there are fewer.

    Returns:
        Indices of impostor pairs, sorted by `score - threshold`, highest first; and of genuine pairs, lowest first.

    Raises:
        ValueError: `count` is below 1.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    margin = np.asarray(scores, dtype=np.float64) - np.asarray(thresholds, dtype=np.float64)
    same = np.asarray(is_same, dtype=np.bool_)
    order = np.argsort(margin, kind="stable")
    return order[~same[order]][::-1][:count], order[same[order]][:count]


def hardest_pairs_figure(
    images: ImageReader,
    first: Indices,
    second: Indices,
    scores: npt.NDArray[np.float64],
    is_same: Booleans,
    thresholds: npt.ArrayLike,
    count: int = 8,
    title: str = "",
    names: Sequence[str] | None = None,
) -> Figure:
    """False accepts and false rejects: both faces of each pair with its score.

    Args:
        images: Returns the crop of an image number, uint8 RGB (H, W, 3).
        first: Image number of each pair's first image, (N,).
        second: Image number of each pair's second image, (N,).
        scores: (N,).
        is_same: (N,).
        thresholds: Threshold of each pair, (N,), or one for all.
        count: Number of pairs of each kind, at least 1.
        title: Shown above both panels.
        names: Name or path of each image; the stem of the file name is shown below the pair.

    Returns:
        A figure with two panels of pairs: mistakes in red frames, nearest misses in grey ones.

    Raises:
        ValueError: `count` is below 1.
    """
    limits = np.broadcast_to(np.asarray(thresholds, dtype=np.float64), np.shape(scores))
    accepted = scores >= limits
    impostors, genuine = hardest_pairs(scores, is_same, limits, count)
    rows = math.ceil(max(len(impostors), len(genuine), 1) / _COLUMNS)
    figure = Figure(figsize=(4 * _COLUMNS + 2.2, (1.62 if names else 1.42) * rows + 1.2), layout="constrained")
    figure.suptitle(title, fontsize=13, parse_math=False)
    left, right = figure.subfigures(1, 2, wspace=0.04, squeeze=False)[0]
    for panel, heading, pairs, wrong in (
        (left, "False accepts: different people", impostors, accepted),
        (right, "False rejects: same person", genuine, ~accepted),
    ):
        panel.suptitle(_panel_title(heading, int(wrong[pairs].sum()), len(pairs)), fontsize=11)
        for axes, pair in zip(_cells(panel, rows, len(pairs)), pairs, strict=True):
            numbers = (int(first[pair]), int(second[pair]))
            lines = [f"score {scores[pair]:.3f}, threshold {limits[pair]:.3f}"]
            if names is not None:
                lines += [printable(PurePath(names[number]).stem) for number in numbers]
            faces = [images(number) for number in numbers]
            _draw_pair(axes, faces, "\n".join(lines), _WRONG if wrong[pair] else _NEARLY)
    return figure


def printable(text: str) -> str:
    """Replaces the bytes of a file name that are not UTF-8, which matplotlib cannot draw, by question marks."""
    return text.encode("utf-8", "replace").decode()


def _plain(legend: Legend) -> None:
    """Shows names of sets literally: a dollar sign would start a formula."""
    for text in legend.get_texts():
        text.set_parse_math(False)


def _draw_background(axes: Axes, results: Mapping[str, VerificationResult], floor: float) -> None:
    unsafe = max(MIN_IMPOSTORS / result.num_impostor for result in results.values())
    note = f"FAR based on fewer than {MIN_IMPOSTORS} impostor pairs"
    axes.axvspan(floor, unsafe, color="#EEEEEE", zorder=0, label=note)
    diagonal = np.geomspace(floor, 1, 200)
    axes.plot(diagonal, diagonal, color="#999999", linestyle=":", label="chance")


def _legend_figures(result: VerificationResult) -> str:
    tars = [f"TAR {point.tar:.3f} @ FAR {target:g}" for target, point in result.tar_at_far.items()]
    summary = f"accuracy {result.accuracy:.4f} ± {result.accuracy_se:.4f}, AUC {result.auc:.4f}"
    return f"{summary}\n" + ", ".join([f"EER {result.eer:.3f}", *tars])


def _mark_operating_points(axes: Axes, result: VerificationResult, colour: str, floor: float, labelled: bool) -> None:
    best = int(np.argmax(result.roc.thresholds <= result.best_threshold))
    points = [
        (f"TAR {point.tar:.3f} at FAR {target:g}", point.far, point.tar, "o")
        for target, point in result.tar_at_far.items()
    ]
    accuracy = f"accuracy {result.best_accuracy:.3f}\nat threshold {result.best_threshold:.3f}"
    points.append((accuracy, result.roc.far[best], result.roc.tar[best], "s"))
    points.append((f"EER {result.eer:.3f}", result.eer, 1 - result.eer, "D"))
    below: list[_Label] = []
    for label, far, tar, marker in sorted(points, key=lambda point: point[1]):
        x = max(far, floor)
        axes.plot([x], [tar], marker, color=colour, markeredgecolor="white", markersize=7, zorder=4)
        if not labelled:
            continue
        if marker == "D":
            _label_above(axes, label, (x, tar), at_left=x < floor**0.75)
        else:
            below.append(_label_below(axes, label, (x, tar), 1 - math.log(x) / math.log(floor), below))


class _Label(NamedTuple):
    """Where a label to the lower right of its point ends: its right edge as a share of the axes' width, its last line in points."""

    right: float
    bottom: float


def _label_above(axes: Axes, label: str, point: tuple[float, float], at_left: bool) -> None:
    """Places a label to the upper left of a point, where a rising curve leaves room."""
    horizontal, offset = ("left", (2, 6)) if at_left else ("right", (-7, 5))
    axes.annotate(label, point, offset, textcoords="offset points", fontsize=8, ha=horizontal, va="bottom")


def _label_below(axes: Axes, label: str, point: tuple[float, float], left: float, others: Sequence[_Label]) -> _Label:
    """Places a label to the lower right of a point, below those of points further left that reach as far as it."""
    height = axes.get_window_extent().height * 72 / axes.figure.dpi
    top = -height * (1 - point[1]) - 6  # points below the axes' TAR of 1
    free = min([top, *(other.bottom for other in others if other.right > left)])
    axes.annotate(label, point, (8, -6 + free - top), textcoords="offset points", fontsize=8, ha="left", va="top")
    lines = label.split("\n")
    return _Label(left + max(map(len, lines)) * _CHARACTER, free - _LINE * len(lines))


def _panel_title(heading: str, mistakes: int, shown: int) -> str:
    if mistakes == shown:
        return f"{heading}\nthe {shown} most confident mistakes"
    if mistakes == 0:
        return f"{heading}\nnone; the {shown} pairs nearest to the threshold (grey)"
    return f"{heading}\nall {mistakes}, then the {shown - mistakes} nearest to the threshold (grey)"


def _cells(panel: SubFigure, rows: int, count: int) -> list[Axes]:
    """The first `count` cells of a grid; the remaining cells are left blank."""
    cells: list[Axes] = list(panel.subplots(rows, _COLUMNS, squeeze=False).ravel())
    for blank in cells[count:]:
        blank.set_axis_off()
    return cells[:count]


def _draw_pair(axes: Axes, faces: list[npt.NDArray[np.uint8]], text: str, colour: str) -> None:
    height, width = faces[0].shape[:2]
    gap = np.full((height, max(2, width // 28), 3), 255, dtype=np.uint8)
    axes.imshow(np.concatenate([faces[0], gap, faces[1]], axis=1), interpolation="bilinear")
    axes.set(xticks=[], yticks=[])
    # parse_math: a dollar sign in a name would start a formula.
    axes.set_xlabel(text, fontsize=8, labelpad=4, color="black" if colour == _WRONG else "#555555", parse_math=False)
    for spine in axes.spines.values():
        spine.set(color=colour, linewidth=2.5)
