"""A progress bar that does not slow steps down."""

from __future__ import annotations

from time import monotonic
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import RichProgressBar

SECONDS_BETWEEN = 0.2


class QuickProgressBar(RichProgressBar):
    """Lightning's Rich bar, updated five times a second instead of at every batch.

    An update costs the process that launches the steps over a millisecond: much when a GPU takes fifteen for a step.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._shown_at = -SECONDS_BETWEEN

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Shows the batch, if it is time to, or the last one."""
        now = monotonic()
        if now - self._shown_at >= SECONDS_BETWEEN or batch_idx + 1 >= self.total_train_batches:
            self._shown_at = now
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
