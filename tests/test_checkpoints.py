"""Finding checkpoints: the last, the best, the last good one."""

import os
from pathlib import Path

import pytest
import torch

from facelit import FacelitError
from facelit.checkpoints import find_checkpoint, last_finite_checkpoint


def write(path: Path, age: int, weight: float = 1.0, best: Path | str = "") -> Path:
    """A checkpoint that was written `age` seconds ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {"weight": torch.tensor([0.0, weight]), "count": torch.tensor(3)}
    callbacks = {"ModelCheckpoint{}": {"best_model_path": str(best)}} if best else {"Other": 3}
    torch.save({"state_dict": state, "callbacks": callbacks}, path)
    os.utime(path, (1e9 - age, 1e9 - age))
    return path


def test_last_finite_checkpoint_is_the_newest_good_one(tmp_path: Path) -> None:
    old = write(tmp_path / "z.ckpt", age=30)
    good = write(tmp_path / "a.ckpt", age=20)
    nan = write(tmp_path / "n.ckpt", age=10, weight=float("nan"))
    infinite = write(tmp_path / "i.ckpt", age=5, weight=float("-inf"))
    damaged = tmp_path / "d.ckpt"
    damaged.write_bytes(good.read_bytes()[:100])
    assert last_finite_checkpoint(tmp_path.glob("*.ckpt")) == good
    assert last_finite_checkpoint([infinite, old, nan, damaged]) == old
    assert last_finite_checkpoint([nan, damaged]) is None
    assert last_finite_checkpoint([]) is None


def test_last_is_the_newest_of_all_runs(tmp_path: Path) -> None:
    folders = [tmp_path / f"version_{number}" / "checkpoints" for number in range(4)]
    write(folders[0] / "last.ckpt", age=30)
    newest = write(folders[1] / "last.ckpt", age=10)
    write(folders[2] / "last.ckpt", age=20)
    folders[3].mkdir(parents=True)
    write(folders[2] / "epoch000.ckpt", age=1)
    assert find_checkpoint("last", folders) == newest


def test_best_is_what_the_last_run_kept(tmp_path: Path) -> None:
    folder = tmp_path / "version_0" / "checkpoints"
    best = write(folder / "epoch003.ckpt", age=50)
    write(folder / "epoch004.ckpt", age=20)
    write(folder / "last.ckpt", age=10, best=best)
    assert find_checkpoint("best", [folder]) == best


def test_best_of_a_run_that_was_moved(tmp_path: Path) -> None:
    folder = tmp_path / "version_0" / "checkpoints"
    best = write(folder / "epoch003.ckpt", age=50)
    write(folder / "last.ckpt", age=10, best="/elsewhere/version_0/checkpoints/epoch003.ckpt")
    assert find_checkpoint("best", [folder]) == best


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FacelitError, match=r"ckpt_path last: there is no last\.ckpt in .*holds no run"):
        find_checkpoint("last", [])
    with pytest.raises(FacelitError, match=rf"no last\.ckpt in {tmp_path}"):
        find_checkpoint("best", [tmp_path / "version_0" / "checkpoints"])
    write(tmp_path / "version_0" / "checkpoints" / "last.ckpt", age=1)
    with pytest.raises(FacelitError, match="knows of no best checkpoint"):
        find_checkpoint("best", [tmp_path / "version_0" / "checkpoints"])
