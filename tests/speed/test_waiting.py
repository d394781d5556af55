"""Between two logging steps nothing waits for the device.

On the "meta" device there are shapes and no numbers: whoever reads a number from it, copies a tensor of it to the CPU, or asks
which elements are nonzero gets an error. Tensors on the CPU can be read as ever. It stands in for a GPU.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.accelerators import CPUAccelerator
from pytorch_lightning.callbacks import TQDMProgressBar
from pytorch_lightning.strategies import SingleDeviceStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader

import facelit.training.recognizer
from facelit import FaceRecognizer, heads
from facelit.callbacks.finite_loss import StopOnNonFiniteLoss
from facelit.data import Augmentation, FaceDataModule
from facelit.data.batches import TrainBatch
from facelit.data.reading import BadImage

IDENTITIES, BATCH, STEPS, LOG_EVERY = 6, 4, 8, 4


class MetaAccelerator(CPUAccelerator):
    def setup_device(self, device: torch.device) -> None:
        """The CPU's own refuses any other device."""


class MetaStrategy(SingleDeviceStrategy):
    def reduce(self, *args: Any, **kwargs: Any) -> Tensor:
        """Asked before the training only: whether the loader has a length."""
        return torch.tensor(STEPS)

    def teardown(self) -> None:
        """Lightning's own brings the weights back to the CPU: there are none."""


class Batches(FaceDataModule):
    """Random batches, one of them with an image that could not be read, augmented as in a run."""

    def train_dataloader(self) -> DataLoader[TrainBatch]:
        bad = [(), (BadImage("a.png", "broken"),)]
        batches = [
            TrainBatch(
                torch.randint(0, 256, (BATCH, 3, 112, 112), dtype=torch.uint8),
                torch.tensor([0, 0, 1, 5]),
                torch.rand(BATCH, 20),
                bad[step == 1],
                BATCH,
            )
            for step in range(STEPS)
        ]
        return DataLoader(batches, batch_size=None)

    def setup(self, stage: str) -> None:
        """There is no training set to look at."""


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A 1 for each time that figures are read; instead of the unknown numbers they are 0."""
    steps: list[int] = []

    def fetch_scalars(figures: dict[str, Tensor], average: Any = None) -> dict[str, Tensor]:
        assert all(value.is_meta and value.ndim == 0 for value in figures.values())
        steps.append(1)
        return {name: torch.zeros(()) for name in figures}

    monkeypatch.setattr(facelit.training.loss, "fetch_scalars", fetch_scalars)
    monkeypatch.setattr(StopOnNonFiniteLoss, "_stop_if_bad", lambda self, trainer: None)
    return steps


@pytest.fixture(autouse=True)
def _no_autocast_on_meta(monkeypatch: pytest.MonkeyPatch) -> None:
    real = torch.autocast
    monkeypatch.setattr(torch, "autocast", lambda device, **options: real(device.replace("meta", "cpu"), **options))


def network() -> nn.Module:
    convolution = nn.Conv2d(3, 4, 5, stride=4)
    return nn.Sequential(convolution, nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(2916, 8))


def fit(model: FaceRecognizer, folder: Path, **options: Any) -> Trainer:
    defaults: dict[str, Any] = {
        "accelerator": MetaAccelerator(),
        "strategy": MetaStrategy(device=torch.device("meta")),  # type: ignore[arg-type]
        "callbacks": [TQDMProgressBar()],
        "max_epochs": 1,
        "limit_val_batches": 0,
        "log_every_n_steps": LOG_EVERY,
        "logger": False,
        "default_root_dir": folder,
        "enable_checkpointing": False,
        "use_distributed_sampler": False,
        "enable_model_summary": False,
        "gradient_clip_val": 1.0,
    }
    trainer = Trainer(**{**defaults, **options})
    trainer.fit(
        model, Batches(augmentation=Augmentation(rotate=10, brightness=0.1, erase=0.1, blur=0.1), num_workers=0)
    )
    return trainer


HEADS = {
    "center": lambda: heads.CenterLossHead(IDENTITIES, 8),
    "arcface": lambda: heads.ArcFaceHead(IDENTITIES, 8),
    "triplet": lambda: heads.TripletHead(),
}


@pytest.mark.parametrize(("head", "accumulate"), [("center", 1), ("arcface", 1), ("triplet", 1), ("center", 2)])
def test_only_logging_steps_wait(tmp_path: Path, reads: list[int], head: str, accumulate: int) -> None:
    model = FaceRecognizer(network(), HEADS[head](), lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9))
    trainer = fit(model, tmp_path, accumulate_grad_batches=accumulate)
    assert trainer.global_step == STEPS // accumulate
    assert sum(reads) == 1 + trainer.global_step // LOG_EVERY, "the first step, and every fourth"


class ForbidWaiting(Callback):
    """Makes CUDA raise where the host waits for it, except at logging steps."""

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        logs = trainer.global_step == 0 or (trainer.global_step + 1) % LOG_EVERY == 0
        torch.cuda.set_sync_debug_mode("default" if logs else "error")

    def on_train_epoch_end(self, *args: Any) -> None:
        torch.cuda.set_sync_debug_mode("default")

    on_exception = on_train_epoch_end


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("head", HEADS)
def test_only_logging_steps_wait_for_a_gpu(tmp_path: Path, head: str) -> None:
    model = FaceRecognizer(network(), HEADS[head](), lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9))
    trainer = fit(model, tmp_path, accelerator="gpu", devices=1, strategy="auto", callbacks=[ForbidWaiting()])
    assert trainer.global_step == STEPS
