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
