"""Keeps `last.ckpt`: what a run that was killed resumes from."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.plugins.io import AsyncCheckpointIO, TorchCheckpointIO

from facelit.callbacks.checkpoint_files import WholeFiles
from facelit.callbacks.folders import checkpoint_folder, run_folder
from facelit.callbacks.stop_signals import StopSignals
from facelit.errors import FacelitError
from facelit.lightning import log_figures_now, stops_after_batch


class LastCheckpoint(Checkpoint):
    """Writes `last.ckpt` after each validation and epoch, every so many steps, and when the run is told to stop.

    `ModelCheckpoint(save_last=True)` writes it only when the monitored figure improves: a run that is killed after an hour
    without a new best would resume an hour back. The file is replaced atomically, never half-written.

    Args:
        every_n_train_steps: Steps between two writings; by default only after validations and epochs.

    Raises:
        FacelitError: every_n_train_steps is less than 1.
    """

    newest: ClassVar[Path | None] = None
    """The `last.ckpt` that the run of this process has written, or was resumed from."""

    def __init__(self, every_n_train_steps: int | None = None) -> None:
        if every_n_train_steps is not None and every_n_train_steps < 1:
            raise FacelitError(
                f"last_checkpoint.every_n_train_steps must be at least 1, or null, not {every_n_train_steps}."
            )
        self.every_n_train_steps = every_n_train_steps
        self.dirpath: Path | None = None
        self._run: str | None = None
        self._saved_at = self._resumed_at = -1

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Settles the folder: where the best checkpoints go, or where they would go if any were kept."""
        self.dirpath = None  # the other callbacks say where
        self.dirpath = checkpoint_folder(trainer)
        folder = run_folder(trainer)
        self._run = None if folder is None else folder.name
        LastCheckpoint.newest = Path(trainer.ckpt_path) if trainer.ckpt_path else None
        self._saved_at = -1

    def state_dict(self) -> dict[str, Any]:
        """Which run the file is of: several may keep theirs in one folder."""
        return {"run": self._run}

    @staticmethod
    def run_of(checkpoint: Mapping[str, Any]) -> str | None:
        """The name of the run that a checkpoint is of, which is its folder's; None where it does not say."""
        state = (checkpoint.get("callbacks") or {}).get(LastCheckpoint.__qualname__)
        name = state.get("run") if isinstance(state, Mapping) else None
        return name if isinstance(name, str) else None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remembers the step that a run is resumed at (micro-batches after it end no step), and tries a plugin of the user's own.

        Raises:
            FacelitError: What it writes is not one file, or is not there yet when it returns.
        """
        self._resumed_at = trainer.global_step
        outer = trainer.strategy.checkpoint_io
        plugin = getattr(outer, "checkpoint_io", None) or outer
        if isinstance(plugin, WholeFiles) or type(plugin) is TorchCheckpointIO:
            return
        if trainer.fast_dev_run or self.dirpath is None:
            return
        tried = self.dirpath / "start.ckpt.tmp"
        with _written_at_once(trainer):
            trainer.save_checkpoint(tried, weights_only=False)
        if trainer.is_global_zero:
            _remove_one_file(tried, type(plugin).__name__)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves every `every_n_train_steps` steps, and where a run ends within an epoch (`max_steps`, a signal)."""
        step = trainer.global_step
        due = self.every_n_train_steps is not None and step % self.every_n_train_steps == 0 and step != self._resumed_at
        if step > 0 and (due or stops_after_batch(trainer) or _stops_here(trainer)):
            if trainer.loggers:
                log_figures_now(trainer)
            self._save(trainer)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Saves where a signal breaks a validation off; the file says that the validation is due."""
        if _stops_here(trainer):
            self._save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves after the best checkpoint was chosen: the file knows of it."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._saved_at = -1  # the same step once more: validation has changed what is known of the best checkpoint
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves where no validation did."""
        if _stops_here(trainer):
            self._saved_at = -1  # the last batch's file does not know what the end of the epoch has changed
        self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        if trainer.fast_dev_run or self.dirpath is None or trainer.global_step == self._saved_at:
            return
        self._saved_at = trainer.global_step
        path = self.dirpath / "last.ckpt"
        with _written_at_once(trainer):
            # `WholeFiles` replaces the old one in one move. A user's own way of writing may not: beside it, then in its place.
            whole = isinstance(trainer.strategy.checkpoint_io, WholeFiles)
            target = path if whole else path.with_suffix(".ckpt.tmp")
            trainer.save_checkpoint(target, weights_only=False)
        if target != path and trainer.is_global_zero:
            os.replace(target, path)
        LastCheckpoint.newest = path


def _remove_one_file(path: Path, plugin: str) -> None:
    if path.is_file():
        path.unlink()
        return
    what = "writes a folder" if path.is_dir() else "returns before its file is there"
    shutil.rmtree(path, ignore_errors=True)
    raise FacelitError(
        f"trainer.plugins: {plugin} {what}, and last.ckpt, from which a run goes on, has to be one whole file. Leave the plugin out;"
        " pytorch_lightning.plugins.io.AsyncCheckpointIO writes the other checkpoints in the background."
    )


def _stops_here(trainer: Trainer) -> bool:
    stop = StopSignals.of(trainer)
    return stop is not None and stop.ready


@contextmanager
def _written_at_once(trainer: Trainer) -> Iterator[None]:
    """Under `AsyncCheckpointIO`: by the plugin that it wraps, so that the file is there when it takes the old one's place."""
    strategy, plugin = trainer.strategy, trainer.strategy.checkpoint_io
    if not isinstance(plugin, AsyncCheckpointIO) or plugin.checkpoint_io is None:
        yield
        return
    strategy.checkpoint_io = plugin.checkpoint_io
    try:
        yield
    finally:
        strategy.checkpoint_io = plugin
