"""What `evaluate_people` found, for people to read: lines, and a picture of the trade-off."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from facelit.verification.all_pairs import Curve, OperatingPoint
from facelit.verification.evaluation import FPIRS, PeopleEvaluation
from facelit.verification.protocol import MIN_IMPOSTORS
from facelit.verification.search import FEWEST_PEOPLE, NUM_PARTS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def report_lines(found: PeopleEvaluation) -> list[str]:
    """Verification and identification, as tables."""
    folds = found.accuracy
    curve = found.curve
    lines = [
        f"{found.num_images:,} photos of {found.num_people:,} people. 95 % intervals in brackets.",
        "",
        f"Verification: all {curve.num_genuine:,} genuine and {curve.num_impostor:,} impostor pairs",
        f"  accuracy  {folds.accuracy:.4f} ± {folds.accuracy_se:.4f}  ({folds.num_folds} folds without common people:"
        f" {folds.num_genuine:,} genuine, {folds.num_impostor:,} impostor pairs)",
        f"  EER       {found.eer}",
        f"  AUC       {found.auc:.6f}",
        "",
        "  FAR at most   TAR                       threshold   impostor pairs accepted",
    ]
    for target, point in found.at_far.items():
        lines.append(f"  {target:<12g}  {point.tar}   {point.threshold:9.4f}   {point.accepted:,}")
    if len(found.at_far) < 5:
        lines.append(f"  (a lower FAR has fewer than {MIN_IMPOSTORS} impostor pairs behind it)")
    photos = f"{found.enrolled} photo{'s' if found.enrolled > 1 else ''} of each enrolled"
    lines += ["", f"Identification: {found.num_searches:,} searches among {found.num_people:,} people, {photos}"]
    lines += [f"  {f'rank {k}':<10}{rate}" for k, rate in found.ranks.items()]
    return [*lines, "", *_open_set_lines(found)]


def _open_set_lines(found: PeopleEvaluation) -> list[str]:
    if found.num_people < FEWEST_PEOPLE:
        return [f"Strangers: {found.num_people} people are too few to hold some out; {FEWEST_PEOPLE} will do."]
    lines = [
        f"Strangers: each {NUM_PARTS}th of the people is left out of the gallery once, {found.num_strangers:,} searches"
    ]
    for target in FPIRS:
        point = found.at_fpir.get(target)
        if point is None:
            needed = int(np.ceil(MIN_IMPOSTORS / target))
            lines.append(
                f"  FPIR at most {target:<6g} takes {needed:,} searches for strangers; there are {found.num_strangers:,}."
            )
        else:
            lines.append(f"  FPIR at most {target:<6g} TPIR {point.tpir}   threshold {point.threshold:.4f}")
    return lines


def recommendation(point: OperatingPoint, found: PeopleEvaluation) -> str:
    """The threshold for a FAR, and what it rests on."""
    return (
        f"Threshold for FAR <= {point.target:g}: {point.threshold:.4f}. It rests on {found.curve.num_impostor:,} impostor pairs of"
        f" {found.num_people:,} people, of which it accepts {point.accepted:,}: FAR {point.far.value:.2g}"
        f" [{point.far.low:.2g}, {point.far.high:.2g}]; TAR {point.tar}."
    )


def trade_off_figure(found: PeopleEvaluation, title: str) -> Figure:
    """ROC on a logarithmic FAR axis, and DET: misses over false accepts, both logarithmic."""
    from matplotlib.figure import Figure

    curve = found.curve
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    figure.suptitle(title)
    roc, det = figure.subplots(1, 2)
    draw_trade_off(roc, det, curve, found.at_far.values())
    note = f"{curve.num_genuine:,} genuine and {curve.num_impostor:,} impostor pairs of {found.num_people:,} people; bars: 95 %"
    figure.supxlabel(note, fontsize=9)
    return figure


def draw_trade_off(roc: Axes, det: Axes, curve: Curve, points: Iterable[OperatingPoint]) -> None:
    """Draws what `trade_off_figure` shows into axes.

    Args:
        roc: Where the ROC curve goes.
        det: Where the DET curve goes.
        curve: What is drawn.
        points: Marked, with their intervals.
    """
    points = list(points)
    changes = np.flatnonzero(np.diff(curve.accepted_impostor, prepend=-1) | np.diff(curve.accepted_genuine, prepend=-1))
    far = curve.accepted_impostor[changes] / curve.num_impostor
    tar = curve.accepted_genuine[changes] / curve.num_genuine
    least_far, least_frr = 0.5 / curve.num_impostor, 0.5 / curve.num_genuine
    roc.step(np.maximum(far, least_far), tar, where="pre", color="#0072B2")
    det.step(np.maximum(far, least_far), np.maximum(1 - tar, least_frr), where="pre", color="#0072B2")
    for point in points:
        far_here = max(point.far.value, least_far)
        errors = [[point.tar.value - point.tar.low], [point.tar.high - point.tar.value]]
        roc.errorbar(
            far_here, point.tar.value, np.clip(errors, 0, None), fmt="o", color="#D55E00", capsize=3, markersize=5
        )
        frr = np.maximum([1 - point.tar.high, 1 - point.tar.value, 1 - point.tar.low], least_frr)
        bars = [[frr[1] - frr[0]], [frr[2] - frr[1]]]
        det.errorbar(far_here, frr[1], bars, fmt="o", color="#D55E00", capsize=3, markersize=5)
        roc.annotate(
            f"{point.threshold:.3f}", (far_here, point.tar.value), (5, -12), textcoords="offset points", fontsize=8
        )
    lowest = min([float(tar[(far > 0) & (far <= 1e-1)].min(initial=1)), *(point.tar.low for point in points)])
    roc.set(
        xscale="log",
        xlabel="FAR (false accept rate)",
        ylabel="TAR (true accept rate)",
        title="ROC; points: their thresholds",
    )
    roc.set_ylim(max(0.0, lowest - 0.05 * (1.02 - lowest)), 1 + 0.02 * (1.02 - lowest))
    det.set(xscale="log", yscale="log", xlabel="FAR (false accept rate)", ylabel="1 - TAR (misses)", title="DET")
    for axes in (roc, det):
        axes.set_xlim(least_far, 1)
        axes.grid(True, which="major", color="#DDDDDD", linewidth=0.7)
