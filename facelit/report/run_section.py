"""The runs' part of the page: validation figures, training curves, configurations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from facelit.inference.run_folder import parse_config
from facelit.report.charts import Chart, step_chart
from facelit.report.markup import card, chart, dot, legend, row, section, table, text
from facelit.report.runs import Run

_COLUMNS = ("accuracy", "auc", "eer", "tar_at_far_1e-2", "tar_at_far_1e-3", "threshold")
_NAMES = {"auc": "AUC", "eer": "EER", "tar_at_far_1e-2": "TAR at FAR 1e-2", "tar_at_far_1e-3": "TAR at FAR 1e-3"}
"""Of figures that are not called what they are logged as."""
_FIRST = ("train/loss", "train/identity_accuracy", "lr")
_NO_CHART = ("accuracy_se", "missing_pairs")
_MOST_DIFFERENCES = 200


def runs_section(runs: Sequence[Run]) -> tuple[str, dict[str, Chart]]:
    """The HTML of the runs, and their charts by name."""
    charts: dict[str, Chart] = {}
    names = [str(run.folder) for run in runs]
    parts = [legend(names, range(len(names))), _validation_card(runs, charts), _training_card(runs, charts)]
    if len(runs) > 1:
        parts.append(_differences(runs))
    parts += [_configs(run) for run in runs]
    note = text(names[0]) if len(runs) == 1 else f"{len(runs)} runs"
    return section("training", "Training", note, "".join(parts)), charts


def without_validation(run: Run) -> str:
    """The remark on a run that measured no verification set."""
    return f"{run.folder}: this run measured no verification set: its training curves are shown alone. `facelit suites` measures its checkpoints."


def _validation_card(runs: Sequence[Run], charts: dict[str, Chart]) -> str:
    measured = [run for run in runs if run.sets]
    remarks = "".join(f'<p class="note">{text(without_validation(run))}</p>' for run in runs if not run.sets)
    if not measured:
        return card(f"<h3>Validation</h3>{remarks}")
    rows = []
    for number, run in enumerate(runs):
        for name in run.sets:
            accuracy = run.logged[f"{name}/accuracy"]
            best = accuracy.steps[max(range(len(accuracy.values)), key=lambda place: accuracy.values[place])]
            kinds = (
                {"best": best, "last": accuracy.steps[-1]} if best != accuracy.steps[-1] else {"best and last": best}
            )
            for kind, step in kinds.items():
                head = f"{dot(name, number) if len(runs) > 1 else text(name)}<small> {kind}, step {step:,}</small>"
                rows.append(row(head, [_at(run, f"{name}/{figure}", step) for figure in _COLUMNS]))
    figures = {
        name.rpartition("/")[2]
        for run in runs
        for each in run.sets
        for name in run.logged
        if name.startswith(f"{each}/")
    }
    drawn = [
        figure
        for figure in dict.fromkeys((*_COLUMNS, *sorted(figures)))
        if figure in figures and figure not in _NO_CHART
    ]
    boxes = []
    for figure in drawn:
        lines = [
            (
                f"{each}, {run.folder}" if len(runs) > 1 else each,
                *_colour(number, place, len(runs)),
                run.logged[key],
                run.logged.get(f"{key}_se"),
            )
            for number, run in enumerate(runs)
            for place, each in enumerate(run.sets)
            if (key := f"{each}/{figure}") in run.logged
        ]
        boxes.append(_chart_box(charts, f"validation {figure}", _NAMES.get(figure, figure), step_chart(lines)))
    sets = list(dict.fromkeys(each for run in runs for each in run.sets))
    key = legend(sets, range(len(sets))) if len(runs) == 1 else ""
    return card(
        f"<h3>Validation</h3>{table(['Set', *(_NAMES.get(name, name) for name in _COLUMNS)], rows)}{remarks}{key}<div class='charts'>{''.join(boxes)}</div>"
    )


def _colour(run: int, each: int, runs: int) -> tuple[int, int]:
    """Colour and dash: colours tell runs apart, or a single run's sets."""
    return (run, each) if runs > 1 else (each, 0)


def _at(run: Run, key: str, step: int) -> str:
    logged = run.logged.get(key)
    if logged is None or step not in logged.steps:
        return "–"
    value = f"{logged.values[logged.steps.index(step)]:.4f}"
    errors = run.logged.get(f"{key}_se")
    return (
        value
        if errors is None or step not in errors.steps
        else f"{value}<small>± {errors.values[errors.steps.index(step)]:.4f}</small>"
    )


def _training_card(runs: Sequence[Run], charts: dict[str, Chart]) -> str:
    validated = {f"{each}/" for run in runs for each in run.sets}
    names = sorted(
        {name for run in runs for name in run.logged if not any(name.startswith(each) for each in validated)}
    )
    ordered = [name for name in _FIRST if name in names] + [name for name in names if name not in _FIRST]
    boxes = []
    for name in ordered:
        lines = [
            (str(run.folder) if len(runs) > 1 else name, number, 0, run.logged[name], None)
            for number, run in enumerate(runs)
            if name in run.logged
        ]
        boxes.append(_chart_box(charts, f"training {name}", name, step_chart(lines)))
    return card(f'<h3>Curves</h3><div class="charts">{"".join(boxes)}</div>') if boxes else ""


def _chart_box(charts: dict[str, Chart], key: str, title: str, drawn: Chart) -> str:
    charts[key] = drawn
    return f"<div><h4>{text(title)}</h4>{chart(key, f'{title} over the steps')}</div>"


def _differences(runs: Sequence[Run]) -> str:
    """The options that the runs' latest configurations set differently."""
    flat = [_flat(parse_config(run.configs[-1][1])) if run.configs else {} for run in runs]
    keys = [key for key in sorted({key for one in flat for key in one}) if len({str(one.get(key)) for one in flat}) > 1]
    if not keys:
        return card("<h3>Configurations</h3><p>The runs' configurations are the same.</p>")
    rows = [row(text(key), [text(one.get(key, "–")) for one in flat]) for key in keys[:_MOST_DIFFERENCES]]
    more = f'<p class="note">and {len(keys) - _MOST_DIFFERENCES} more</p>' if len(keys) > _MOST_DIFFERENCES else ""
    head = ["Option", *(dot(str(run.folder), number) for number, run in enumerate(runs))]
    return card(f"<h3>Configurations: what differs</h3>{table(head, rows)}{more}")


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {name: value}
    found: dict[str, Any] = {}
    for key, inner in value.items():
        found |= _flat(inner, f"{name}.{key}" if name else str(key))
    return found


def _configs(run: Run) -> str:
    if not run.configs:
        return card(f'<p class="note">{text(run.folder)}: there is no config.yaml in this run\'s folder.</p>')
    return "".join(
        card(f"<details><summary>{text(run.folder / name)}</summary><pre>{text(content)}</pre></details>")
        for name, content in run.configs
    )
