"""`--run_name NAME`: the identity of a run that its restarts share, and `--ckpt_path auto`, which goes on with it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import torch.distributed as dist
from jsonargparse import Namespace
from pytorch_lightning import Trainer
from pytorch_lightning.utilities.rank_zero import rank_zero_info, rank_zero_warn

from facelit.callbacks import LastCheckpoint
from facelit.checkpoints import read_checkpoint
from facelit.distributed import world_size
from facelit.errors import FacelitError
from facelit.lightning import is_first_process

AUTO = "auto"


def use_run(config: Namespace, command: str) -> None:
    """Sends a named run's logs into a folder of that name, and resolves `--ckpt_path auto`.

    Args:
        config: The configuration of the subcommand, which is changed.
        command: `fit`, `validate`, `test` or `predict`.

    Raises:
        FacelitError: The name cannot be a folder's, the loggers have no folder, a new run would write into an old one, or
            `auto` is asked for without a name.
    """
    if config.run_name is None:
        if config.ckpt_path == AUTO:
            raise FacelitError("--ckpt_path auto goes on with the run of a name: add --run_name NAME.")
        return
    name = config.run_name
    if name.strip() in ("", ".", "..") or set(name) & set("/\\"):
        raise FacelitError(f"--run_name {name!r}: the name becomes a folder's, and must be one word without slashes.")
    folder = _name_loggers(config, name)
    last = Path(config.checkpoint.dirpath or folder / "checkpoints") / "last.ckpt"
    if config.ckpt_path == AUTO:
        found = next(iter(_newest_first(last)), None)
        config.ckpt_path = None if found is None else str(found)
        if found is None and command != "fit":
            raise FacelitError(f"--ckpt_path auto: the run {name} has no checkpoint yet ({last}).")
        rank_zero_info(f"Going on from {found}" if found else f"Starting the run {name}: it has no {last}")
    elif (
        config.ckpt_path is None
        and command == "fit"
        and not config.checkpoint.dirpath
        and (kept := _newest_first(last))
    ):
        raise FacelitError(
            f"--run_name {name}: there is a run of this name ({kept[0]}). Go on with it (--ckpt_path auto), or choose another."
        )
    elif config.ckpt_path == "last":
        config.ckpt_path = str(last)
    if is_first_process():
        for logger in _loggers(config):
            if _kind(logger) == "CSVLogger":
                _keep_metrics(runs_folder(logger.init_args) / name)


def refuse_other_run(config: Namespace, checkpoint: Mapping[str, Any]) -> None:
    """Several runs may have been told to keep their checkpoints in one folder: `auto` goes on with its own only.

    Args:
        config: The configuration of the subcommand, with the checkpoint that `auto` stands for.
        checkpoint: Its content.

    Raises:
        FacelitError: It is another run's.
    """
    other = LastCheckpoint.run_of(checkpoint)
    if config.checkpoint.dirpath and other not in (None, config.run_name):
        raise FacelitError(
            f"--ckpt_path auto: {config.ckpt_path} is of the run {other}, not of {config.run_name}. Give each run a folder of its own"
            f" (--checkpoint.dirpath); to go on with that one under another name: --ckpt_path {config.ckpt_path}"
        )


def keep_other_run(folders: Sequence[Path]) -> None:
    """Refuses a new run in a folder of checkpoints that has another run's `last.ckpt`, which it would replace.

    Raises:
        FacelitError: There is one.
    """
    for last in (folder / "last.ckpt" for folder in folders):
        if last.is_file():
            raise FacelitError(
                f"{last}: is what an earlier run would go on from, and a new run would replace it. Go on with that one"
                " (--ckpt_path last), name another folder (--checkpoint.dirpath FOLDER), or delete the file."
            )


def runs_folder(options: Namespace) -> Path:
    """Where a TensorBoard or CSV logger of these options keeps a folder for each run."""
    return Path(options.save_dir, options.get("name", "lightning_logs") or "")


def newest_complete(path: str) -> tuple[str, dict[str, Any]]:
    """Reads the checkpoint that `auto` has found; where it is damaged, the newest of the run's others that is not.

    Returns:
        The path of the one that was read, and what is in it.

    Raises:
        FacelitError: None can be read; it says what is wrong with the newest.
    """
    try:
        return path, read_checkpoint(path)
    except FacelitError as error:
        damage = error
    for other in _newest_first(Path(path))[1:]:
        with suppress(FacelitError):
            checkpoint = read_checkpoint(other)
            rank_zero_warn(f"{damage} Going on from an earlier one: {other}")
            return str(other), checkpoint
    raise FacelitError(f"{damage} The run has no other. Move it away, and the same command starts the run anew.")


def _newest_first(last: Path) -> list[Path]:
    """The checkpoints that a run may go on from: `last.ckpt`, if it is there, then those that it has kept as its best."""
    others = [path for path in last.parent.glob("*.ckpt") if path.name != last.name and path.is_file()]
    return [*([last] if last.exists() else []), *sorted(others, key=lambda path: path.stat().st_mtime, reverse=True)]


def newest_run_only(which: str, folders: Sequence[Path]) -> None:
    """Refuses to take an older run's checkpoint for that of the newest, which was stopped before it saved one.

    Args:
        which: `last` or `best`.
        folders: The runs' folders of checkpoints.

    Raises:
        FacelitError: The newest run has no `last.ckpt`, and another has.
    """
    starts = {folder: _first_start(folder.parent) for folder in folders}
    newest = max(starts, key=lambda folder: starts[folder], default=None)
    saved = [folder / "last.ckpt" for folder in folders if (folder / "last.ckpt").is_file()]
    if newest is None or not saved or (newest / "last.ckpt").is_file() or starts[newest] == 0:
        return
    older = max(saved, key=lambda path: path.stat().st_mtime)
    if older.stat().st_mtime > starts[newest]:
        return
    raise FacelitError(
        f"--ckpt_path {which}: the newest run, {newest.parent}, was stopped before it saved a checkpoint. Start it again without"
        f" --ckpt_path, or name the older run's: --ckpt_path {older}"
    )


def _first_start(run: Path) -> float:
    """When a run was started, in seconds; 0 for one that went on with another's checkpoint, and may have been refused."""
    config = run / "config.yaml"
    if not config.is_file() or re.search(r"^ckpt_path: (?!null)", config.read_text(encoding="utf-8"), re.MULTILINE):
        return 0.0
    return config.stat().st_mtime


def compare_checkpoints(trainer: Trainer) -> None:
    """Makes sure that all processes go on from one checkpoint, or all start anew; call it on every process.

    Raises:
        FacelitError: On every process: their machines do not share the run's folder.
    """
    if world_size() == 1:
        return
    seen: list[Any] = [None] * world_size()
    dist.all_gather_object(seen, _identity(trainer.ckpt_path))
    for number, other in enumerate(seen):
        if other != seen[0]:
            raise FacelitError(
                f"the processes of this run do not see the same checkpoint: process 0 has {_shown(seen[0])}, process {number} has"
                f" {_shown(other)}. A run over several machines goes on in a folder that all of them share (the logger's save_dir)."
            )


def _identity(path: Any) -> tuple[str, int, int] | None:
    if path is None:
        return None
    status = Path(path).stat()
    return Path(path).name, status.st_size, status.st_mtime_ns


def _shown(identity: tuple[str, int, int] | None) -> str:
    return "none" if identity is None else f"{identity[0]} of {identity[1]:,} bytes"


def _name_loggers(config: Namespace, name: str) -> Path:
    """Sets the loggers' version; the folder of the first one is the run's."""
    folder: Path | None = None
    for logger in _loggers(config):
        if _kind(logger) not in ("TensorBoardLogger", "CSVLogger"):
            if folder is None:
                break
            continue
        options = logger.init_args
        options.version = name
        folder = folder or runs_folder(options) / name
    if folder is None:
        raise FacelitError(
            "--run_name needs a TensorBoardLogger or a CSVLogger as (first) trainer.logger: the run's folder is its."
        )
    return folder


def _loggers(config: Namespace) -> list[Any]:
    loggers = config.trainer.logger
    return loggers if isinstance(loggers, list) else [loggers]


def _kind(logger: Any) -> str:
    return str(getattr(logger, "class_path", "")).rpartition(".")[2]


def _keep_metrics(folder: Path) -> None:
    """A CSV logger deletes the `metrics.csv` that it finds: the earlier starts' become `metrics-1.csv`, ..."""
    path = folder / "metrics.csv"
    if path.is_file():
        later = (path.with_name(f"metrics-{number}.csv") for number in count(1))
        path.rename(next(name for name in later if not name.exists()))
