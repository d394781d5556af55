"""What a training run left in its folder: logged figures by step, and its configurations."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from facelit.errors import FacelitError
from facelit.inference.run_folder import config_files

_NOT_SHOWN = ("hp_metric", "epoch", "step")


class Logged(NamedTuple):
    """A figure's values, in the order of the steps; a value may be NaN."""

    steps: list[int]
    values: list[float]


@dataclass(frozen=True)
class Run:
    """A run's folder, read.

    Attributes:
        folder: As the user named it.
        logged: Logged figures by name, such as `train/loss` and `lfw/accuracy`.
        configs: Name and text of its configuration, and of those of its resumed parts.
    """

    folder: Path
    logged: dict[str, Logged]
    configs: list[tuple[str, str]]

    @property
    def sets(self) -> list[str]:
        """The verification sets whose accuracy was logged."""
        return [name.removesuffix("/accuracy") for name in self.logged if re.fullmatch(r"(?!train/).+/accuracy", name)]


def is_run(folder: Path) -> bool:
    """Whether `fit` logged into this folder."""
    return bool(_event_files(folder) or _tables(folder))


def read_run(folder: Path) -> Run:
    """Reads a run's logs, TensorBoard's or CSV, and its configurations.

    Args:
        folder: The folder that holds `checkpoints/` and `config.yaml`.

    Raises:
        FacelitError: Nothing was logged, or a file cannot be read.
    """
    found: dict[str, dict[int, float]] = {}
    try:
        for name, step, value in [*_from_tables(folder), *_from_events(folder)]:
            found.setdefault(name, {})[step] = value  # a resumed run logs some steps again: the later value counts
        configs = [(path.name, path.read_text(encoding="utf-8", errors="replace")) for path in config_files(folder)]
    except OSError as error:
        raise FacelitError(f"{folder}: cannot read this run's logs ({error.strerror or error}).") from None
    logged = {
        name: Logged(steps, [values[step] for step in steps])
        for name, values in sorted(found.items())
        if name not in _NOT_SHOWN and (steps := sorted(values))
    }
    if not logged:
        raise FacelitError(f"{folder}: this run has logged nothing yet; it was stopped before its first figures.")
    return Run(folder, logged, configs)


def _event_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("events.out.tfevents.*"))


def _tables(folder: Path) -> list[Path]:
    """What CSVLogger wrote, earlier starts first: `metrics-1.csv`, ..., `metrics.csv`."""

    def place(path: Path) -> float:
        number = re.search(r"-(\d+)$", path.stem)
        return int(number.group(1)) if number else math.inf

    return sorted(
        (path for path in folder.glob("metrics*.csv") if re.fullmatch(r"metrics(-\d+)?", path.stem)), key=place
    )


def _from_events(folder: Path) -> Iterator[tuple[str, int, float]]:
    if not _event_files(folder):
        return
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    # 0 keeps all; the pictures that a run logs are not needed.
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 1, "tensors": 1})
    events.Reload()
    for name in events.Tags()["scalars"]:
        for event in sorted(events.Scalars(name), key=lambda event: event.wall_time):
            yield name, int(event.step), float(event.value)


def _from_tables(folder: Path) -> Iterator[tuple[str, int, float]]:
    for path in _tables(folder):
        with path.open(encoding="utf-8", errors="replace", newline="") as file:
            for row in csv.DictReader(file):
                step = _number(row.get("step"))
                if step is None or not math.isfinite(step):
                    continue
                for name, text in row.items():
                    value = _number(text)
                    if isinstance(name, str) and value is not None:
                        yield name, int(step), value


def _number(text: object) -> float | None:
    try:
        return float(text) if isinstance(text, str) and text else None
    except ValueError:
        return None
