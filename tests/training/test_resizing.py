"""Progressive resizing: which step sees which size, what a smaller image is, resumed runs, backbones, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_lightning import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from facelit import FacelitError, FaceRecognizer
from facelit.backbones import VGG16, AdaFaceIR, IResNet, MobileFaceNet
from facelit.cli import main
from facelit.heads import SoftmaxHead
from facelit.training.resizing import ProgressiveResizing, Resizer
from tiny_run import TINY_VGG, make_run

SIZES = ["--model.resizing.sizes", "[32, 48]", "--model.resizing.share", "0.6"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two epochs of six steps."""
    folder = tmp_path_factory.mktemp("resizing")
    make_run(folder, model__backbone=TINY_VGG, data__verification={}, trainer__max_epochs=2)
    return folder


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The side of every training batch that a VGG16 embeds."""
    sides: list[int] = []
    forward = VGG16.forward

    def note(self: VGG16, images: Tensor) -> Tensor:
        if self.training:
            sides.append(images.shape[-1])
        return forward(self, images)

    monkeypatch.setattr(VGG16, "forward", note)
    return sides


def fit(run: Path, name: str, *options: str) -> dict[str, Any]:
    main(["fit", "--config", str(run / "tiny.yaml"), "--run_name", name, *options])
    last = run / "runs" / "tiny" / name / "checkpoints" / "last.ckpt"
    return torch.load(last, weights_only=True)["state_dict"]  # type: ignore[no-any-return]


def test_a_resumed_run_sees_the_sizes_of_an_uninterrupted_one(
    run: Path, seen: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fit(run, "whole", *SIZES)
    # 60 % of 12 steps are 7.2: step 3 is the last one below 3.6.
    assert seen == [32] * 4 + [48] * 4 + [112] * 4
    seen.clear()
    with monkeypatch.context() as patch:  # stops after the first epoch, as a signal would
        patch.setattr(
            FaceRecognizer, "on_train_epoch_end", lambda self: setattr(self.trainer, "should_stop", True), raising=False
        )
        fit(run, "halves", *SIZES)
    assert len(seen) == 6
    halves = fit(run, "halves", *SIZES, "--ckpt_path", "auto")
    assert seen == [32] * 4 + [48] * 4 + [112] * 4
    assert all(torch.equal(halves[name], value) for name, value in whole.items())


def test_a_smaller_image_is_the_crop_averaged() -> None:
    crop = np.random.default_rng(0).normal(size=(112, 112)).astype(np.float32)
    resizer = Resizer(ProgressiveResizing([64], 0.5))  # type: ignore[arg-type]
    resizer._steps = 10
    images = torch.from_numpy(crop).expand(2, 3, 112, 112).contiguous(memory_format=torch.channels_last)
    small = resizer(images, step=4)
    expected = np.asarray(Image.fromarray(crop).resize((64, 64), Image.Resampling.BILINEAR))
    assert small.is_contiguous(memory_format=torch.channels_last)
    assert np.allclose(small[1, 2], expected, atol=1e-5)
    assert resizer(images, step=5) is images


def test_each_size_has_an_equal_part_of_the_share() -> None:
    resizing = ProgressiveResizing((64, 80, 96), 0.75)
    sizes = [resizing.size_at(step, 1000) for step in range(1000)]
    assert [sizes.count(size) for size in (64, 80, 96, 112)] == [250] * 4
    assert sizes == sorted(sizes)


@pytest.mark.parametrize(
    "backbone",
    [
        VGG16(8, width=0.01, batch_norm=True),
        VGG16(8, width=0.01, neck="standard", batch_norm=True),
        IResNet(18, 8, width=0.01),
        MobileFaceNet(8, width=0.05),
        pytest.param("AdaFaceIR", id="AdaFaceIR"),
    ],
    ids=lambda backbone: type(backbone).__name__,
)
def test_the_backbones_take_small_images_and_refuse_large_ones(backbone: nn.Module | str) -> None:
    network = AdaFaceIR(18, 8) if isinstance(backbone, str) else backbone
    network.eval()
    with torch.no_grad():
        for size in (32, 64, 80, 100):
            assert network(torch.rand(1, 3, size, size)).shape == (1, 8)
        with pytest.raises(RuntimeError):
            network(torch.rand(1, 3, 224, 224))


def test_what_cannot_be_resized_ends_in_one_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for option, value, words in (
        ("sizes", "[31]", "sides from 32 to 111 pixels, not 31"),
        ("sizes", "[64, 112]", "not 112"),
        ("sizes", "[]", "there is none"),
        ("share", "1", "must be between 0 and 1, not 1"),
        ("share", "0", "must be between 0 and 1, not 0"),
    ):
        with pytest.raises(SystemExit) as ended:
            fit(run, "refused", *SIZES, f"--model.resizing.{option}", value)
        assert ended.value.code
        assert words in capsys.readouterr().err.strip().splitlines()[-1]


def test_a_backbone_for_one_size_is_refused_before_the_first_step() -> None:
    images = torch.rand(4, 3, 112, 112)
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(3 * 112 * 112, 6))
    model = FaceRecognizer(backbone, SoftmaxHead(3, 6), resizing=ProgressiveResizing((64,)))
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(accelerator="cpu", max_epochs=1, enable_model_summary=False, **quiet)
    with pytest.raises(FacelitError, match="Sequential does not take images of 64x64"):
        trainer.fit(model, DataLoader(TensorDataset(images, torch.arange(4) % 3), batch_size=2))
    assert trainer.global_step == 0
