"""A run that was stopped before or during a validation makes it up when it is resumed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from facelit.lightning import (
    begin_with_validation,
    forget_validation,
    set_max_steps,
    validation_follows,
    validation_pending,
)

STATE_KEY = "validation_due"
"""Whether a validation was still to come when the checkpoint was written, among facelit's own entries."""


class PendingValidation(Callback):
    """Notes in checkpoints that a validation was due, and lets a run resumed from one begin with it.

    Without this a run killed in a validation, whose `last.ckpt` is of the step before it, would go on training: the figures, the
    thresholds and perhaps the best checkpoint of that step would be missing. `FaceRecognizer` makes one and calls `save_into`
    and `resume_from`.
    """

    def __init__(self) -> None:
        self._in_batch_end = self._validating = False
        self._resumed_at: int | None = None
        self._max_steps: int | None = None

    def save_into(self, own: dict[str, Any], trainer: Trainer) -> None:
        """Adds to a checkpoint's own entries whether a validation is due."""
        if self._validating or (self._in_batch_end and validation_follows(trainer)):
            own[STATE_KEY] = True

    def resume_from(self, checkpoint: dict[str, Any], own: Mapping[str, Any]) -> None:
        """Changes a checkpoint, as it was read, so that the run begins with the validation."""
        self._resumed_at = None
        if own.get(STATE_KEY) and "loops" in checkpoint:
            begin_with_validation(checkpoint["loops"])
            self._resumed_at = checkpoint["global_step"]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """At the last step of a run Lightning would end it at once."""
        self._in_batch_end = self._validating = False
        self._max_steps = None
        if self._resumed_at is not None and self._resumed_at == trainer.max_steps:
            self._max_steps = trainer.max_steps
            set_max_steps(trainer, trainer.max_steps + 1)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Drops a validation that this run, set up differently, would not make here."""
        if validation_pending(trainer) and not validation_follows(trainer):
            forget_validation(trainer)
            self._restore_max_steps(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """From here to the next validation or batch, whatever is saved is saved at the end of this batch."""
        self._in_batch_end = True

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The validation has begun, and is still due until it ends."""
        self._validating = not trainer.sanity_checking
        self._in_batch_end = False
        if self._resumed_at is not None:
            self._resumed_at = None
            forget_validation(trainer)
            self._restore_max_steps(trainer)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What is saved from now on is saved with its result."""
        self._validating = False

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """No validation follows this any more."""
        self._in_batch_end = False

    def _restore_max_steps(self, trainer: Trainer) -> None:
        if self._max_steps is not None:
            set_max_steps(trainer, self._max_steps)
            self._max_steps = None
