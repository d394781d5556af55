"""A verification set's part of the page: curves, the threshold, figures with intervals, groups, and the hardest pairs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from facelit.report.charts import Chart, det_chart, histogram, roc_chart, score_range
from facelit.report.hardest import HardPair, Pictures, hard_pairs
from facelit.report.markup import card, chart, dot, legend, row, section, table, text, with_interval
from facelit.report.set_figures import TARGET_FARS, SetFigures, far_text

Figures = Mapping[str, SetFigures]
"""By checkpoint."""


def set_section(
    number: int,
    name: str,
    figures: Figures,
    names: list[str],
    missing: int,
    groups: str,
    count: int,
    pictures: Pictures,
) -> str:
    """The HTML of a set.

    Args:
        number: The set's place on the page.
        name: Its name.
        figures: Those of each checkpoint that was measured on it.
        names: All checkpoints, in the order of their colours.
        missing: Pairs that were left out, as their images are absent.
        groups: HTML of the breakdowns by group.
        count: Hardest pairs of each kind; 0 for none.
        pictures: Where their images come from.
    """
    one = next(iter(figures.values())).result
    note = f"{one.num_genuine:,} genuine and {one.num_impostor:,} impostor pairs in {one.num_folds} folds"
    if missing:
        note += f"; {missing:,} pairs were left out, as their images are absent"
    return section(
        f"set-{number}",
        name,
        note,
        _curves(number, name, figures, names)
        + _threshold(number, figures, names)
        + _figures(figures, names)
        + groups
        + (_hardest(figures, names, count, pictures) if count else ""),
    )


def set_data(number: int, figures: Figures, names: list[str]) -> tuple[dict[str, Any], dict[str, Chart]]:
    """What the page's script needs of a set, and the set's charts by name."""
    ends = score_range(figures)
    drawn = {name: histogram(one, ends) for name, one in figures.items()}
    first = next(iter(figures.values())).result
    roc, det = roc_chart(figures, names), det_chart(figures, names)
    charts: dict[str, Chart] = {
        f"roc-{number}": roc,
        f"det-{number}": det,
        f"histogram-{number}": {**next(iter(drawn.values())), "data": [], "fixed": True},
    }
    data = {
        "ends": ends,
        "genuine": first.num_genuine,
        "impostor": first.num_impostor,
        "roc": f"roc-{number}",
        "det": f"det-{number}",
        "floor": 10 ** roc["layout"]["xaxis"]["range"][0],
        "bottom": roc["layout"]["yaxis"]["range"][0],
        "least": 10 ** det["layout"]["yaxis"]["range"][0],
        "checkpoints": [_checkpoint(one, drawn[name], names.index(name)) for name, one in figures.items()],
    }
    return data, charts


def _checkpoint(one: SetFigures, drawn: Chart, colour: int) -> dict[str, Any]:
    accepted = one.accepted
    return {
        "colour": colour,
        "thresholds": accepted.thresholds.tolist(),
        "genuine": _from_here_to_the_next(accepted.genuine),
        "impostor": _from_here_to_the_next(accepted.impostor),
        "presets": list(one.presets.items()),
        "histogram": drawn["data"],
    }


def _from_here_to_the_next(accepted: Any) -> list[int]:
    """The pairs between two thresholds: short numbers, of which the page makes sums."""
    return [int(count) for count in -np.diff(accepted, append=0)]


def _curves(number: int, name: str, figures: Figures, names: list[str]) -> str:
    shown = [one for one in names if one in figures]
    boxes = [
        f"<h3>{title}</h3>{chart(f'{kind}-{number}', f'{title} of {name}')}"
        for kind, title in (("roc", "ROC"), ("det", "DET"))
    ]
    key = legend(shown, [names.index(one) for one in shown])
    note = "Grey: FARs that fewer than three impostor pairs stand behind. The circle is the threshold below."
    return f'{key}<div class="two">{"".join(card(f"{box}<p class=note>{note}</p>") for box in boxes)}</div>'


def _threshold(number: int, figures: Figures, names: list[str]) -> str:
    radios = "".join(
        f'<label><input type="radio" name="checkpoint-{number}" value="{place}"{" checked" * (place == 0)}>'
        f"{dot(name, names.index(name))}</label>"
        for place, name in enumerate(figures)
    )
    choice = f'<div class="row" role="radiogroup" aria-label="Checkpoint">{radios}</div>' if len(figures) > 1 else ""
    low, high = score_range(figures)
    tiles = "".join(
        f'<div class="tile"><b data-figure="{figure}">–</b><span>{label}</span></div>'
        for figure, label in (
            ("far", "false accept rate (FAR)"),
            ("frr", "false reject rate (FRR)"),
            ("tar", "true accept rate (TAR)"),
            ("accuracy", "accuracy on all pairs"),
        )
    )
    counts = table(
        ["Pairs", "accepted", "rejected"],
        [
            row(
                f'<span class="dot"><i class="{kind}"></i><span>{kind}</span></span>',
                [f'<span data-figure="{kind}-{answer}">–</span>' for answer in ("accepted", "rejected")],
            )
            for kind in ("genuine", "impostor")
        ],
    )
    left = (
        f"{chart(f'histogram-{number}', 'Scores of genuine and impostor pairs, with the threshold')}"
        f'<input type="range" min="{low}" max="{high}" step="0.0001" aria-label="Threshold">'
        f'<div class="row apart"><label>Threshold&nbsp;<input type="number" min="{low}" max="{high}" step="any" inputmode="decimal">'
        '</label><label><input type="checkbox">log scale</label></div><div class="row" data-presets></div>'
    )
    return card(
        f'<div data-set="{number}"><h3>What a threshold costs</h3>{choice}<div class="threshold"><div>{left}</div>'
        f'<div><div class="tiles">{tiles}</div>{counts}</div></div></div>'
    )


def _figures(figures: Figures, names: list[str]) -> str:
    ones = list(figures.values())
    rows = [
        row("Accuracy", [with_interval(one.accuracy) for one in ones]),
        row("EER", [with_interval(one.eer) for one in ones]),
        row("AUC", [f"{one.result.auc:.6f}" for one in ones]),
    ]
    for target in TARGET_FARS:
        points = [next((point for point in one.tar_points if point.target == target), None) for one in ones]
        if any(points):
            cells = [
                f"{with_interval(point.tar)}<small>threshold {point.threshold:.4f}</small>" if point else "–"
                for point in points
            ]
            rows.append(row(f"TAR at FAR ≤ {far_text(target)}", cells))
    best = [one.result.best_threshold for one in ones]
    rows.append(row("Threshold of best accuracy", [f"{value:.4f}" for value in best]))
    head = ["Figure", *(dot(name, names.index(name)) for name in figures)]
    note = (
        "Below each figure, its 95 % interval: its spread when each fold is left out once, so that people who are in several pairs of a"
        " fold are not counted as independent. A lower FAR than the last has fewer than three impostor pairs behind it."
    )
    return card(f'<h3>Figures</h3>{table(head, rows)}<p class="note">{note}</p>')


def _hardest(figures: Figures, names: list[str], count: int, pictures: Pictures) -> str:
    parts = []
    for name, one in figures.items():
        found = hard_pairs(one, count, pictures)
        heading = (
            f"<h3>Hardest pairs of {dot(name, names.index(name))}</h3>"
            if len(figures) > 1
            else "<h3>Hardest pairs</h3>"
        )
        parts.append(
            card(
                heading
                + _kind("False accepts: different people", found.accepts, found.num_accepts)
                + _kind("False rejects: the same person", found.rejects, found.num_rejects)
            )
        )
    return "".join(parts)


def _kind(title: str, pairs: list[HardPair], wrong: int) -> str:
    shown = sum(pair.wrong for pair in pairs)
    if not wrong:
        said = f"none; the {len(pairs)} nearest to their threshold"
    elif shown < len(pairs):
        said = f"all {wrong}, then the nearest to their threshold"
    else:
        said = f"{wrong:,}, the {shown} most confident" if shown < wrong else f"all {wrong:,}"
    return f'<h4>{title} <span class="small">({said})</span></h4><div class="pairs">{"".join(map(_pair, pairs))}</div>'


def _pair(pair: HardPair) -> str:
    faces = ""
    if any(pair.pictures):
        images = (
            f'<img src="{picture}" alt="{text(name)}" width="112" height="112">' if picture else "<span></span>"
            for name, picture in zip(pair.names, pair.pictures, strict=True)
        )
        faces = f'<div class="faces">{"".join(images)}</div>'
    names = "".join(f'<div title="{text(name)}">{text(_short(name))}</div>' for name in pair.names if name)
    return (
        f'<figure class="pair{" wrong" * pair.wrong}">{faces}<figcaption><b>{pair.score:.4f}</b>'
        f' <span class="names">at threshold {pair.threshold:.4f}{names}</span></figcaption></figure>'
    )


def _short(name: str) -> str:
    """A file's name alone where it begins with its folder's, as in LFW."""
    path = PurePosixPath(name)
    return path.stem if path.parent.name and path.name.startswith(path.parent.name) else name
