"""How far a run is, in a log file."""

from __future__ import annotations

from math import isfinite
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ProgressBar

from facelit.lightning import place_in_run
from facelit.storage.progress import ProgressLines


class ProgressLog(ProgressBar):
    """A line every half minute where there is no terminal for a bar: batches of the epoch (or of a validation or prediction), and the figures."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: ProgressLines | None = None
        self._epoch: ProgressLines | None = None
        self._done = 0
        self._on = True

    def disable(self) -> None:
        """Prints nothing from now on; called on all processes but the first."""
        self._on = False

    def enable(self) -> None:
        """Prints again."""
        self._on = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Goes on counting a resumed epoch where it was left: Lightning does not call it a new one."""
        self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begins to count an epoch."""
        begun = place_in_run(trainer).batches_begun
        last = trainer.max_epochs if trainer.max_epochs is not None and trainer.max_epochs > 0 else None
        name = f"Epoch {trainer.current_epoch + 1}{f' of {last}' if last else ''}"
        self._begin(name, self.total_train_batches, begun if begun < self.total_train_batches else 0)
        self._epoch = self._lines

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Counts a batch."""
        self._done = batch_idx
        self._count(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begins to count a validation."""
        if not trainer.sanity_checking:
            self._begin("Validating", sum(trainer.num_val_batches))

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Counts a batch."""
        self._count(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Goes on with the epoch."""
        self._lines = self._epoch

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begins to count a test."""
        self._begin("Testing", sum(trainer.num_test_batches))

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Counts a batch."""
        self._count(trainer, pl_module)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begins to count a prediction."""
        self._begin("Predicting", sum(trainer.num_predict_batches))

    def on_predict_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Counts a batch."""
        self._count(trainer, pl_module)

    def _begin(self, description: str, batches: float, done: int = 0) -> None:
        self._lines = (
            ProgressLines(f"{description}, batches", int(batches) if isfinite(batches) else 0, done)
            if self._on
            else None
        )
        self._done = done

    def _count(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._done += 1
        if self._lines is not None and self._on:
            self._lines.show_with(self._done, lambda: self._figures(trainer, pl_module))

    def _figures(self, trainer: Trainer, pl_module: LightningModule) -> str:
        metrics = self.get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items() if isinstance(value, int | float))
