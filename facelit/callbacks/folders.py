"""Where a run's files lie."""

from __future__ import annotations

from pathlib import Path

from pytorch_lightning import Trainer


def run_folder(trainer: Trainer) -> Path | None:
    """The logger's folder, which also holds `checkpoints/` and `config.yaml`; None in a run that logs nowhere.

    Call it on every process: Lightning broadcasts the answer.
    """
    if not trainer.loggers:
        return None
    folder = trainer.log_dir
    return None if folder is None else Path(folder)


def checkpoint_folder(trainer: Trainer) -> Path:
    """Where the checkpoints lie, or would lie; call it on every process."""
    folder = next(filter(None, (getattr(callback, "dirpath", None) for callback in trainer.checkpoint_callbacks)), None)
    return Path(folder or Path(run_folder(trainer) or trainer.default_root_dir, "checkpoints"))
