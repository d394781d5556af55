"""LastCheckpoint: when `last.ckpt` is written, and what it knows."""

import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.demos.boring_classes import BoringModel
from pytorch_lightning.plugins.io import AsyncCheckpointIO, TorchCheckpointIO

from facelit import FaceRecognizer
from facelit.backbones import VGG16
from facelit.callbacks import LastCheckpoint
from facelit.cli import main
from facelit.data import FaceDataModule, IdentityFolder
from facelit.errors import FacelitError
from facelit.heads import SoftmaxHead
from tiny_run import make_run, write_crops


def recorded_saves(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The steps at which `last.ckpt` is written from now on."""
    steps: list[int] = []
    save = Trainer.save_checkpoint

    def record(self: Trainer, filepath: Any, *args: Any, **kwargs: Any) -> None:
        if Path(filepath).name == "last.ckpt":
            steps.append(self.global_step)
        save(self, filepath, *args, **kwargs)

    monkeypatch.setattr(Trainer, "save_checkpoint", record)
    return steps


def checkpoint_callback(state: dict[str, Any]) -> dict[str, Any]:
    (found,) = [value for key, value in state["callbacks"].items() if key.startswith("ModelCheckpoint")]
    return found


def test_written_though_accuracy_does_not_improve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A learning rate of 0 and no batch normalisation: the first accuracy is never beaten, last.ckpt goes on."""
    steps = recorded_saves(monkeypatch)
    config = make_run(tmp_path, model__backbone__init_args__plain=True)
    main(["fit", "--config", str(config), "--model.optimizer.lr", "0"])
    assert sorted(set(steps)) == [6, 12, 18]
    (best,) = tmp_path.glob("**/epoch*.ckpt")
    assert best.name.startswith("epoch000-step0000006")
    state = torch.load(best.parent / "last.ckpt", weights_only=True)
    assert state["global_step"] == 18
    assert Path(checkpoint_callback(state)["best_model_path"]) == best


def test_written_after_each_validation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of an epoch too."""
    steps = recorded_saves(monkeypatch)
    options = ["--trainer.val_check_interval", "2", "--trainer.max_epochs", "1"]
    main(["fit", "--config", str(make_run(tmp_path)), *options])
    assert sorted(set(steps)) == [2, 4, 6]


def test_knows_the_best_checkpoint_of_its_own_step(finished: Any) -> None:
    """It is written after the best one was chosen, and holds what a run resumes from."""
    state = torch.load(finished.checkpoints / "last.ckpt", weights_only=True)
    (best,) = finished.checkpoints.glob("epoch*.ckpt")
    assert state["global_step"] == 12
    assert Path(checkpoint_callback(state)["best_model_path"]) == best
    assert state["optimizer_states"]
    assert state["lr_schedulers"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--last_checkpoint.every_n_train_steps", "4", "--trainer.max_epochs", "2"], [4, 6, 8, 12]),
        (["--trainer.max_steps", "9"], [6, 9]),
        (["--trainer.max_epochs", "1"], [6]),
    ],
    ids=["every 4 steps", "max_steps mid-epoch", "epochs only"],
)
def test_written_at_these_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], expected: list[int]
) -> None:
    steps = recorded_saves(monkeypatch)
    main(["fit", "--config", str(make_run(tmp_path, data__verification=None)), *options])
    assert steps == expected
    (path,) = tmp_path.glob("**/last.ckpt")
    assert torch.load(path, weights_only=True)["global_step"] == expected[-1]


@pytest.mark.parametrize("beside", ["nothing", "before a ModelCheckpoint", "after a ModelCheckpoint"])
def test_from_python(tmp_path: Path, beside: str) -> None:
    """Where the best checkpoints go, in whichever order the callbacks are named; alone in the trainer's folder."""
    best = ModelCheckpoint(dirpath=tmp_path / "kept", filename="best")
    last = LastCheckpoint()
    trainer = Trainer(
        accelerator="cpu",
        max_steps=2,
        logger=False,
        default_root_dir=tmp_path,
        callbacks={"nothing": [last], "before a ModelCheckpoint": [last, best]}.get(beside, [best, last]),
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = FaceDataModule(train=IdentityFolder(write_crops(tmp_path / "crops")), batch_size=8, num_workers=0)
    trainer.fit(FaceRecognizer(VGG16(16, width=0.01), SoftmaxHead(8, 16)), data)
    folder = tmp_path / ("checkpoints" if beside == "nothing" else "kept")
    assert torch.load(folder / "last.ckpt", weights_only=True)["global_step"] == 2
    assert len(list(tmp_path.glob("**/last.ckpt"))) == 1


def test_a_trial_run_writes_nothing(tmp_path: Path) -> None:
    main(["fit", "--config", str(make_run(tmp_path)), "--trainer.fast_dev_run", "1"])
    assert not list(tmp_path.glob("**/*.ckpt"))


class SlowIO(TorchCheckpointIO):
    """A disk that takes its time."""

    def save_checkpoint(self, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
        time.sleep(0.2)
        super().save_checkpoint(checkpoint, path, storage_options)


def test_a_checkpoint_that_is_written_asynchronously_is_waited_for(tmp_path: Path) -> None:
    trainer = Trainer(accelerator="cpu", logger=False, plugins=[AsyncCheckpointIO(SlowIO())], default_root_dir=tmp_path)
    trainer.strategy.connect(BoringModel())
    callback = LastCheckpoint()
    callback.dirpath = tmp_path
    callback._save(trainer)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
    assert isinstance(trainer.strategy.checkpoint_io, AsyncCheckpointIO)  # for all other checkpoints


class Later(TorchCheckpointIO):
    """Writes in a thread of its own, which nobody is told of."""

    def save_checkpoint(self, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
        pass


class Shards(TorchCheckpointIO):
    """Writes a folder."""

    def save_checkpoint(self, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
        Path(path).mkdir(parents=True)
        super().save_checkpoint(checkpoint, Path(path, "0.pt"), storage_options)


class OneFile(TorchCheckpointIO):
    pass


@pytest.mark.parametrize(
    ("plugin", "what"),
    [
        (Later(), "Later returns before its file is there"),
        (Shards(), "Shards writes a folder"),
        (AsyncCheckpointIO(Shards()), "Shards writes a folder"),
        (OneFile(), ""),
        (AsyncCheckpointIO(OneFile()), ""),
    ],
    ids=["later", "shards", "shards in the background", "one file", "one file in the background"],
)
def test_a_plugin_of_the_users_own_is_tried_before_training(tmp_path: Path, plugin: Any, what: str) -> None:
    """Two epochs: a second `last.ckpt` replaces the first."""
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "limit_val_batches": 0}
    trainer = Trainer(
        accelerator="cpu",
        default_root_dir=tmp_path,
        plugins=[plugin],
        callbacks=[LastCheckpoint()],
        max_epochs=2,
        limit_train_batches=1,
        **quiet,  # type: ignore[arg-type]  # of several types
    )
    with pytest.raises(FacelitError, match=what) if what else nullcontext():
        trainer.fit(BoringModel())
    assert trainer.global_step == (0 if what else 2)
    kept = [path.name for path in (tmp_path / "checkpoints").iterdir()] if not what else []
    assert ("last.ckpt" in kept) == (not what)
    assert not list(tmp_path.glob("**/start.ckpt*"))
