"""Says at the end of a training run where its results are, and what to do next."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from pathlib import Path

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities.rank_zero import rank_zero_info

from facelit.callbacks.folders import checkpoint_folder, run_folder


class RunReport(Callback):
    """Prints the best checkpoint, the ROC pictures, the log folder and a command to try, once `fit` has ended.

    The first process prints it; a `fast_dev_run` leaves nothing behind, and prints nothing.

    Args:
        program: How the user calls facelit in a shell, such as `python main.py`.
    """

    def __init__(self, program: str = "facelit") -> None:
        self.program = program

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Prints the report after the last checkpoint is written and the progress bar is gone."""
        if stage != "fit" or trainer.fast_dev_run:
            return
        folder, checkpoints = run_folder(trainer), checkpoint_folder(trainer)  # asked on every process: broadcast
        if trainer.is_global_zero:
            rows = list(self._rows(trainer, pl_module, folder, checkpoints))
            if rows:
                width = max(len(label) for label, _ in rows)
                rank_zero_info("\n".join(["", *(f"{label:<{width}}  {text}" for label, text in rows)]))

    def _rows(
        self, trainer: Trainer, pl_module: LightningModule, folder: Path | None, checkpoints: Path
    ) -> Iterator[tuple[str, str]]:
        label, checkpoint = _checkpoint(trainer, checkpoints)
        if checkpoint is not None:
            yield label, _shown(checkpoint)
        if folder is not None:
            for name in getattr(trainer.datamodule, "verification", None) or {}:
                picture = folder / f"{name}-roc.png"
                if picture.is_file():
                    yield f"ROC of {name}", _shown(picture)
            yield "Logs", _shown(folder)
        if any(isinstance(logger, TensorBoardLogger) for logger in trainer.loggers) and folder is not None:
            yield "Curves", f"tensorboard --logdir {shlex.quote(_shown(folder))}"
        # `card` opens facelit's own backbones only, and does not replace a card that is there.
        own = type(getattr(pl_module, "backbone", None)).__module__.startswith("facelit.")
        if checkpoint is not None and own and not checkpoint.with_name("card.md").exists():
            yield "Model card", f"{self.program} card --checkpoint {shlex.quote(_shown(checkpoint))}"


def _checkpoint(trainer: Trainer, folder: Path) -> tuple[str, Path | None]:
    """The best checkpoint that is on disk; where none was chosen, the latest."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.monitor is not None and callback.best_model_path:
            best = Path(callback.best_model_path)
            if best.is_file():
                return "Best checkpoint", best
    last = folder / "last.ckpt"
    return "Latest checkpoint", last if last.is_file() else None


def _shown(path: Path) -> str:
    """As short as it can be written where the program was started."""
    absolute = path.resolve()
    return os.path.relpath(absolute) if absolute.is_relative_to(Path.cwd().resolve()) else str(absolute)
