"""Where the runs of a configuration, and their checkpoints, lie."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from facelit.cli.run_name import runs_folder


def first_logger(config: Namespace) -> Any:
    """The configured logger; the first of several, whose folder is the run's."""
    logger = config.trainer.logger
    if isinstance(logger, list):
        return logger[0] if logger else None
    return logger


def folder_of_runs(config: Namespace) -> Path:
    """Where the configured logger has a folder for each run."""
    logger = first_logger(config)
    settings = getattr(logger, "init_args", None)
    if str(getattr(logger, "class_path", "")).endswith(("TensorBoardLogger", "CSVLogger")):
        return runs_folder(logger.init_args)
    save_dir = getattr(settings, "save_dir", None) or config.trainer.default_root_dir or "."
    return Path(save_dir, getattr(settings, "name", None) or "lightning_logs")


def run_folders(config: Namespace) -> Sequence[Path]:
    """Folders of the runs that the configured logger has written so far."""
    if first_logger(config) is False:
        return [Path(config.trainer.default_root_dir or ".")]
    runs = folder_of_runs(config)
    return [runs / config.run_name] if config.run_name else sorted(runs.glob("*/"))


def checkpoint_folders(config: Namespace) -> Sequence[Path]:
    """Where `last.ckpt` may lie: the folder that was named, or those of the runs."""
    if config.checkpoint.dirpath:
        return [Path(config.checkpoint.dirpath)]
    return [folder / "checkpoints" for folder in run_folders(config)]


def continue_in_same_folder(config: Namespace) -> None:
    """A resumed run goes on writing where it wrote before, if that is where its checkpoint lies.

    Only with TensorBoard, whose logger adds to what it finds: the CSV logger deletes it.
    """
    logger = first_logger(config)
    class_path = getattr(logger, "class_path", "")
    settings = getattr(logger, "init_args", None) if class_path.endswith("TensorBoardLogger") else None
    folder = Path(config.ckpt_path).resolve().parent.parent
    if settings is not None and any(folder == known.resolve() for known in run_folders(config)):
        number = folder.name.removeprefix("version_")
        settings.version = int(number) if number.isdigit() else folder.name
