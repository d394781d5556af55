"""Writes the embeddings that `predict` makes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor

from facelit.data.batches import EvalBatch
from facelit.data.reading import BadImage
from facelit.errors import FacelitError
from facelit.storage.files import replace_file
from facelit.storage.text import table_of


class EmbeddingWriter(Callback):
    """Collects the embeddings of a prediction run into one `.npz` file.

    The file holds `names` (paths below the folder that was embedded, str (N,)) and `embeddings` (float32 (N, D), as the
    backbone gives them, not normalised), row by row. Crops that cannot be read are left out, and listed in
    `<path>.skipped.tsv`, as `facelit embed` does.

    Args:
        path: The file to write.

    Attributes:
        skipped: What was left out in the last run, by its place.
    """

    def __init__(self, path: str = "embeddings.npz") -> None:
        self.path = Path(path if path.endswith(".npz") else f"{path}.npz")
        self._table: _EmbeddingTable | None = None
        self._names: Sequence[str] = ()
        self._bad: dict[int, BadImage] = {}
        self.skipped: dict[str, str] = {}

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts an empty table."""
        data = trainer.datamodule
        self._names = [path.relative_to(data.predict).as_posix() for path in data.predict_paths()]
        self._table = _EmbeddingTable(len(self._names))
        self._bad, self.skipped = {}, {}

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
            self._bad.update(batch.bad)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gathers the table and writes the file."""
        if self._table is None or trainer.fast_dev_run:
            return
        try:
            embeddings = self._table.gather().numpy()
        except RuntimeError as error:
            raise FacelitError(f"predict: {error}. Is trainer.limit_predict_batches set?") from None
        bad = _gathered(self._bad)
        self.skipped = {image.place: image.reason for _, image in sorted(bad.items())}
        if len(bad) == len(self._names):
            place, reason = next(iter(self.skipped.items()))
            hint = " Other sizes are resized on request: --data.predict_resize true" if "112x112" in reason else ""
            raise FacelitError(f"predict: none of {len(bad):,} crops can be used, for example {place}: {reason}.{hint}")
        if trainer.is_global_zero:
            kept = [number for number in range(len(self._names)) if number not in bad]
            names = np.array([self._names[number] for number in kept])
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with replace_file(self.path) as file:
                np.savez(file, names=names, embeddings=embeddings[kept])
            rank_zero_info(f"Wrote {len(kept):,} embeddings of {embeddings.shape[1]} numbers to {self.path}")
            self._list_skipped()

    def _list_skipped(self) -> None:
        """Lists what was left out; removes the list of an earlier run where nothing was."""
        path = self.path.with_name(f"{self.path.name}.skipped.tsv")
        if not self.skipped:
            path.unlink(missing_ok=True)
            return
        with replace_file(path) as file:
            file.write(table_of([("photo", "reason"), *self.skipped.items()]))
        place, reason = next(iter(self.skipped.items()))
        rank_zero_warn(
            f"{len(self.skipped):,} of {len(self._names):,} crops could not be read and were left out, for example {place}: {reason}."
            f" All of them: {path}"
        )


def _gathered(bad: dict[int, BadImage]) -> dict[int, BadImage]:
    """What all processes could not read; call it on all of them."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return bad
    found: list[dict[int, BadImage]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(found, bad)
    return {number: image for part in found for number, image in part.items()}


class _EmbeddingTable:
    """One row per image, written by number: a sampler's padding writes a row twice and does no harm.

    Args:
        num_images: How many rows there must be.
    """

    def __init__(self, num_images: int) -> None:
        self.num_images = num_images
        self._rows: Tensor | None = None
        self._written: Tensor | None = None

    def write(self, numbers: Tensor, embeddings: Tensor) -> None:
        """Writes rows.

        Args:
            numbers: Image numbers, int64, shape (N,).
            embeddings: float32, shape (N, D).
        """
        if self._rows is None or self._written is None:
            self._rows = embeddings.new_zeros(self.num_images, embeddings.shape[1], dtype=torch.float32)
            self._written = embeddings.new_zeros(self.num_images, dtype=torch.float32)
        self._rows[numbers] = embeddings.detach().float()
        self._written[numbers] = 1

    def gather(self) -> Tensor:
        """The whole table on every process; call it on all of them.

        Returns:
            float32, shape (num_images, D), on the CPU.

        Raises:
            RuntimeError: Some image was embedded by no process.
        """
        if self._rows is None or self._written is None:
            raise RuntimeError(f"none of {self.num_images} images was embedded")
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            # Rows that two processes wrote are equal up to rounding: their mean is as good as either.
            dist.all_reduce(self._rows)
            dist.all_reduce(self._written)
            self._rows /= self._written.clamp(min=1).unsqueeze(1)
        missing = int((self._written == 0).sum())
        if missing:
            raise RuntimeError(f"{missing} of {self.num_images} images were not embedded")
        return self._rows.cpu()
