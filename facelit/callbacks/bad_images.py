"""Keeps account of the training images that could not be read."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from facelit.callbacks.folders import checkpoint_folder
from facelit.data.batches import TrainBatch
from facelit.data.reading import BadImage
from facelit.errors import FacelitError

FILE_NAME = "bad-images.tsv"

_log = logging.getLogger(__name__)


class BadImageLog(Callback):
    """Lists each image that was skipped once, in `bad-images.tsv` beside the checkpoints: path, tab, reason.

    The number of different ones is logged as `data/bad_images`. All processes of a run, and a run that is resumed, write to
    the same file and count what stands in it: past `data.max_bad_share` of the training set the run stops with a
    `FacelitError`.
    """

    def __init__(self) -> None:
        self._path: Path | None = None
        self._limit: float | None = None
        self._known: set[str] = set()
        self._read_to = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Settles where the list is, and how long it may get."""
        folder = checkpoint_folder(trainer)  # asked on every process: it is broadcast
        self._path = None if trainer.fast_dev_run else folder / FILE_NAME
        data = getattr(trainer, "datamodule", None)
        share, train = getattr(data, "max_bad_share", None), getattr(data, "train", None)
        self._limit = None if share is None or train is None else share * len(train)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Writes down what this batch could not read."""
        if isinstance(batch, TrainBatch) and batch.bad:
            self._write_down(batch.bad)
            pl_module.log("data/bad_images", float(len(self._known)), rank_zero_only=True)
            self._stop_if_too_many()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Says once more how many there were."""
        if self._known and trainer.is_global_zero:
            _log.warning("%d training image(s) could not be read and were skipped: %s", len(self._known), self._path)

    def _write_down(self, bad: Iterable[BadImage]) -> None:
        if self._path is None:
            self._known |= {image.place for image in bad}
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a+b") as file:
            _lock(file.fileno())
            self._known |= self._news(file)
            for image in dict(bad).items():
                self._add(file, *image)
            self._read_to = file.seek(0, os.SEEK_END)

    def _news(self, file: Any) -> set[str]:
        """What other processes, or the run that is resumed, have written since."""
        file.seek(self._read_to)
        return {line.split("\t")[0] for line in file.read().decode("utf-8", "surrogateescape").splitlines()}

    def _add(self, file: Any, place: str, reason: str) -> None:
        if place not in self._known:
            self._known.add(place)
            file.write(f"{place}\t{reason}\n".encode("utf-8", "surrogateescape"))
            _log.warning("skipped a training image: %s: %s", place, reason)

    def _stop_if_too_many(self) -> None:
        if self._limit is not None and len(self._known) > self._limit:
            raise FacelitError(
                f"{len(self._known)} training images could not be read, more than data.max_bad_share of the training set allows."
                f" They are listed in {self._path}. Mend the data, or raise --data.max_bad_share."
            )


def _lock(file: int) -> None:
    """Holds the file for this process until it is closed; where there are no such locks, goes without."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX)
    except (ImportError, OSError):
        pass
