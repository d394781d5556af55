"""Charts as plotly's JSON. Colours are names of the page's CSS variables, which follow light, dark and print."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from facelit.report.runs import Logged
from facelit.report.set_figures import SetFigures
from facelit.verification.protocol import MIN_IMPOSTORS, Floats

Chart = dict[str, Any]
"""`data`, `layout` and `height` in pixels."""

COLOURS = 6
"""Of the page's variables --c0 ... for checkpoints and runs."""
_DASHES = ("solid", "dash", "dot", "dashdot")
_CELLS = 1500
"""A chart of 1400 pixels' width has about half as many for each axis."""
_BINS = 120


def roc_chart(figures: Mapping[str, SetFigures], names: Sequence[str]) -> Chart:
    """TAR over FAR on a logarithmic axis, one curve for each checkpoint; the last trace is the threshold's marker.

    Args:
        figures: By checkpoint.
        names: All checkpoints, in the order of their colours.
    """
    floor = _floor(figures)
    lowest = min(float(np.interp(np.log10(max(floor, 1e-3)), *_log_roc(one, floor))) for one in figures.values())
    bottom = max(0.0, lowest - 0.08 * (1.001 - lowest) - 0.01)
    traces = []
    for name, one in figures.items():
        far, tar = np.maximum(one.result.roc.far, floor), one.result.roc.tar
        kept = thinned(np.log10(far) / -math.log10(floor), (np.maximum(tar, bottom) - bottom) / (1 - bottom))
        traces.append(_curve(name, names.index(name), far[kept], tar[kept], "TAR %{y:.4f} at FAR %{x:.3g}"))
    layout = _layout("False accept rate (FAR)", "True accept rate (TAR)")
    layout["xaxis"] |= _log_axis(floor)
    layout["yaxis"] |= {"range": [bottom, 1 + 0.02 * (1 - bottom)], "tickformat": ".3~f"}
    layout["shapes"] = [_thin_evidence(figures, floor)]
    return {"data": [*traces, _marker()], "layout": layout, "height": 360}


def det_chart(figures: Mapping[str, SetFigures], names: Sequence[str]) -> Chart:
    """FRR over FAR, both logarithmic, one curve for each checkpoint; the last trace is the threshold's marker.

    Args:
        figures: By checkpoint.
        names: All checkpoints, in the order of their colours.
    """
    floor = _floor(figures)
    least = min(0.5 / one.result.num_genuine for one in figures.values())
    traces = []
    for name, one in figures.items():
        far, frr = np.maximum(one.result.roc.far, floor), np.maximum(1 - one.result.roc.tar, least)
        kept = thinned(np.log10(far) / -math.log10(floor), np.log10(frr) / -math.log10(least))
        traces.append(_curve(name, names.index(name), far[kept], frr[kept], "FRR %{y:.3g} at FAR %{x:.3g}"))
    layout = _layout("False accept rate (FAR)", "False reject rate (FRR)")
    layout["xaxis"] |= _log_axis(floor)
    layout["yaxis"] |= _log_axis(least)
    layout["shapes"] = [_thin_evidence(figures, floor)]
    return {"data": [*traces, _marker()], "layout": layout, "height": 360}


def thinned(x: Floats, y: Floats) -> npt.NDArray[np.intp]:
    """Points of a staircase of which a drawing shows no more: the first and the last of each cell of a fine grid.

    Args:
        x: In units of the chart's width, (N,).
        y: In units of its height, (N,).

    Returns:
        Indices, rising, with both ends.
    """
    cells = np.floor(np.stack([x, y]) * _CELLS)
    changes = np.flatnonzero(np.any(np.diff(cells, axis=1) != 0, axis=0))
    return np.unique(np.concatenate([[0], changes, changes + 1, [len(x) - 1]]))


def score_range(figures: Mapping[str, SetFigures]) -> tuple[float, float]:
    """The ends of the score axis: all scores of all checkpoints, rounded outwards to 0.02."""
    lowest = min(float(one.scores.min()) for one in figures.values())
    highest = max(float(one.scores.max()) for one in figures.values())
    return round(math.floor(lowest * 50 - 0.5) / 50, 2), round(math.ceil(highest * 50 + 0.5) / 50, 2)


def histogram(one: SetFigures, ends: tuple[float, float]) -> Chart:
    """Shares of genuine and of impostor pairs by score; the page draws the threshold into it.

    Args:
        one: A checkpoint's figures.
        ends: Of the score axis.
    """
    edges = np.linspace(*ends, _BINS + 1)
    traces = []
    for kind, chosen in (("impostor", ~one.pairs.genuine), ("genuine", one.pairs.genuine)):
        counts = np.histogram(one.scores[chosen], edges)[0]
        traces.append(
            {
                "type": "bar",
                "name": f"{kind} pairs",
                "x": _numbers((edges[1:] + edges[:-1]) / 2),
                "y": _numbers(counts / counts.sum()),
                "customdata": counts.tolist(),
                "width": (ends[1] - ends[0]) / _BINS,
                "marker": {"color": f"--{kind}", "line": {"width": 0}},
                "opacity": 0.72,
                "hovertemplate": f"%{{customdata:,}} {kind} pairs<br>around %{{x:.3f}}<extra></extra>",
            }
        )
    layout = _layout("Cosine similarity", "Share of pairs")
    layout["xaxis"] |= {"range": list(ends), "showgrid": False}
    layout["yaxis"] |= {"tickformat": ".0%", "rangemode": "tozero", "nticks": 5}
    layout |= {"barmode": "overlay", "bargap": 0, "showlegend": False, "dragmode": False}
    return {"data": traces, "layout": layout, "height": 280}


def step_chart(lines: Sequence[tuple[str, int, int, Logged, Logged | None]], logarithmic: bool = False) -> Chart:
    """A logged figure over the steps.

    Args:
        lines: For each line its name, colour, dash, values and, if known, their standard errors.
        logarithmic: Whether the values' axis is.
    """
    traces = []
    for name, colour, dash, logged, errors in lines:
        trace = {
            "type": "scatter",
            "mode": "lines+markers" if len(logged.steps) < 30 else "lines",
            "name": plain(name),
            "x": logged.steps,
            "y": [value if math.isfinite(value) else None for value in logged.values],
            "line": {"color": f"--c{colour % COLOURS}", "width": 2, "dash": _DASHES[dash % len(_DASHES)]},
            "marker": {"size": 5},
            "hovertemplate": f"{plain(name)}<br>step %{{x:,}}: %{{y:.4~g}}<extra></extra>",
        }
        if errors is not None and errors.steps == logged.steps:
            trace["error_y"] = {"type": "data", "array": _numbers(errors.values), "width": 3, "thickness": 1}
        traces.append(trace)
    layout = _layout("", "")
    layout["xaxis"] |= {"tickformat": ",~s", "rangemode": "tozero", "nticks": 6}
    if logarithmic:
        layout["yaxis"] |= {"type": "log", "dtick": 1, "exponentformat": "power"}
    layout |= {"showlegend": False, "margin": {"l": 52, "r": 10, "t": 6, "b": 30}}
    return {"data": traces, "layout": layout, "height": 190}


def plain(text: str) -> str:
    """Text that plotly shows as it is, and takes for no tag of its own."""
    return html.escape(text, quote=False).encode("utf-8", "replace").decode()


def _floor(figures: Mapping[str, SetFigures]) -> float:
    """Where a FAR of 0 is drawn, which a logarithmic axis cannot show."""
    return min(0.5 / one.result.num_impostor for one in figures.values())


def _log_roc(one: SetFigures, floor: float) -> tuple[Floats, Floats]:
    return np.log10(np.maximum(one.result.roc.far, floor)), one.result.roc.tar


def _curve(name: str, number: int, x: Floats, y: Floats, hover: str) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": plain(name),
        "x": _numbers(x),
        "y": _numbers(y),
        "line": {
            "color": f"--c{number % COLOURS}",
            "width": 2.2,
            "shape": "hv",
            "dash": _DASHES[number // COLOURS % len(_DASHES)],
        },
        "hovertemplate": f"{hover}<extra>{plain(name)}</extra>",
    }


def _marker() -> dict[str, Any]:
    """Where the threshold lies on the curve; the page places it."""
    marker = {"size": 12, "color": "--c0", "line": {"width": 2.5, "color": "--ink"}}
    here = {"x": [], "y": [], "cliponaxis": False, "hovertemplate": "the threshold below<extra></extra>"}
    return {"type": "scatter", "mode": "markers", "marker": marker, **here}


def _thin_evidence(figures: Mapping[str, SetFigures], floor: float) -> dict[str, Any]:
    """FARs that fewer than three impostor pairs stand behind, shaded."""
    end = max(MIN_IMPOSTORS / one.result.num_impostor for one in figures.values())
    sides = {"x0": floor, "x1": min(1.0, end), "y0": 0, "y1": 1, "xref": "x", "yref": "paper"}
    return {"type": "rect", **sides, "fillcolor": "--shade", "line": {"width": 0}, "layer": "below"}


def _log_axis(floor: float) -> dict[str, Any]:
    return {"type": "log", "range": [math.log10(floor), 0], "dtick": 1, "exponentformat": "power"}


def _layout(x: str, y: str) -> dict[str, Any]:
    axis = {"gridcolor": "--grid", "linecolor": "--grid", "zeroline": False, "automargin": False, "fixedrange": True}
    return {
        "xaxis": {**axis, "title": {"text": x, "standoff": 8}},
        "yaxis": {**axis, "title": {"text": y, "standoff": 6}},
        "margin": {"l": 62, "r": 12, "t": 10, "b": 48},
        "font": {"family": "system-ui, sans-serif", "size": 12.5, "color": "--muted"},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "hoverlabel": {"bgcolor": "--card", "bordercolor": "--line", "font": {"color": "--ink"}},
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": "--muted", "activecolor": "--ink"},
        "showlegend": False,
        "dragmode": False,
    }


def _numbers(values: Any) -> list[float]:
    """Six digits, which no drawing can tell from all of them."""
    return [float(f"{value:.6g}") for value in np.asarray(values, np.float64).tolist()]
