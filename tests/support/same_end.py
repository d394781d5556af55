"""What two runs of one configuration must have in common at their ends, however often one of them was stopped."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

Curves = dict[str, list[tuple[int, float]]]

FEWER_OR_MORE = re.compile(r"config(-resumed-\d+)?\.yaml|metrics(-\d+)?\.csv|events\.out\.tfevents\..*")
"""Files of which each start of a run writes its own."""
COUNTED_SINCE = {"data/bad_images"}
"""Curves of what a run has ever met: one that has met it twice has it earlier. (The list itself is compared.)"""
NOT_RESTORED = {"loops", "current_score"}
"""Entries of a checkpoint that count what was done since the last start, or that Lightning writes and never reads."""


def differences(run: Path, expected: Path) -> list[str]:
    """Compares a run's folder with that of an uninterrupted run.

    Args:
        run: The folder of the run that was stopped.
        expected: The folder of the one that was not.

    Returns:
        A line for each difference; none where the stops have changed nothing.
    """
    return [
        *_files(run, expected),
        *_checkpoints(run, expected),
        *_curves("TensorBoard", shown_curves(run), shown_curves(expected)),
        *_curves("metrics.csv", csv_curves(run), csv_curves(expected)),
        *_configurations(run),
    ]


def doubled(run: Path) -> int:
    """Points of its curves that a run wrote again after a stop (one curve, as all are written together)."""
    points = _recorded(run).get("train/loss", [])
    return len(points) - len({step for step, _ in points})


def shown_curves(run: Path) -> Curves:
    """The curves as TensorBoard shows them: a start that logs a step takes back what earlier ones logged from there on."""
    return {name: _last_word(points) for name, points in _recorded(run).items()}


def csv_curves(run: Path) -> Curves:
    """The same, of all `metrics*.csv`: those of earlier starts are numbered from 1."""
    earlier = sorted(run.glob("metrics-*.csv"), key=lambda path: int(path.stem.partition("-")[2]))
    points: Curves = {}
    for path in [*earlier, *run.glob("metrics.csv")]:
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                for name, value in row.items():
                    if value and name != "step":
                        points.setdefault(name, []).append((int(row["step"]), float(value)))
    return {name: _last_word(of_name) for name, of_name in points.items()}


def _recorded(run: Path) -> Curves:
    events = EventAccumulator(str(run), size_guidance={"scalars": 0})  # type: ignore[no-untyped-call]
    events.Reload()  # type: ignore[no-untyped-call]
    return {
        name: [(point.step, point.value) for point in events.Scalars(name)]  # type: ignore[no-untyped-call]
        for name in events.Tags()["scalars"]  # type: ignore[no-untyped-call]
    }


def _last_word(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    kept: list[tuple[int, float]] = []
    for step, value in points:
        while kept and kept[-1][0] >= step:
            kept.pop()
        kept.append((step, value))
    return kept


def _curves(where: str, run: Curves, expected: Curves) -> Iterator[str]:
    for name in sorted({*run, *expected} - COUNTED_SINCE):
        now, then = dict(run.get(name, [])), dict(expected.get(name, []))
        lost, more = sorted(then.keys() - now.keys()), sorted(now.keys() - then.keys())
        other = [step for step in sorted(now.keys() & then.keys()) if now[step] != then[step]]
        for what, steps in (("lost at", lost), ("too many, at", more), ("other figures at", other)):
            if steps:
                yield f"{where}: {name}: {what} {len(steps)} steps, of which the first is {steps[0]}"


def _files(run: Path, expected: Path) -> Iterator[str]:
    now, then = (
        {path.relative_to(top).as_posix() for path in top.rglob("*") if path.is_file()} for top in (run, expected)
    )
    for name in sorted(now ^ then):
        if not FEWER_OR_MORE.fullmatch(name):
            yield f"files: {name} is {'left over' if name in now else 'missing'}"
    for name in sorted(now & then):
        if (
            name.endswith((".png", ".tsv", "hparams.yaml"))
            and (run / name).read_bytes() != (expected / name).read_bytes()
        ):
            yield f"files: {name} differs"


def _checkpoints(run: Path, expected: Path) -> Iterator[str]:
    for path in sorted((expected / "checkpoints").glob("*.ckpt")):
        other = run / "checkpoints" / path.name
        if other.is_file():
            then, now = _leaves(path), _leaves(other)
            found = [key for key in sorted({*then, *now}) if not _equal(now.get(key), then.get(key))]
            if found:
                yield f"{path.name}: {len(found)} of {len(then)} entries differ, for example {', '.join(found[:3])}"


def _configurations(run: Path) -> Iterator[str]:
    for path in sorted(run.glob("config*.yaml")):
        if "trainer" not in (yaml.safe_load(path.read_text()) or {}):
            yield f"files: {path.name} is not whole"


def _leaves(path: Path) -> dict[str, Any]:
    content, own = torch.load(path, weights_only=True), path.parent.parent.name
    leaves = _flatten({key: value for key, value in content.items()})
    return {key: "RUN" if isinstance(value, str) and value == own else value for key, value in leaves}


def _flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if key in NOT_RESTORED:
                continue
            yield from _flatten(inner, f"{prefix}/{_without_folder(str(key))}")
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from _flatten(inner, f"{prefix}/{number}")
    else:
        yield prefix, _without_folder(value) if isinstance(value, str) else value


def _without_folder(text: str) -> str:
    return re.sub(r"/\S*/checkpoints\b", "RUN/checkpoints", text)


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return torch.equal(one, other)
    return type(one) is type(other) and bool(one == other)
