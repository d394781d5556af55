"""Checkpoints are written in one move beside their final names; full, read-only and deleted folders end a run in one line."""

import errno
import os
import shutil
import subprocess
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.demos.boring_classes import BoringModel, RandomDataset
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.plugins.io import AsyncCheckpointIO
from torch.utils.data import DataLoader

from facelit.callbacks import VerificationCallback
from facelit.callbacks.checkpoint_files import CheckpointFiles, WholeFiles, explain_disk
from facelit.cli import main
from facelit.cli.training import _thread_failed
from facelit.errors import FacelitError
from tiny_run import make_run


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a file system of its own; skips where only the machine's owner may."""
    folders: list[Path] = []

    def mount(options: str) -> Path:
        folder = tmp_path / f"disk{len(folders)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("no file system can be mounted here")
        folders.append(folder)
        return folder

    yield mount
    for folder in folders:
        subprocess.run(["umount", str(folder)], check=True)


def failing(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What a run that fails says last, on one line."""
    with pytest.raises(SystemExit) as stopped:
        main(["fit", *map(str, arguments)])
    assert stopped.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    errors = [line for line in lines if line.startswith("facelit: error: ")]
    assert len(errors) == 1
    assert "Traceback (most recent call last):" not in lines
    return errors[0]


def test_written_in_one_move_beside_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moves: list[tuple[Path, Path]] = []
    replace, make = os.replace, tempfile.mkstemp

    def record(source: Any, target: Any, **options: Any) -> None:
        moves.append((Path(source), Path(target)))
        replace(source, target, **options)

    made: list[str] = []
    monkeypatch.setattr(os, "replace", record)
    monkeypatch.setattr(tempfile, "mkstemp", lambda *args, **options: made.append("") or make(*args, **options))
    main(["fit", "--config", str(make_run(tmp_path)), "--trainer.max_epochs", "1"])
    checkpoints = {path for path in tmp_path.glob("**/*.ckpt")}
    assert len(checkpoints) == 2
    assert checkpoints == {target for _, target in moves if ".ckpt" in target.name}
    assert all(source.parent == target.parent for source, target in moves)
    assert made == []
    assert {path.name for path in next(iter(checkpoints)).parent.iterdir()} == {path.name for path in checkpoints}


def test_asynchronous_ones_are_written_whole_too(tmp_path: Path) -> None:
    trainer = Trainer(accelerator="cpu", logger=False, plugins=[AsyncCheckpointIO()], default_root_dir=tmp_path)
    CheckpointFiles().setup(trainer, BoringModel(), "fit")
    plugin = trainer.strategy.checkpoint_io
    assert type(plugin) is AsyncCheckpointIO
    assert type(plugin.checkpoint_io) is WholeFiles


def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    old, new, other = tmp_path / ".a.ckpt.77.tmp", tmp_path / ".b.ckpt.78.tmp", tmp_path / ".c.png.79.tmp"
    for path in (old, new, other):
        path.touch()
    for path in (old, other):
        os.utime(path, (1, 1))
    WholeFiles().save_checkpoint({"a": 1}, tmp_path / "a.ckpt")
    assert {*tmp_path.iterdir()} == {new, other, tmp_path / "a.ckpt"}
    WholeFiles().prepare(tmp_path, own=True)
    assert {*tmp_path.iterdir()} == {other, tmp_path / "a.ckpt"}


@pytest.mark.parametrize("folder", ["the run's own", "another"])
def test_what_a_run_that_was_killed_just_now_left(tmp_path: Path, folder: str) -> None:
    """Only in the folder of the run itself: elsewhere another run may be writing."""
    logger = CSVLogger(tmp_path / "logs", version="week")
    checkpoints = Path(logger.log_dir, "checkpoints") if folder == "the run's own" else tmp_path / "all"
    checkpoints.mkdir(parents=True)
    left = checkpoints / ".last.ckpt.77.tmp"
    left.touch()
    trainer = Trainer(
        accelerator="cpu",
        logger=logger,
        callbacks=[CheckpointFiles(), ModelCheckpoint(dirpath=checkpoints)],
        max_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(BoringModel(), DataLoader(RandomDataset(32, 4)))
    assert left.exists() is (folder == "another")


def test_a_full_disk_leaves_older_checkpoints_whole(disk: Callable[[str], Path]) -> None:
    folder, files = disk("size=1m"), WholeFiles()
    files.save_checkpoint({"a": torch.zeros(1000)}, folder / "a.ckpt")
    with pytest.raises(
        FacelitError, match=r"a\.ckpt: cannot write this file \(No space left on device\)\. The checkpoints"
    ):
        files.save_checkpoint({"a": torch.zeros(1_000_000)}, folder / "a.ckpt")
    assert torch.load(folder / "a.ckpt")["a"].shape == (1000,)
    assert [*folder.iterdir()] == [folder / "a.ckpt"]


@pytest.mark.parametrize("full", ["start", "later"])
def test_runs_on_a_full_disk(
    tmp_path: Path, disk: Callable[[str], Path], capsys: pytest.CaptureFixture[str], full: str
) -> None:
    """The network takes 17 kB, a checkpoint about 60."""
    folder, config = disk("size=100k" if full == "later" else "size=8k"), make_run(tmp_path)
    error = failing(capsys, "--config", config, "--checkpoint.dirpath", folder)
    if full == "start":
        assert f"{folder}: 0 MB are free" in error
        assert not [*tmp_path.glob("**/metrics.csv")]
    else:
        assert f"{folder}/" in error
        assert "No space left on device" in error
    for path in folder.glob("*.ckpt"):
        torch.load(path, weights_only=True)


@pytest.mark.parametrize("what", ["checkpoints", "logs"])
def test_read_only_folders(
    tmp_path: Path, disk: Callable[[str], Path], capsys: pytest.CaptureFixture[str], what: str
) -> None:
    folder, config = disk("size=1m,ro"), make_run(tmp_path)
    option = {"checkpoints": "--checkpoint.dirpath", "logs": "--trainer.logger.init_args.save_dir"}[what]
    error = failing(capsys, "--config", config, option, folder / "runs")
    assert error.startswith(f"facelit: error: {folder}")
    assert "Read-only file system" in error


@pytest.mark.parametrize("logger", ["CSVLogger", "TensorBoardLogger"])
def test_a_folder_deleted_under_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], logger: str
) -> None:
    validated = VerificationCallback.on_validation_end

    def delete(self: VerificationCallback, trainer: Any, module: Any) -> None:
        shutil.rmtree(tmp_path / "runs")
        validated(self, trainer, module)

    monkeypatch.setattr(VerificationCallback, "on_validation_end", delete)
    options = {"class_path": f"pytorch_lightning.loggers.{logger}", "init_args": {"save_dir": str(tmp_path / "runs")}}
    error = failing(capsys, "--config", make_run(tmp_path, trainer__logger=options))
    assert "version_0/checkpoints: was deleted while the run was writing to it" in error
    assert not [*tmp_path.glob("runs/**/*.ckpt")]


def test_quotas_and_what_is_no_disk_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CheckpointFiles, "folder", None)
    error = explain_disk(OSError(errno.EDQUOT, "Disk quota exceeded", "/runs/a"))
    assert str(error) == "/runs/a: cannot be written (Disk quota exceeded)."
    assert explain_disk(OSError(errno.ECONNRESET, "Connection reset")) is None


def test_a_full_disk_where_the_logs_go(
    tmp_path: Path, disk: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """TensorBoard's thread is the first to write, and says nothing of its own."""
    folder, config = disk("size=4k"), make_run(tmp_path)
    (folder / "full").write_bytes(bytes(4096))
    logger = ["--trainer.logger", "TensorBoardLogger", "--trainer.logger.save_dir", folder]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pytest.PytestUnhandledThreadExceptionWarning)
        error = failing(capsys, "--config", config, *logger, "--run_name", "week", "--ckpt_path", "auto")
    assert error.startswith(f"facelit: error: {folder}/tiny/week: cannot be written (No space left on device)")
    full = OSError(errno.ENOSPC, "No space left on device")
    _thread_failed(threading.ExceptHookArgs((OSError, full, None, threading.current_thread())))
    assert capsys.readouterr().err == ""
    _thread_failed(threading.ExceptHookArgs((ValueError, ValueError("else"), None, threading.current_thread())))
    assert "ValueError: else" in capsys.readouterr().err
