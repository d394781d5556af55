"""Checkpoints are written whole, beside their final names; a disk that cannot take them is named."""

from __future__ import annotations

import errno
import os
import re
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.plugins.io import AsyncCheckpointIO, TorchCheckpointIO

from facelit.callbacks.folders import checkpoint_folder, run_folder
from facelit.errors import FacelitError
from facelit.storage.files import cannot_write, replacing, temporary_path

_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EFBIG, errno.ESTALE}
"""What a disk answers that is full or may not be written."""
_OLDER = " The checkpoints that were written before are whole."
_LEFT_BEHIND = re.compile(r"\..+\.ckpt(\.tmp)?\.\d+\.tmp")
"""The names of `facelit.storage.files.temporary_path`."""
_STILL_WRITTEN = 600  # seconds
"""A file that changed so recently may belong to another run that keeps its checkpoints in the same folder."""


class WholeFiles(TorchCheckpointIO):
    """Writes each checkpoint in one move, on the file system that it belongs to.

    Lightning writes to the machine's folder for temporary files first and copies from there: a killed run leaves a part of the
    copy under the final name where the two are on different file systems.

    Attributes:
        folders: Folders that exist for this run: one that is gone has been deleted, and is not made anew.
    """

    def __init__(self) -> None:
        self.folders: set[Path] = set()

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Writes a file; to an address with a protocol (`s3://...`) as Lightning does.

        Raises:
            FacelitError: It cannot be written, or its folder was deleted under the run.
        """
        if "://" in str(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, os.fspath(path), storage_options)
            return
        path = Path(path)
        self.prepare(path.parent)
        try:
            with replacing(path) as temporary, temporary.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())  # its final name must not outlive its contents in a power cut
        except OSError as error:
            raise cannot_write(path, error, _OLDER) from None
        except RuntimeError as error:  # torch's writer, of which the file's own error is the context
            if isinstance(error.__context__, OSError):
                raise cannot_write(path, error.__context__, _OLDER) from None
            raise

    def prepare(self, folder: Path, own: bool = False) -> None:
        """Makes a folder, and removes from it what a killed run has left half-written.

        Args:
            folder: Where checkpoints are going to be written.
            own: Whether no other run writes there, so that what was left a moment ago is removed too.

        Raises:
            FacelitError: It cannot be made, or was deleted under the run.
        """
        if folder in self.folders:
            if not folder.is_dir():
                raise _deleted(folder)
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            left = [entry for entry in folder.iterdir() if _LEFT_BEHIND.fullmatch(entry.name)]
            for entry in left:
                with suppress(OSError):
                    if own or entry.stat().st_mtime < time.time() - _STILL_WRITTEN:
                        entry.unlink()
        except OSError as error:
            raise _unusable(folder, error) from None
        self.folders.add(folder)


class CheckpointFiles(Callback):
    """Gives a trainer `WholeFiles`, and looks at the start whether the disk can take a checkpoint.

    Every `FaceRecognizer` brings one.
    """

    folder: ClassVar[Path | None] = None
    """Where the run of this process keeps its checkpoints."""
    logs: ClassVar[Path | None] = None
    """Where its loggers write, which they do before anything else."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Replaces Lightning's own way of writing, under `AsyncCheckpointIO` too; one that the user has chosen stays."""
        strategy = trainer.strategy
        outer = strategy.checkpoint_io
        if type(outer) is TorchCheckpointIO:
            strategy.checkpoint_io = WholeFiles()
        elif type(outer) is AsyncCheckpointIO and type(outer.checkpoint_io) is TorchCheckpointIO:
            strategy.checkpoint_io = AsyncCheckpointIO(WholeFiles())  # a new one: what it wraps cannot be changed

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Makes the folder for checkpoints, and refuses a disk that has no room for the weights alone.

        Raises:
            FacelitError: The folder cannot be written, or the disk is full.
        """
        folder, logs = checkpoint_folder(trainer), run_folder(trainer)  # on every process
        CheckpointFiles.folder = None
        outer = trainer.strategy.checkpoint_io
        files = getattr(outer, "checkpoint_io", outer)
        writes = trainer.checkpoint_callbacks and not trainer.fast_dev_run and trainer.is_global_zero
        if not writes or not isinstance(files, WholeFiles) or "://" in str(folder):
            return
        files.prepare(folder, own=logs is not None and folder.is_relative_to(logs))
        CheckpointFiles.folder = folder
        probe = temporary_path(folder / "start.ckpt")
        try:
            probe.write_bytes(b"\0")
            probe.unlink()
            free = shutil.disk_usage(folder).free
        except OSError as error:
            raise _unusable(folder, error) from None
        least = sum(value.numel() * value.element_size() for value in pl_module.state_dict().values())
        if free < least:
            raise FacelitError(
                f"{folder}: {free / 1e6:,.0f} MB are free, and a checkpoint of this network takes {least / 1e6:,.0f} MB at least."
                " Make room, or name another folder: --checkpoint.dirpath FOLDER"
            )


def _unusable(folder: Path, error: OSError) -> FacelitError:
    return FacelitError(
        f"{folder}: checkpoints cannot be written here ({error.strerror or error}). Name another folder:"
        " --checkpoint.dirpath FOLDER"
    )


def _deleted(folder: Path) -> FacelitError:
    return FacelitError(
        f"{folder}: was deleted while the run was writing to it. The run stops here, as its configuration and checkpoints are gone."
    )


def explain_disk(error: OSError) -> FacelitError | None:
    """The error for a disk that is full or may not be written, met anywhere in a run; None for anything else."""
    folder = CheckpointFiles.folder
    if error.errno == errno.ENOENT and folder is not None and not folder.is_dir():
        return _deleted(folder)
    if error.errno not in _DISK:
        return None
    where = error.filename or folder or CheckpointFiles.logs or "the run's folder"
    return FacelitError(f"{where}: cannot be written ({error.strerror}).{_OLDER if folder else ''}")
