"""Training under a teacher: its loss by hand, its kept embeddings, checkpoints, two processes, and what is refused."""

import csv
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from pytorch_lightning import Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from facelit import FacelitError, FaceRecognizer, load
from facelit.backbones import VGG16
from facelit.checkpoints import CHECKPOINT_KEY
from facelit.cli import main
from facelit.data import IdentityFolder
from facelit.data.reading import CropReader
from facelit.heads import DistillationHead, DistillationLoss, SoftmaxHead
from facelit.storage.images import read_crop
from facelit.training.distillation import DistillationTerm
from facelit.training.teacher import Teacher, open_teacher
from facelit.training.teacher_table import teacher_table
from tiny_net import TinyNet
from tiny_onnx import write_onnx
from tiny_run import make_run
from two_processes import facelit_on_two_processes

WIDTH, TEACHER_WIDTH, WEIGHT = 16, 12, 3.0


def write_teacher(path: Path, embedding_dim: int = TEACHER_WIDTH, seed: int = 5) -> Path:
    torch.manual_seed(seed)
    arguments = {"width": 0.01, "embedding_dim": embedding_dim, "batch_norm": True}
    network = VGG16(**arguments)
    torch.save(
        {
            "state_dict": {f"backbone.{name}": value for name, value in network.state_dict().items()},
            "hyper_parameters": {"backbone": {"class_path": "facelit.backbones.VGG16", "init_args": arguments}},
            CHECKPOINT_KEY: {},
        },
        path,
    )
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Crops, pairs, a teacher, and a configuration under it; the two of unequal width."""
    folder = tmp_path_factory.mktemp("distillation")
    teacher = write_teacher(folder / "teacher.ckpt")
    distillation = {"teacher": str(teacher), "weight": WEIGHT, "view": "stored"}
    make_run(folder, model__distillation=distillation, data__verification={}, trainer__max_epochs=2)
    return folder


def fit(run: Path, name: str, *options: str) -> Path:
    """Trains; returns the run's folder."""
    main(["fit", "--config", str(run / "tiny.yaml"), "--run_name", name, *options])
    return run / "runs" / "tiny" / name


def state(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)  # type: ignore[no-any-return]


def tables(run: Path) -> list[Path]:
    return sorted(run.glob("crops.teacher-*.npy"))


@pytest.fixture(scope="module")
def stored(run: Path) -> Path:
    return fit(run, "stored")


def test_the_loss_is_the_heads_plus_the_weighted_distance_to_the_teacher() -> None:
    images = torch.rand(8, 3, 112, 112, generator=torch.Generator().manual_seed(0)) * 2 - 1
    labels = torch.arange(8) % 3
    torch.manual_seed(2)
    mentor = nn.Sequential(nn.Flatten(), nn.Linear(3 * 112 * 112, 6))

    def student() -> FaceRecognizer:
        torch.manual_seed(0)
        layer = nn.Linear(3 * 112 * 112, 6)
        backbone = nn.Sequential(nn.Flatten(), layer)
        backbone.embedding_dim = 6  # type: ignore[assignment]
        term = DistillationTerm("mentor", weight=WEIGHT)
        return FaceRecognizer(
            backbone, SoftmaxHead(3, 6), lambda params: torch.optim.SGD(params, lr=0.01), distillation=term
        )

    model = student()
    assert model.distillation is not None
    model.distillation._teacher = Teacher(mentor, Path("mentor"))
    model.distillation.loss = DistillationLoss(6, 6)
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    Trainer(accelerator="cpu", max_epochs=3, enable_model_summary=False, **quiet).fit(
        model, DataLoader(TensorDataset(images, labels), batch_size=8)
    )

    other = student()
    layer, head = other.backbone[1], other.head
    optimizer = torch.optim.SGD([*layer.parameters(), *head.parameters()], lr=0.01)
    with torch.no_grad():
        targets = mentor(images)
    for _ in range(3):
        embeddings = layer(images.flatten(1))
        softmax = F.cross_entropy(F.linear(embeddings, head.weight, head.bias), labels)
        loss = softmax + WEIGHT * (1 - F.cosine_similarity(embeddings, targets)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for name, value in other.state_dict().items():
        assert torch.allclose(model.state_dict()[name], value, atol=1e-6), name


def test_the_kept_table_holds_the_teachers_embedding_of_each_stored_crop(run: Path, stored: Path) -> None:
    (table,) = tables(run)
    crops = sorted((run / "crops").rglob("*.png"))
    expected = load(run / "teacher.ckpt").embed(np.stack([read_crop(path) for path in crops]))
    assert np.allclose(np.load(table), expected, atol=1e-6)


def test_the_logged_loss_is_the_distance_to_the_kept_embeddings(run: Path, stored: Path) -> None:
    with (stored / "metrics.csv").open() as file:
        steps = [row for row in csv.DictReader(file) if row["train/loss"]]
    assert len(steps) == 12  # 48 crops in batches of 8, twice
    for row in steps:
        softmax, center, distance = (float(row[f"train/loss_{name}"]) for name in ("softmax", "center", "distillation"))
        assert 0 < distance < 2
        assert float(row["train/loss"]) == pytest.approx(softmax + 0.003 * center + WEIGHT * distance, rel=1e-4)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images the teacher embeds at a time."""
    calls: list[int] = []
    embed = Teacher.embed

    def count(self: Teacher, images: torch.Tensor) -> torch.Tensor:
        calls.append(len(images))
        return embed(self, images)

    monkeypatch.setattr(Teacher, "embed", count)
    return calls


def test_a_second_run_takes_the_kept_embeddings_and_ends_the_same(run: Path, stored: Path, counted: list[int]) -> None:
    again = fit(run, "again")
    assert counted == [2, 16]  # whether it works at all; whether the table still holds
    for name, value in state(stored)["state_dict"].items():
        assert torch.equal(state(again)["state_dict"][name], value), name


def test_an_image_changed_under_its_name_is_noticed(run: Path, stored: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run / "crops", copy / "crops")
    teacher, moved = open_teacher(str(run / "teacher.ckpt")), copy / "crops"

    def make() -> Any:
        return teacher_table(teacher, CropReader(IdentityFolder(moved)), torch.device("cpu"), writes=True)

    first = np.array(make())
    path = sorted(moved.rglob("*.png"))[0]
    Image.fromarray(255 - read_crop(path)).save(path)
    second = make()
    assert not np.allclose(first[0], second[0], atol=1e-2)
    assert np.array_equal(first[1:], second[1:])


def test_without_augmentation_the_teacher_runs_once_whatever_the_view(
    run: Path, stored: Path, counted: list[int]
) -> None:
    options = ["--model.distillation.view", "augmented", "--data.augmentation.flip", "0", "--trainer.max_steps", "2"]
    fit(run, "unmoved", *options)
    assert counted == [2, 16]
    counted.clear()
    fit(run, "moved", *options, "--data.augmentation.flip", "0.5")
    assert counted == [2, 8, 8]


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(run: Path, stored: Path) -> None:
    fit(run, "halves", "--trainer.max_epochs", "1")
    whole = fit(run, "halves", "--ckpt_path", "auto")
    for name, value in state(stored)["state_dict"].items():
        assert torch.equal(state(whole)["state_dict"][name], value), name


def test_two_processes_end_where_one_does(run: Path, stored: Path) -> None:
    tables(run)[0].unlink()  # so that both of them compute it
    plain = ["--model.backbone.init_args.plain", "true"]
    plain += ["--model.optimizer.init_args.lr", "0.001"]
    facelit_on_two_processes(
        "fit", "--config", run / "tiny.yaml", "--run_name", "pair", "--data.batch_size", "4", *plain
    )
    pair = state(run / "runs" / "tiny" / "pair")["state_dict"]
    for name, value in state(fit(run, "one", *plain))["state_dict"].items():
        torch.testing.assert_close(
            pair[name], value, rtol=1e-4, atol=2e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_a_checkpoint_holds_the_map_but_not_the_teacher_which_only_fit_opens(
    run: Path, stored: Path, tmp_path: Path
) -> None:
    checkpoint = state(stored)
    names = [name for name in checkpoint["state_dict"] if name.startswith("distillation")]
    assert names == ["distillation.loss.map.weight"]
    assert checkpoint["state_dict"][names[0]].shape == (TEACHER_WIDTH, WIDTH)
    teacher, away = run / "teacher.ckpt", tmp_path / "away.ckpt"
    teacher.rename(away)
    try:
        path = str(stored / "checkpoints" / "last.ckpt")
        pairs = {"tiny": {"class_path": "facelit.data.PairsFolder", "init_args": {}}}
        pairs["tiny"]["init_args"] = {"root": str(run / "crops"), "pairs": str(run / "pairs.txt")}  # type: ignore[dict-item]
        main(["validate", "--config", str(run / "tiny.yaml"), "--ckpt_path", path, "--data.verification", str(pairs)])
        assert load(path, backbone=TinyNet(WIDTH)).embedding_dim == WIDTH
        with pytest.raises(SystemExit):
            fit(run, "gone")
    finally:
        away.rename(teacher)


def refusal(capsys: pytest.CaptureFixture[str], run: Path, *options: str) -> str:
    with pytest.raises(SystemExit) as ended:
        fit(run, "refused", *options)
    assert ended.value.code
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("facelit: error: ")
    return last


def test_what_is_no_teacher_ends_in_one_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = refusal(capsys, run, "--model.distillation.teacher", str(tmp_path / "none.ckpt"))
    assert "none.ckpt: there is no such file (option model.distillation.teacher)" in missing
    text = tmp_path / "text.ckpt"
    text.write_text("not weights")
    assert "text.ckpt" in refusal(capsys, run, "--model.distillation.teacher", str(text))
    broken = torch.load(write_teacher(tmp_path / "nan.ckpt"), weights_only=True)
    broken["state_dict"] = {name: value * float("nan") for name, value in broken["state_dict"].items()}
    torch.save(broken, tmp_path / "nan.ckpt")
    assert "NaN or infinite" in refusal(capsys, run, "--model.distillation.teacher", str(tmp_path / "nan.ckpt"))
    for option, value in (("weight", "0"), ("weight", "-1"), ("view", "both"), ("distance", "l3")):
        assert option in refusal(capsys, run, f"--model.distillation.{option}", value)


def test_a_run_is_not_resumed_under_another_teacher(
    run: Path, stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_teacher(tmp_path / "other.ckpt", seed=6)
    last = stored / "checkpoints" / "last.ckpt"
    options = ["--ckpt_path", str(last), "--trainer.max_epochs", "3", "--model.distillation.teacher", str(other)]
    assert "another teacher" in refusal(capsys, run, *options)


def test_a_loader_of_ones_own_has_no_stored_crops() -> None:
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(3 * 112 * 112, 6))
    backbone.embedding_dim = 6  # type: ignore[assignment]
    model = FaceRecognizer(backbone, SoftmaxHead(3, 6), distillation=DistillationTerm("mentor", view="stored"))
    assert model.distillation is not None
    model.distillation._teacher = Teacher(nn.Sequential(nn.Flatten(), nn.Linear(3 * 112 * 112, 6)), Path("mentor"))
    with pytest.raises(FacelitError, match="needs FaceDataModule"):
        model.distillation.begin(Trainer(accelerator="cpu", logger=False), torch.device("cpu"))


def test_a_head_without_labels_needs_a_teacher_and_learns_from_it(run: Path, stored: Path) -> None:
    with pytest.raises(FacelitError, match="DistillationHead learns from a teacher alone"):
        FaceRecognizer(VGG16(width=0.01, embedding_dim=4), DistillationHead())
    alone = fit(run, "alone", "--model.head", "facelit.heads.DistillationHead", "--trainer.max_steps", "3")
    names = [name for name in state(alone)["state_dict"] if not name.startswith("backbone")]
    assert names == ["distillation.loss.map.weight"]


def test_an_onnx_teaches_too(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    path = write_onnx(tmp_path / "teacher.onnx")
    teacher = open_teacher(str(path))
    embeddings = teacher.embed(torch.rand(3, 3, 112, 112) * 2 - 1)
    assert embeddings.shape == (3, teacher.embedding_dim)
    assert torch.allclose(embeddings.norm(dim=1), torch.ones(3))
