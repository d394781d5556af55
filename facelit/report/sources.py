"""What the user named: runs, checkpoints, and folders with scores of `facelit suites`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from facelit.errors import FacelitError
from facelit.inference.run_folder import parse_config, run_folder_of
from facelit.report.runs import Run, is_run, read_run
from facelit.verification.scored_pairs import ScoredPairs

ABOUT = "about.json"
_SUITES = "facelit suites"
_SCORES = "-scores.tsv"


@dataclass(frozen=True)
class Measured:
    """A checkpoint's scores.

    Attributes:
        name: What the page calls it.
        place: The folder that they were read from.
        about: What that folder says of the checkpoint.
        sets: Its scores by verification set.
        groups: What is known of groups of people, by set.
    """

    name: str
    place: Path
    about: dict[str, Any]
    sets: dict[str, ScoredPairs]
    groups: dict[str, Any] = field(default_factory=dict)

    def missing_pairs(self, name: str) -> int:
        """Pairs of a set that were left out, as their images are absent."""
        entry = self.about.get("sets", {}).get(name)
        count = entry.get("missing_pairs") if isinstance(entry, dict) else None
        return count if isinstance(count, int) else 0


@dataclass(frozen=True)
class Found:
    """Everything that the page is about."""

    measured: list[Measured]
    runs: list[Run]


def find(named: Sequence[str]) -> Found:
    """Reads what the user named.

    Args:
        named: Folders of runs, folders that `facelit suites` wrote (whole, or one checkpoint's), and checkpoint files.

    Raises:
        FacelitError: One of them is not there, is none of these, or a checkpoint has no scores.
    """
    runs: dict[Path, Run] = {}
    scores: dict[Path, Measured] = {}
    paths = [Path(name) for name in named]
    for path in paths:
        if not path.exists():
            raise FacelitError(
                f"{path} does not exist. Name a run's folder, a checkpoint, or a folder that `{_SUITES}` wrote."
            )
        if not path.is_dir():
            continue
        folders = list(_score_folders(path))
        if is_run(path):
            run = runs.setdefault(path.resolve(), read_run(path))
            tables = _run_scores(run)
            if tables:
                scores[path.resolve()] = Measured(str(path), path, {}, tables)
        elif not folders:
            raise FacelitError(_not_ours(path))
        for folder in folders:
            scores.setdefault(folder.resolve(), _read(folder))
    for path in paths:
        if path.is_file():
            _add_checkpoint(path, paths, scores, runs)
    return Found(_with_distinct_names(list(scores.values())), list(runs.values()))


def _score_folders(folder: Path) -> Iterator[Path]:
    """The folders with a checkpoint's scores: this one, or those in it."""
    try:
        inside = sorted(path for path in folder.iterdir() if path.is_dir())
    except OSError as error:
        raise FacelitError(f"{folder}: cannot list this folder ({error.strerror or error}).") from None
    for path in (folder, *inside):
        if (path / ABOUT).is_file() and any(path.glob("*.npz")):
            yield path


def _read(folder: Path) -> Measured:
    about = _json(folder / ABOUT)
    if not isinstance(about, dict) or not isinstance(about.get("sets", {}), dict):
        raise FacelitError(f"{folder / ABOUT}: this is not what `{_SUITES}` writes there. Run it again.")
    order = list(about.get("sets", {}))  # in which they were measured
    paths = sorted(
        folder.glob("*.npz"), key=lambda path: (order.index(path.stem) if path.stem in order else len(order), path)
    )
    sets = {path.stem: ScoredPairs.load(path) for path in paths}
    groups = {name: _json(path) for name in sets if (path := folder / f"{name}.groups.json").is_file()}
    return Measured(folder.resolve().name, folder, about, sets, groups)


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FacelitError(f"{path}: cannot read this file ({error.strerror or error}).") from None
    except (ValueError, RecursionError):
        raise FacelitError(f"{path}: this is not JSON, or it is damaged. Run `{_SUITES}` again.") from None


def _add_checkpoint(path: Path, named: Sequence[Path], scores: dict[Path, Measured], runs: dict[Path, Run]) -> None:
    """Adds a checkpoint file's run, and its scores unless a folder that was named holds them."""
    if path.suffix == ".npz":
        raise FacelitError(f"{path}: name the folder that it lies in ({path.parent}).")
    run = run_folder_of(path)
    if is_run(run) and run.resolve() not in runs:
        runs[run.resolve()] = read_run(run)
    beside = [folder / "suites" for folder in (path.parent, run, Path())]
    folders = [found for folder in (*named, *beside) if folder.is_dir() for found in _score_folders(folder)]
    for folder in folders:
        if _is_of(_json(folder / ABOUT), path):
            scores.setdefault(folder.resolve(), _read(folder))
            return
    raise FacelitError(
        f"{path}: there are no scores of this checkpoint. Measure it (`facelit suites {path} --config"
        f" configs/suites.yaml --out suites`), then"
        f" `facelit report suites`."
    )


def _is_of(about: Any, checkpoint: Path) -> bool:
    named = about.get("checkpoint") if isinstance(about, dict) else None
    return isinstance(named, str) and Path(named).resolve() == checkpoint.resolve()


def _with_distinct_names(measured: list[Measured]) -> list[Measured]:
    """Checkpoints of one name are called by their folders."""
    names = [one.name for one in measured]
    return [
        Measured(str(one.place), one.place, one.about, one.sets, one.groups) if names.count(one.name) > 1 else one
        for one in measured
    ]


def _not_ours(folder: Path) -> str:
    inside = sorted(path for pattern in ("*", "*/*") for path in folder.glob(pattern) if path.is_dir() and is_run(path))
    if inside:
        return f"{folder} holds {len(inside)} run{'s' if len(inside) > 1 else ''}: name them, such as {inside[-1]}."
    if folder.name == "checkpoints" and is_run(folder.parent):
        return f"{folder}: name the run's folder, {folder.parent}, or one checkpoint in it."
    return f"{folder} is neither the folder of a run (no logs in it) nor one that `{_SUITES}` wrote (no {ABOUT} with .npz)."


def _run_scores(run: Run) -> dict[str, ScoredPairs]:
    """The scores that a run with `verification.save_scores` keeps of its last validation."""
    found = {}
    for path in sorted(run.folder.glob(f"*{_SCORES}")):
        name = path.name.removesuffix(_SCORES)
        found[name] = _read_table(path, name, _root_of(run, name))
    return found


def _read_table(path: Path, name: str, root: str | None) -> ScoredPairs:
    try:
        lines = path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        rows = [line.split("\t") for line in lines[1:]]
        folds, kinds, scores = (np.array([row[column] for row in rows]) for column in range(3))
        first, second = ([row[column] for row in rows] for column in (3, 4))
        prefix = f"{root}/"
        if root is not None and all(image.startswith(prefix) for image in (*first, *second)):
            first, second = ([image.removeprefix(prefix) for image in images] for images in (first, second))
        else:
            root = None
        return ScoredPairs(name, scores.astype(np.float32), kinds == "1", folds.astype(np.int64), first, second, root)
    except OSError as error:
        raise FacelitError(f"{path}: cannot read this file ({error.strerror or error}).") from None
    except (ValueError, IndexError):
        raise FacelitError(f"{path}: this is not a table of scores as validation writes it. Move it away.") from None
    except FacelitError as error:
        raise FacelitError(f"{path}: {error}") from None


def _root_of(run: Run, name: str) -> str | None:
    """The folder of a set's images, where the run's configuration names one."""
    for _, text in reversed(run.configs):
        value: Any = parse_config(text)
        for key in ("data", "verification", name, "init_args", "root"):
            value = value.get(key) if isinstance(value, dict) else None
        if isinstance(value, str):
            return value.rstrip("/")
    return None
