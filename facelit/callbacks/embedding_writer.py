"""Writes the embeddings that `predict` makes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities.rank_zero import rank_zero_info

from facelit.data.batches import EvalBatch
from facelit.errors import FacelitError
from facelit.verification.embeddings import EmbeddingTable


class EmbeddingWriter(Callback):
    """Collects the embeddings of a prediction run into one `.npz` file.

    The file holds `names` (paths below the folder that was embedded, str (N,)) and `embeddings` (float32 (N, D), as the
    backbone gives them, not normalised), row by row.

    Args:
        path: The file to write.
    """

    def __init__(self, path: str = "embeddings.npz") -> None:
        self.path = Path(path if path.endswith(".npz") else f"{path}.npz")
        self._table: EmbeddingTable | None = None
        self._names: Sequence[str] = ()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts an empty table."""
        data = trainer.datamodule
        self._names = [path.relative_to(data.predict).as_posix() for path in data.predict_paths()]
        self._table = EmbeddingTable(len(self._names))

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: EvalBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Writes a batch into the table."""
        if self._table is not None:
            self._table.write(batch.numbers, outputs)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gathers the table and writes the file."""
        if self._table is None or trainer.fast_dev_run:
            return
        try:
            embeddings = self._table.gather().numpy()
        except RuntimeError as error:
            raise FacelitError(f"predict: {error}. Is trainer.limit_predict_batches set?") from None
        if trainer.is_global_zero:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            np.savez(self.path, names=np.array(self._names), embeddings=embeddings)
            rank_zero_info(f"Wrote {len(embeddings):,} embeddings of {embeddings.shape[1]} numbers to {self.path}")
