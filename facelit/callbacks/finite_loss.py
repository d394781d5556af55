"""Stops a run at a non-finite loss, and names the checkpoint to go back to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from facelit.checkpoints import last_finite_checkpoint
from facelit.errors import FacelitError
from facelit.lightning import logs_step


class StopOnNonFiniteLoss(Callback):
    """Ends the run with a `FacelitError` at the first NaN or infinite loss.

    On a GPU the loss is read only when the host waits anyway (logging steps, validation, before a checkpoint is written),
    so that no step is slowed down; the step named is still the first bad one.
    """

    def __init__(self) -> None:
        self._first_bad: Tensor | None = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Notes whether this step's loss was finite."""
        if outputs is None:
            return
        loss = outputs["loss"].detach()
        never = torch.iinfo(torch.int64).max
        if self._first_bad is None:
            self._first_bad = torch.full((), never, dtype=torch.int64, device=loss.device)
        step = torch.full_like(self._first_bad, never).masked_fill_(~torch.isfinite(loss), trainer.global_step)
        self._first_bad = torch.minimum(self._first_bad, step)
        if loss.device.type == "cpu" or logs_step(trainer, trainer.global_step):
            self._stop_if_bad(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Looks before time is spent on validating a broken network."""
        self._stop_if_bad(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Looks before a good checkpoint is replaced."""
        self._stop_if_bad(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Looks once more after the last step."""
        self._stop_if_bad(trainer)

    def _stop_if_bad(self, trainer: Trainer) -> None:
        if self._first_bad is None or int(self._first_bad) == torch.iinfo(torch.int64).max:
            return
        step, self._first_bad = int(self._first_bad), None
        rates = ", ".join(f"{group['lr']:.3g}" for group in trainer.optimizers[0].param_groups)
        raise FacelitError(
            f"the loss is NaN or infinite since step {step} (learning rate {rates}). Lower the learning rate, or clip"
            f" gradients (--trainer.gradient_clip_val 5). {self._way_back(trainer)}"
        )

    @staticmethod
    def _way_back(trainer: Trainer) -> str:
        folder = getattr(trainer.checkpoint_callback, "dirpath", None)
        known = [*Path(folder).glob("*.ckpt")] if folder else []
        if trainer.ckpt_path and Path(trainer.ckpt_path).is_file():  # a resumed run may not have written one yet
            known.append(Path(trainer.ckpt_path))
        good = last_finite_checkpoint(known)
        return f"Last good checkpoint: {good}" if good else "No checkpoint was written before."
