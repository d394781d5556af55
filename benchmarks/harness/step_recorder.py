"""A callback that records time and memory after each optimizer step of a real `fit`, and writes them to a file."""

from __future__ import annotations

import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from harness.process_memory import resident_bytes


class Steps(NamedTuple):
    """A run's records.

    `seconds`: time from the end of one step to the end of the next, float64 (steps,); NaN for the first step of an epoch, which
    follows a validation; `resident`: bytes of the process after each step; `on_gpu`: bytes of tensors on the GPU, 0 without
    one; `window`: seconds from the first counted step to the last, waiting for a GPU at both ends, 0 if not requested;
    `counted`: the number of steps in it; `saving`: seconds to write one checkpoint, 0 if not requested.
    """

    seconds: npt.NDArray[np.float64]
    resident: npt.NDArray[np.int64]
    on_gpu: npt.NDArray[np.int64]
    window: float = 0.0
    counted: int = 0
    saving: float = 0.0


class StepRecorder(Callback):
    """Records each step; the file is written when training ends.

    Args:
        path: The file, `.npz`.
        first: The number of steps before the window that is timed as a whole; None for no window.
        last: The step that ends the window.
        memory: Whether to record memory, which takes a few microseconds per step.
        checkpoint: Whether to time the writing of a checkpoint at the end.
    """

    def __init__(
        self, path: str, first: int | None = None, last: int = 0, memory: bool = True, checkpoint: bool = False
    ) -> None:
        self.path = path
        self.first, self.last = first, last
        self.memory = memory
        self.checkpoint = checkpoint
        self._seconds: list[float] = []
        self._resident: list[int] = []
        self._on_gpu: list[int] = []
        self._before = float("nan")
        self._window = 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Skips the first step of an epoch, which has no start time."""
        self._before = float("nan")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Records a step."""
        cuda = pl_module.device.type == "cuda"
        ends_window = self.first is not None and trainer.global_step in (self.first, self.last)
        if ends_window and cuda:
            torch.cuda.synchronize(pl_module.device)
        now = perf_counter()
        if ends_window:
            self._window = now - self._window
        if self.memory:
            self._resident.append(resident_bytes())
            self._on_gpu.append(torch.cuda.memory_allocated(pl_module.device) if cuda else 0)
        self._seconds.append(now - self._before)
        self._before = now

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the file; of several processes, the first does."""
        saving = _time_checkpoint(trainer) if self.checkpoint else 0.0  # all processes save together
        if not trainer.is_global_zero:
            return
        counted = 0 if self.first is None else self.last - self.first
        arrays = Steps(
            np.array(self._seconds),
            np.array(self._resident, np.int64),
            np.array(self._on_gpu, np.int64),
            self._window,
            counted,
            saving,
        )
        np.savez(self.path, **arrays._asdict())


def read_steps(path: Path) -> Steps:
    """Reads the file that a `StepRecorder` wrote."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in Steps._fields}
    window, counted, saving = float(arrays["window"]), int(arrays["counted"]), float(arrays["saving"])
    return Steps(arrays["seconds"], arrays["resident"], arrays["on_gpu"], window, counted, saving)


def _time_checkpoint(trainer: Trainer) -> float:
    with tempfile.TemporaryDirectory() as folder:
        start = perf_counter()
        trainer.save_checkpoint(Path(folder) / "timed.ckpt")
        return perf_counter() - start
