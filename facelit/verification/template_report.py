"""What `verify_templates` and `identify_templates` found, for people to read: tables, and a picture of the trade-offs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from facelit.verification.evaluation_report import draw_trade_off
from facelit.verification.intervals import Rate
from facelit.verification.protocol import MIN_IMPOSTORS
from facelit.verification.search import OpenSetPoint
from facelit.verification.template_evaluation import FARS, FPIRS, TemplateIdentification, TemplateVerification

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_BESIDE = 0.93
"""Where a gallery's bars stand beside the one's before, as a factor."""

TSV_HEADER = ("protocol", "gallery", "measure", "at", "value", "low", "high", "threshold")


def verification_lines(found: TemplateVerification) -> list[str]:
    """1:1, as a table."""
    curve = found.curve
    lines = [
        f"1:1  {curve.num_genuine:,} genuine and {curve.num_impostor:,} impostor pairs of {found.num_templates:,} templates of"
        f" {found.num_people:,} people",
        f"  AUC  {found.auc:.6f}",
        f"  EER  {found.eer}",
        "",
        "  FAR at most   TAR                       threshold   impostor pairs accepted",
    ]
    for target, point in found.at_far.items():
        lines.append(f"  {target:<12g}  {point.tar}   {point.threshold:9.4f}   {point.accepted:,}")
    if len(found.at_far) < len(FARS):
        lines.append(f"  (a lower FAR has fewer than {MIN_IMPOSTORS} impostor pairs behind it)")
    return lines


def identification_lines(found: TemplateIdentification) -> list[str]:
    """1:N, as a table: a column for each gallery, and their mean."""
    galleries = found.galleries
    lines = ["1:N  searches in each gallery, and the mean of the galleries"]
    for name, gallery in galleries.items():
        lines.append(
            f"  {name}: {gallery.num_enrolled:,} people enrolled, {gallery.num_mated:,} searches for them,"
            f" {gallery.num_strangers:,} for strangers"
        )
    lines += ["", f"  {'':<19}{'mean':<26}" + "".join(f"{name:<26}" for name in galleries).rstrip()]
    rows = [(f"rank {k}", mean, [one.ranks[k] for one in galleries.values()]) for k, mean in found.ranks.items()]
    for fpir in FPIRS:
        points = [one.at_fpir.get(fpir) for one in galleries.values()]
        if fpir in found.tpir:
            rates = [point.tpir for point in points if point is not None]
            rows.append((f"TPIR at FPIR {fpir:g}", found.tpir[fpir], rates))
    lines += [
        f"  {name:<19}" + "".join(f"{rate!s:<26}" for rate in (mean, *rates)).rstrip() for name, mean, rates in rows
    ]
    for fpir in FPIRS:
        if fpir not in found.tpir:
            fewest = min(one.num_strangers for one in galleries.values())
            needed = int(np.ceil(MIN_IMPOSTORS / fpir))
            lines.append(
                f"  TPIR at FPIR {fpir:g} takes {needed:,} searches for strangers in each gallery; there are {fewest:,}."
            )
    return lines


def tsv_rows(
    verification: TemplateVerification | None, identification: TemplateIdentification | None
) -> Iterator[tuple[str, ...]]:
    """Every figure as a row of `TSV_HEADER`."""
    if verification is not None:
        yield ("1:1", "", "AUC", "", f"{verification.auc:.6f}", "", "", "")
        yield ("1:1", "", "EER", "", *_rate(verification.eer), "")
        for target, point in verification.at_far.items():
            yield ("1:1", "", "TAR at FAR", f"{target:g}", *_rate(point.tar), f"{point.threshold:.6f}")
    if identification is None:
        return
    for k, rate in identification.ranks.items():
        yield ("1:N", "mean", "rank", str(k), *_rate(rate), "")
    for target, rate in identification.tpir.items():
        yield ("1:N", "mean", "TPIR at FPIR", f"{target:g}", *_rate(rate), "")
    for name, gallery in identification.galleries.items():
        for k, rate in gallery.ranks.items():
            yield ("1:N", name, "rank", str(k), *_rate(rate), "")
        for target, found in gallery.at_fpir.items():
            yield ("1:N", name, "TPIR at FPIR", f"{target:g}", *_rate(found.tpir), f"{found.threshold:.6f}")


def _rate(rate: Rate) -> tuple[str, str, str]:
    return f"{rate.value:.6f}", f"{rate.low:.6f}", f"{rate.high:.6f}"


def templates_figure(
    verification: TemplateVerification | None, identification: TemplateIdentification | None, title: str
) -> Figure:
    """ROC and DET of the pairs, and TPIR over FPIR of the searches, as far as there are any.

    Args:
        verification: 1:1; None where it was not measured.
        identification: 1:N; likewise, but not both.
        title: Shown above.
    """
    from matplotlib.figure import Figure

    panels = 2 * (verification is not None) + (identification is not None)
    figure = Figure(figsize=(5.5 * max(panels, 1.4), 4.8), layout="constrained")
    figure.suptitle(title, parse_math=False)
    axes = list(figure.subplots(1, panels, squeeze=False)[0])
    notes = ["bars: 95 %"]
    if identification is not None:
        _draw_open_set(axes[-1], identification)
        notes.insert(0, f"{', '.join(identification.galleries)}: galleries")
    if verification is not None:
        curve = verification.curve
        draw_trade_off(axes[0], axes[1], curve, verification.at_far.values())
        notes.insert(0, f"{curve.num_genuine:,} genuine and {curve.num_impostor:,} impostor pairs of templates")
    figure.supxlabel("; ".join(notes), fontsize=9)
    return figure


def _draw_open_set(axes: Axes, found: TemplateIdentification) -> None:
    points: list[OpenSetPoint] = []
    least = min(0.5 / max(1, gallery.num_strangers) for gallery in found.galleries.values())
    for number, (name, gallery) in enumerate(found.galleries.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        label = f"{name}: rank 1 {gallery.ranks[1].value:.4f}"
        axes.step(np.maximum(gallery.fpir, least), gallery.tpir, where="post", color=colour, label=label)
        for target, point in gallery.at_fpir.items():
            errors = [[point.tpir.value - point.tpir.low], [point.tpir.high - point.tpir.value]]
            at = target * _BESIDE**number
            axes.errorbar(
                at, point.tpir.value, np.clip(errors, 0, None), fmt="o", color=colour, capsize=3, markersize=5
            )
            points.append(point)
    lowest = min([point.tpir.low for point in points], default=0.0)
    axes.set(xscale="log", xlabel="FPIR (strangers found)", ylabel="TPIR (people found)", title="Identification")
    axes.set_ylim(max(0.0, lowest - 0.15 * (1.02 - lowest)), 1 + 0.02 * (1.02 - lowest))
    axes.set_xlim(least, 1)
    axes.grid(True, which="major", color="#DDDDDD", linewidth=0.7)
    axes.legend(loc="lower right", fontsize=8)
