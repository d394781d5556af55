"""Several checkpoints side by side: accuracies, and whether the better one is better."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from pathlib import Path

from facelit.errors import FacelitError
from facelit.report.markup import card, dot, row, section, table, text
from facelit.report.set_figures import SetFigures
from facelit.report.sources import Measured
from facelit.verification.paired_test import PairedTest, compare

Sets = Mapping[str, Mapping[str, SetFigures]]
"""Figures by set, and by checkpoint."""


def summary_section(sets: Sets, names: list[str]) -> str:
    """The accuracy of every checkpoint on every set, and their averages.

    Args:
        sets: At least one.
        names: The checkpoints, in the order of their colours.
    """
    rows = [
        row(f'<a href="#set-{number}">{text(name)}</a>', _accuracies(sets[name], names))
        for number, name in enumerate(sets)
    ]
    if len(sets) > 1:
        rows.append(row("Average", _averages(sets, names), "total"))
    head = ["Accuracy", *(dot(name, number) for number, name in enumerate(names))]
    note = "Mean over the folds, ± its standard error. Each fold is judged at the threshold that is best on the other folds."
    tests = _tests_card(sets, names) if len(names) > 1 else ""
    return section("summary", "Summary", "", card(table(head, rows) + f'<p class="note">{note}</p>') + tests)


def _accuracies(by_name: Mapping[str, SetFigures], names: list[str]) -> list[str]:
    highest = max(one.result.accuracy for one in by_name.values())
    cells = []
    for name in names:
        if name not in by_name:
            cells.append('<span class="small">not measured</span>')
            continue
        result = by_name[name].result
        best = ' class="best"' if len(by_name) > 1 and result.accuracy == highest else ""
        cells.append(f"<span{best}>{result.accuracy:.4f}</span><small>± {result.accuracy_se:.4f}</small>")
    return cells


def _averages(sets: Sets, names: list[str]) -> list[str]:
    """Of those that were measured on all sets: others' averages are of something else."""
    whole = {name: [one[name].result.accuracy for one in sets.values() if name in one] for name in names}
    return [
        f"{sum(found) / len(found):.4f}" if len(found) == len(sets) else '<span class="small">sets are absent</span>'
        for found in whole.values()
    ]


def paired_tests(sets: Sets, names: list[str]) -> list[tuple[str, str, str, PairedTest]]:
    """McNemar's test of every two checkpoints on every set that both were measured on.

    Raises:
        FacelitError: They were not measured on the same pairs.
    """
    found = []
    for set_name, by_name in sets.items():
        for a, b in combinations([name for name in names if name in by_name], 2):
            try:
                found.append((set_name, a, b, compare(by_name[a].pairs, by_name[b].pairs)))
            except FacelitError:
                sizes = [len(by_name[name].pairs) for name in (a, b)]
                raise FacelitError(
                    f"{set_name}: {a} ({sizes[0]:,} pairs) and {b} ({sizes[1]:,}) were not measured on the same pairs. Measure both with"
                    " one `facelit suites`, or report on one at a time."
                ) from None
    return found


def _tests_card(sets: Sets, names: list[str]) -> str:
    rows = []
    for set_name, a, b, test in paired_tests(sets, names):
        better = (a, b)[test.difference < 0]
        if not test.difference:
            verdict = "equally good"
        elif test.significant:
            verdict = f'<span class="yes">{dot(better, names.index(better))} is better</span>'
        else:
            verdict = "may be chance"
        compared = [dot(one, names.index(one)) for one in (a, b)] if len(names) > 2 else []
        counts = [f"{test.only_a:,}", f"{test.only_b:,}", f"{test.difference:+.4f}", _p_value(test.p_value)]
        rows.append(row(text(set_name), [*compared, verdict, *counts]))
    if not rows:
        return ""
    two = len(names) == 2
    only = (
        [f"only {dot(name, number)} right" for number, name in enumerate(names)]
        if two
        else ["only A right", "only B right"]
    )
    head = ["Set", *([] if two else ["A", "B"]), "Verdict at 5 %", *only, "Difference of accuracy", "p"]
    note = (
        "McNemar's test: pairs that both decide alike say nothing; of the others, chance would give each half. Pairs count as"
        " independent; where they share people the test is too sure. The p-values are not adjusted for their number."
    )
    return card(f'<h3>Is the better one better?</h3>{table(head, rows)}<p class="note">{note}</p>')


def _p_value(p: float) -> str:
    if p >= 0.001:
        return f"{p:.3f}"
    return f"{p:.0e}" if p else "< 1e-300"  # below what a float holds


def about_card(measured: list[Measured]) -> str:
    """What is known of each checkpoint's scores."""
    parts = []
    for number, one in enumerate(measured):
        facts = {name: value for name, value in one.about.items() if name not in ("sets", "facelit")}
        if isinstance(facts.get("checkpoint"), str):
            facts["checkpoint"] = _near(Path(facts["checkpoint"]))
        items = "".join(
            f"<dt>{text(name.replace('_', ' '))}</dt><dd>{text({True: 'yes', False: 'no'}[value] if isinstance(value, bool) else value)}</dd>"
            for name, value in {"scores": one.place, **facts}.items()
        )
        parts.append(f"<h4>{dot(one.name, number)}</h4><dl>{items}</dl>")
    return card("<details><summary>What was measured</summary>" + "".join(parts) + "</details>")


def _near(path: Path) -> str:
    """A path below the current folder; of one elsewhere its name alone, so that a page tells nobody of its writer's folders."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else path.name
