"""Which checkpoint is meant where none is named."""

import os
from pathlib import Path

import pytest
import torch

from facelit.checkpoints import newest_checkpoint
from facelit.errors import FacelitError


def write(path: Path, age: int, best: object = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    callbacks = {"ModelCheckpoint{}": {"best_model_path": str(best)}} if best else {}
    torch.save({"state_dict": {}, "callbacks": callbacks}, path)
    os.utime(path, (1e9 - age, 1e9 - age))
    return path


def test_the_newest_runs_best(tmp_path: Path) -> None:
    """Of any name; its last one where it has kept no best; moved runs too."""
    old = write(tmp_path / "center" / "version_0" / "checkpoints" / "epoch3.ckpt", 90)
    write(old.parent / "last.ckpt", 80, best=old)
    assert newest_checkpoint(tmp_path) == old
    write(tmp_path / "triplet" / "version_4" / "checkpoints" / "best.ckpt", 60)
    write(tmp_path / "triplet" / "version_4" / "checkpoints" / "last.ckpt", 50, best="/gone/checkpoints/best.ckpt")
    assert newest_checkpoint(tmp_path) == tmp_path / "triplet" / "version_4" / "checkpoints" / "best.ckpt"
    last = write(tmp_path / "other" / "checkpoints" / "last.ckpt", 40)
    assert newest_checkpoint(tmp_path) == last
    write(last, 30, best="/gone/absent.ckpt")
    assert newest_checkpoint(tmp_path) == last


def test_no_run_at_all(tmp_path: Path) -> None:
    with pytest.raises(FacelitError, match="no checkpoint is named, and there is no run below"):
        newest_checkpoint(tmp_path / "runs")
