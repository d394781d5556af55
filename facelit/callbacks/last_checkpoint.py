"""Keeps `last.ckpt`: what a run that was killed resumes from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint


class LastCheckpoint(Checkpoint):
    """Writes `last.ckpt` after each validation and epoch, and every so many steps.

    `ModelCheckpoint(save_last=True)` writes it only when the monitored figure has got better: a run that is killed after an
    hour without a new best would resume an hour back. The file is replaced in one move, never half-written.

    Args:
        every_n_train_steps: Steps between two writings; by default only after validations and epochs.
    """

    def __init__(self, every_n_train_steps: int | None = None) -> None:
        self.every_n_train_steps = every_n_train_steps
        self._saved_at = -1

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves every `every_n_train_steps` steps, and at the last step of a run that ends by `max_steps`."""
        step = trainer.global_step
        due = self.every_n_train_steps is not None and step % self.every_n_train_steps == 0
        if due or step == trainer.max_steps:
            self._save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves after the best checkpoint was chosen: the file knows of it."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._saved_at = -1  # the same step once more: validation has changed what is known of the best checkpoint
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves where no validation did."""
        self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        folder = _checkpoint_folder(trainer)
        if trainer.fast_dev_run or folder is None or trainer.global_step == self._saved_at:
            return
        self._saved_at = trainer.global_step
        trainer.save_checkpoint(folder / "last.ckpt", weights_only=False)


def _checkpoint_folder(trainer: Trainer) -> Path | None:
    """Where the best checkpoints go too."""
    folder = getattr(trainer.checkpoint_callback, "dirpath", None)
    return None if folder is None else Path(folder)
