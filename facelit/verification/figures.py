"""Pictures of a verification result: the ROC curve, and the pairs that are hardest to tell."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from facelit.verification.protocol import MIN_IMPOSTORS, VerificationResult

# Okabe & Ito's colours, which colour-blind readers can tell apart.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_WRONG, _NEARLY = "#C1121F", "#8A8A8A"

Indices = npt.NDArray[np.int64]
ImageReader = Callable[[int], npt.NDArray[np.uint8]]


def roc_figure(results: Mapping[str, VerificationResult], title: str = "") -> Figure:
    """ROC curves on a logarithmic FAR axis, with the operating points marked.

    Args:
        results: One curve for each, by the name it has in the legend.
        title: Above the axes.

    Returns:
        A figure of one axes.
    """
    figure = Figure(figsize=(7.2, 5.4), layout="constrained")
    axes = figure.add_subplot()
    floor = min(0.5 / result.num_impostor for result in results.values())
    unsafe = max(MIN_IMPOSTORS / result.num_impostor for result in results.values())
    axes.axvspan(floor, unsafe, color="#EEEEEE", zorder=0, label=f"fewer than {MIN_IMPOSTORS} impostor pairs")
    diagonal = np.geomspace(floor, 1, 200)
    axes.plot(diagonal, diagonal, color="#BBBBBB", linestyle=":", label="chance")
    for colour, (name, result) in zip(_cycle(len(results)), results.items(), strict=True):
        label = f"{name}: accuracy {result.accuracy:.4f} ± {result.accuracy_se:.4f}, AUC {result.auc:.4f}"
        far = np.maximum(result.roc.far, floor)
        axes.step(far, result.roc.tar, where="post", color=colour, linewidth=1.8, label=label)
        _mark_operating_points(axes, result, colour, floor)
    axes.set(xscale="log", xlim=(floor, 1), ylim=(0, 1.02), xlabel="FAR (false accept rate)", ylabel="TAR (true accept rate)")
    axes.set_title(title)
    axes.grid(True, which="major", color="#DDDDDD", linewidth=0.7)
    axes.legend(loc="best", fontsize=8.5, framealpha=0.9)
    return figure


def hardest_pairs(
    scores: npt.ArrayLike, is_same: npt.ArrayLike, thresholds: npt.ArrayLike, count: int
) -> tuple[Indices, Indices]:
    """The most confident mistakes of either kind, or, where there are fewer, the nearest misses after them.

    Args:
        scores: float (N,), higher means more alike.
        is_same: bool (N,).
        thresholds: float (N,) or one number: a pair is accepted where score >= threshold.
        count: How many of each kind.

    Returns:
        Numbers of impostor pairs, highest score over its threshold first; and of genuine pairs, lowest first.
    """
    margin = np.asarray(scores, dtype=np.float64) - np.asarray(thresholds, dtype=np.float64)
    same = np.asarray(is_same, dtype=np.bool_)
    order = np.argsort(margin, kind="stable")
    return order[~same[order]][::-1][:count], order[same[order]][:count]


def hardest_pairs_figure(
    images: ImageReader,
    first: Indices,
    second: Indices,
    scores: npt.NDArray[np.float64],
    is_same: npt.NDArray[np.bool_],
    thresholds: npt.ArrayLike,
    count: int = 8,
    title: str = "",
    names: Sequence[str] | None = None,
) -> Figure:
    """False accepts and false rejects, faces side by side with their score.

    Args:
        images: Crop by image number, uint8 RGB (H, W, 3).
        first: Image number of each pair's first image, (N,).
        second: Likewise of its second image.
        scores: (N,).
        is_same: (N,).
        thresholds: Of each pair, (N,), or one for all.
        count: Pairs of each kind.
        title: Above both panels.
        names: Name or path of each image; the file's stem is printed below it.

    Returns:
        A figure with two panels of pairs; red frames are mistakes, grey ones the nearest misses.
    """
    limits = np.broadcast_to(np.asarray(thresholds, dtype=np.float64), scores.shape)
    accepted = scores >= limits
    impostors, genuine = hardest_pairs(scores, is_same, limits, count)
    columns = 4
    rows = -(-max(len(impostors), len(genuine), 1) // columns)
    figure = Figure(figsize=(2 * 2.9 * columns, 1.95 * rows + 0.9), layout="constrained")
    figure.suptitle(title)
    panels = figure.subfigures(1, 2, wspace=0.04)
    selections: list[tuple[Any, str, Indices, npt.NDArray[np.bool_]]] = [
        (panels[0], "False accepts: different people, highest scores", impostors, accepted),
        (panels[1], "False rejects: one person, lowest scores", genuine, ~accepted),
    ]
    for panel, heading, pairs, wrong in selections:
        mistakes = int(wrong[pairs].sum())
        near = f"\n({len(pairs) - mistakes} of them correct, but nearest to the threshold)" if mistakes < len(pairs) else ""
        panel.suptitle(heading + near, fontsize=11)
        for axes, pair in zip(panel.subplots(rows, columns, squeeze=False).ravel(), [*pairs, *[None] * rows * columns]):
            axes.set_axis_off()
            if pair is not None:
                colour = _WRONG if wrong[pair] else _NEARLY
                both = (int(first[pair]), int(second[pair]))
                _draw_pair(axes, [images(number) for number in both], colour)
                label = f"score {scores[pair]:.3f}, threshold {limits[pair]:.3f}"
                below = "\n".join([label, *(PurePath(names[number]).stem for number in both)]) if names else label
                axes.set_title(below, fontsize=7.5, y=-0.06, va="top", color=colour if wrong[pair] else "#444444")
    return figure


def _draw_pair(axes: Axes, pair: list[npt.NDArray[np.uint8]], colour: str) -> None:
    height, width = pair[0].shape[:2]
    gap = np.full((height, max(2, width // 28), 3), 255, dtype=np.uint8)
    both = np.concatenate([pair[0], gap, pair[1]], axis=1)
    axes.imshow(both, interpolation="bilinear")
    outline = (-0.5, -0.5), both.shape[1], height
    axes.add_patch(Rectangle(*outline, fill=False, edgecolor=colour, linewidth=2.5, clip_on=False))


def _mark_operating_points(axes: Axes, result: VerificationResult, colour: str, floor: float) -> None:
    best = int(np.argmax(result.roc.thresholds <= result.best_threshold))
    points = [
        ("best accuracy", result.roc.far[best], result.roc.tar[best], "s"),
        (f"EER {result.eer:.3f}", result.eer, 1 - result.eer, "D"),
    ]
    points += [
        (f"TAR {point.tar:.3f} at FAR {target:g}", point.far, point.tar, "o") for target, point in result.tar_at_far.items()
    ]
    for label, far, tar, marker in points:
        x = max(far, floor)
        axes.plot([x], [tar], marker=marker, color=colour, markeredgecolor="white", markersize=7, linestyle="none", zorder=4)
        axes.annotate(label, (x, tar), xytext=(7, -10), textcoords="offset points", fontsize=8, color="#333333")


def _cycle(count: int) -> list[str]:
    return [_COLOURS[number % len(_COLOURS)] for number in range(count)]
