"""Lists the training images that could not be read."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from facelit.callbacks.folders import checkpoint_folder
from facelit.data.batches import TrainBatch
from facelit.data.identity_folder import IdentityFolder
from facelit.data.reading import BadImage
from facelit.errors import FacelitError
from facelit.lightning import logs_step
from facelit.storage.system import lock
from facelit.storage.text import field

FILE_NAME = "bad-images.tsv"

_log = logging.getLogger(__name__)


class BadImageLog(Callback):
    """Lists every skipped image, once, in `bad-images.tsv` beside the checkpoints: path, tab, reason.

    Paths are absolute; backslashes, tabs and line ends in them are escaped as in Python. All processes of a run, and a run
    that is resumed, write to the same file, and the number of images in it is logged as `data/bad_images`.

    Past `data.max_bad_share` of the training set the run stops with a `FacelitError`. The process that reads one too many
    raises it; the command line then ends the others.
    """

    def __init__(self) -> None:
        self._path: Path | None = None
        self._limit: float | None = None
        self._has_paths = False
        self._known: set[str] = set()
        self._read_to = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Settles where the list is, and how long it may get."""
        folder = checkpoint_folder(trainer)  # asked on every process: it is broadcast
        self._path = None if trainer.fast_dev_run else folder / FILE_NAME
        data = getattr(trainer, "datamodule", None)
        share, train = getattr(data, "max_bad_share", None), getattr(data, "train", None)
        self._limit = None if share is None or train is None else share * len(train)
        self._has_paths = isinstance(train, IdentityFolder)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Writes down what this batch could not read; at a logging step the first process logs what stands in the file."""
        bad = batch.bad if isinstance(batch, TrainBatch) else ()
        if bad:
            self._write_down(bad)
        if trainer.is_global_zero and logs_step(trainer, trainer.global_step + 1):
            self._look()
            if self._known:
                # A tensor on the CPU: Lightning would copy a number to the device, and wait for it.
                pl_module.log("data/bad_images", torch.tensor(float(len(self._known))), rank_zero_only=True)
        if bad:
            self._stop_if_too_many()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Says once more how many there were."""
        if trainer.is_global_zero:
            self._look()
            if self._known:
                _log.warning("skipped %s that could not be read: %s", _count(self._known), self._path)

    def _write_down(self, bad: Iterable[BadImage]) -> None:
        news = {self._name(image.place): image.reason for image in bad}
        if self._path is None:
            self._known |= news.keys()
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a+b") as file:
            lock(file, wait=True)
            self._read_news(file)
            for place, reason in news.items():
                self._add(file, place, reason)
            self._read_to = file.seek(0, os.SEEK_END)

    def _name(self, place: str) -> str:
        """As it stands in the file; the same from whatever directory a run is resumed."""
        return field(os.path.abspath(place) if self._has_paths else place)

    def _look(self) -> None:
        """Reads what has been added to the file, where anything has."""
        if self._path is not None and self._path.exists() and self._path.stat().st_size > self._read_to:
            with self._path.open("rb") as file:
                lock(file, wait=True)
                self._read_news(file)

    def _read_news(self, file: IO[bytes]) -> None:
        """What other processes, or the run that is resumed, have written since."""
        file.seek(self._read_to)
        lines = file.read().decode("utf-8", "surrogateescape").split("\n")
        self._known |= {line.split("\t")[0] for line in lines if line}
        self._read_to = file.tell()

    def _add(self, file: IO[bytes], place: str, reason: str) -> None:
        if place not in self._known:
            self._known.add(place)
            file.write(f"{place}\t{field(reason)}\n".encode("utf-8", "surrogateescape"))
            _log.warning("skipped a training image: %s: %s", place, reason)

    def _stop_if_too_many(self) -> None:
        if self._limit is not None and len(self._known) > self._limit:
            raise FacelitError(
                f"{_count(self._known)} could not be read, more than data.max_bad_share of the training set allows. The list is"
                f" {self._path}. Repair the data, or raise --data.max_bad_share."
            )


def _count(images: set[str]) -> str:
    return f"{len(images):,} training image{'' if len(images) == 1 else 's'}"
