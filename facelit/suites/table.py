"""Several checkpoints on several sets: a table to read, a TSV and a JSON."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping
from itertools import combinations
from typing import Any

from facelit.verification.paired_test import PairedTest, compare
from facelit.verification.protocol import FAR_TARGETS, VerificationResult
from facelit.verification.scored_pairs import ScoredPairs

Results = Mapping[str, Mapping[str, VerificationResult]]
"""By checkpoint, then by set; the same sets for all."""

Comparisons = list[tuple[str, str, str, PairedTest]]
"""Set, the two checkpoints, and the test."""


def table_lines(results: Results) -> list[str]:
    """Accuracy, AUC and TAR at FAR: a row for each set and the average, a column for each checkpoint."""
    sections: list[tuple[str, Callable[[VerificationResult], str], Callable[[VerificationResult], float | None]]] = [
        ("accuracy ± SE", lambda one: f"{one.accuracy:.4f} ± {one.accuracy_se:.4f}", lambda one: one.accuracy),
        ("AUC", lambda one: f"{one.auc:.4f}", lambda one: one.auc),
    ]
    for target in FAR_TARGETS:
        sections.append((f"TAR at FAR <= {target:g}", _tar_text(target), _tar(target)))
    sets = list(next(iter(results.values())))
    left = max(len(title) for title, _, _ in sections)
    left = max(left, *(len(name) + 2 for name in sets))
    widths = {name: max(len(name), len("0.0000 ± 0.0000")) for name in results}
    lines = []
    for number, (title, text, value) in enumerate(sections):
        heads = [f"{name:<{width}}" if not number else " " * width for name, width in widths.items()]
        lines.append("  ".join([f"{title:<{left}}", *heads]).rstrip())
        for name in sets:
            cells = [f"{text(results[one][name]):<{width}}" for one, width in widths.items()]
            lines.append("  ".join([f"{'  ' + name:<{left}}", *cells]).rstrip())
        if len(sets) > 1:
            averages = [average([value(one) for one in results[name].values()]) for name in results]
            cells = [f"{_number(mean):<{width}}" for mean, width in zip(averages, widths.values(), strict=True)]
            lines.append("  ".join([f"{'  average':<{left}}", *cells]).rstrip())
    return lines


def average(values: list[float | None]) -> float | None:
    """The plain mean over sets; None where one of them has no such figure."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def _tar(target: float) -> Callable[[VerificationResult], float | None]:
    return lambda result: point.tar if (point := result.tar_at_far.get(target)) else None


def _tar_text(target: float) -> Callable[[VerificationResult], str]:
    return lambda result: _number(_tar(target)(result))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def compare_all(scores: Mapping[str, Mapping[str, ScoredPairs]]) -> Comparisons:
    """McNemar's test on each set, for every two checkpoints.

    Args:
        scores: By checkpoint, then by set.
    """
    sets = list(next(iter(scores.values())))
    return [
        (name, a, b, compare(scores[a][name], scores[b][name])) for a, b in combinations(scores, 2) for name in sets
    ]


def comparison_lines(comparisons: Comparisons) -> list[str]:
    """A sentence for each test."""
    width = max(len(name) for name, *_ in comparisons)
    lines = ["McNemar's test, each pair judged with the threshold of the other folds:"]
    lines += [f"  {name:<{width}}  {test.sentence(a, b)}" for name, a, b, test in comparisons]
    if len(comparisons) > 2:
        lines.append(f"  Of {len(comparisons)} tests, about one in 20 has p < 0.05 by chance.")
    return lines


def figures_of(result: VerificationResult) -> dict[str, float | int | None]:
    """A set's figures by name, in the order of the TSV's columns; None where there is none."""
    figures: dict[str, float | int | None] = {
        "genuine": result.num_genuine,
        "impostor": result.num_impostor,
        "folds": result.num_folds,
        "accuracy": result.accuracy,
        "accuracy_se": result.accuracy_se,
        "auc": result.auc,
        "eer": result.eer,
        "threshold": result.best_threshold if math.isfinite(result.best_threshold) else None,
    }
    for target in FAR_TARGETS:
        figures[f"tar_at_far_{target:g}"] = _tar(target)(result)
    return figures


def as_tsv(results: Results) -> str:
    """One row for each checkpoint and set; no value is an empty field."""
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    for number, (checkpoint, name, result) in enumerate(
        (checkpoint, name, result) for checkpoint, sets in results.items() for name, result in sets.items()
    ):
        figures = figures_of(result)
        if not number:
            writer.writerow(["checkpoint", "set", *figures])
        writer.writerow([checkpoint, name, *("" if value is None else value for value in figures.values())])
    return text.getvalue()


def as_dict(results: Results, comparisons: Comparisons, absent: Mapping[str, str]) -> dict[str, Any]:
    """Everything as plain values: "checkpoints" (figures by set, and the averages), "comparisons" and "absent" sets."""
    checkpoints = {}
    for checkpoint, sets in results.items():
        figures = {name: figures_of(result) for name, result in sets.items()}
        averaged = {
            key: average([one[key] for one in figures.values()])
            for key in next(iter(figures.values()))
            if key.startswith(("accuracy", "auc", "tar")) and key != "accuracy_se"
        }
        checkpoints[checkpoint] = {"sets": figures, "average": averaged}
    return {
        "checkpoints": checkpoints,
        "comparisons": [{"set": name, "a": a, "b": b, **test._asdict()} for name, a, b, test in comparisons],
        "absent": dict(absent),
    }
