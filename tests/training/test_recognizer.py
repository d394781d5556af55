"""FaceRecognizer in whole runs: what is logged, what a step is, what a checkpoint gives on."""

import csv
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Trainer
from pytorch_lightning.plugins import MixedPrecision
from torch import Tensor

from facelit import FacelitError, FaceRecognizer
from facelit.backbones import VGG16
from facelit.cli import main
from facelit.data import FaceDataModule, IdentityFolder
from facelit.heads import CenterLossHead, HeadOutput
from facelit.heads.base import wants_metrics
from facelit.training import recognizer as recognizer_module
from tiny_run import IMAGES_EACH, NUM_IDENTITIES, make_run, write_crops

BATCH, EPOCHS = 8, 2
BATCHES_PER_EPOCH = NUM_IDENTITIES * IMAGES_EACH // BATCH
PLAIN_VGG = {"width": 0.01, "embedding_dim": 16, "batch_norm": False, "dropout": 0.0}
DETERMINISTIC = {  # nothing in the network that depends on how a batch is cut up
    "model__backbone": {"class_path": "facelit.backbones.VGG16", "init_args": PLAIN_VGG},
    "trainer__max_epochs": EPOCHS,
    "data__verification": None,
}


def logged(folder: Path) -> list[dict[str, str]]:
    """Rows of the CSV log that training steps wrote."""
    (path,) = folder.glob("runs/tiny/version_0/metrics.csv")
    with path.open() as file:
        return [row for row in csv.DictReader(file) if row.get("train/loss")]


def last_checkpoint(folder: Path) -> Path:
    (path,) = folder.glob("**/last.ckpt")
    return path


def load(folder: Path) -> dict:
    return torch.load(last_checkpoint(folder), weights_only=True)


def recognizer(num_identities: int = NUM_IDENTITIES, init_backbone: Path | None = None) -> FaceRecognizer:
    backbone = VGG16(embedding_dim=16, width=0.01)
    return FaceRecognizer(
        backbone,
        CenterLossHead(num_identities, 16),
        lambda params: torch.optim.SGD(params, lr=0.02),
        init_backbone=None if init_backbone is None else str(init_backbone),
    )


@pytest.mark.parametrize("option", [False, True])
def test_recomputing_knows_whether_the_network_is_compiled(monkeypatch: pytest.MonkeyPatch, option: bool) -> None:
    told: list[bool] = []
    monkeypatch.setattr(recognizer_module, "recompute_activations", lambda backbone, compiled: told.append(compiled))
    FaceRecognizer(VGG16(16, width=0.01), CenterLossHead(8, 16), compile=option, checkpoint_activations=True)
    assert told == [option]


def fit_plainly(model: FaceRecognizer, folder: Path, crops: Path, max_steps: int = -1, **options: Any) -> Trainer:
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        max_steps=max_steps,
        logger=False,
        default_root_dir=folder,
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(model, FaceDataModule(train=IdentityFolder(crops), batch_size=BATCH, num_workers=0))
    return trainer


@pytest.fixture(scope="module")
def crops(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_crops(tmp_path_factory.mktemp("crops"))


@pytest.fixture(scope="module")
def whole_batches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    main(["fit", "--config", str(make_run(folder, **DETERMINISTIC))])
    return folder


@pytest.fixture(scope="module")
def accumulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("accumulated")
    halves = {"data__batch_size": BATCH // 2, "trainer__accumulate_grad_batches": 2}
    main(["fit", "--config", str(make_run(folder, **DETERMINISTIC, **halves))])
    return folder


@pytest.fixture
def plain(tmp_path: Path, crops: Path) -> tuple[FaceRecognizer, Trainer]:
    model = recognizer()
    return model, fit_plainly(model, tmp_path, crops)


def test_a_center_run_logs_its_figures(whole_batches: Path) -> None:
    rows = logged(whole_batches)
    assert len(rows) == EPOCHS * BATCHES_PER_EPOCH
    for row in rows:
        loss, softmax, center = (float(row[f"train/{name}"]) for name in ("loss", "loss_softmax", "loss_center"))
        assert loss == pytest.approx(softmax + 0.003 * center, rel=1e-5)
        assert 0 <= float(row["train/identity_accuracy"]) <= 1
        assert float(row["train/embedding_norm"]) > 0
        assert float(row["train/center_distance"]) > 0
        assert float(row["train/alpha"]) == pytest.approx(0.5)
    assert [float(row["lr"]) for row in rows] == pytest.approx([0.02] * 6 + [0.014] * 6)


def test_a_triplet_run_logs_its_figures(tmp_path: Path) -> None:
    sampler = {
        "class_path": "facelit.data.IdentityBalancedSampler",
        "init_args": {"identities_per_batch": 4, "images_per_identity": 3},
    }
    config = make_run(tmp_path, head="TripletHead", data__sampler=sampler, trainer__max_epochs=1)
    main(["fit", "--config", str(config), "--data.verification", "null"])
    rows = logged(tmp_path)
    assert len(rows) == NUM_IDENTITIES * IMAGES_EACH // 12
    for row in rows:
        assert 0 <= float(row["train/active_fraction"]) <= 1
        for name in ("genuine_distance", "impostor_distance"):  # squared, between unit vectors
            assert 0 < float(row[f"train/{name}"]) <= 4


def test_an_accumulated_batch_is_one_step(accumulated: Path, whole_batches: Path) -> None:
    """Micro-batches of 4, two a step, against batches of 8 of the same images: steps, weights and centers agree."""
    expected, actual = load(whole_batches), load(accumulated)
    assert actual["global_step"] == expected["global_step"] == EPOCHS * BATCHES_PER_EPOCH
    for name, value in expected["state_dict"].items():
        torch.testing.assert_close(actual["state_dict"][name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_centers_follow_their_own_rule_only(plain: tuple[FaceRecognizer, Trainer]) -> None:
    model, trainer = plain
    centers = model.head.center_loss.centers
    assert centers.grad is None
    assert not centers.requires_grad
    (optimizer,) = trainer.optimizers
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert held == {id(parameter) for name, parameter in model.named_parameters() if "center" not in name}
    assert trainer.global_step == BATCHES_PER_EPOCH


def test_centers_move_in_every_run(plain: tuple[FaceRecognizer, Trainer], whole_batches: Path) -> None:
    """They start uniform in +-sqrt(3 / 16); embeddings of an untrained network are far smaller and draw them in."""
    model, _ = plain
    start = (1 / 16) ** 0.5  # standard deviation of the initialisation
    assert model.head.center_loss.centers.std() < 0.5 * start
    assert load(whole_batches)["state_dict"]["head.center_loss.centers"].std() < 0.5 * start


class Scaled(MixedPrecision):
    """fp16's gradient scaling, in float32 on the CPU."""

    def autocast_context_manager(self) -> Any:
        return nullcontext()


@pytest.mark.parametrize(("scale", "moves"), [(2.0, True), (float("inf"), False)], ids=["made", "skipped"])
def test_a_step_that_the_gradient_scaler_skips(tmp_path: Path, crops: Path, scale: float, moves: bool) -> None:
    """The scaled gradients overflow: centers stay as the network does, and the batch does not count later either."""
    model = recognizer()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    plugin = Scaled("16-mixed", "cpu", scaler)
    trainer = fit_plainly(model, tmp_path, crops, max_steps=1, plugins=[plugin], gradient_clip_val=1.0)
    assert trainer.optimizers[0].param_groups[0]["fused"] is None, "Lightning could not clip"
    for name in ("backbone.features.0.weight", "head.center_loss.centers"):
        assert torch.equal(model.state_dict()[name], before[name]) != moves, name
    after = model.head.center_loss.centers.detach().clone()
    assert model.head_optimizer is not None
    model.head_optimizer.step()
    assert torch.equal(model.head.center_loss.centers, after)


@pytest.mark.parametrize("fused", [None, True])
def test_gradients_are_clipped_under_bf16(tmp_path: Path, crops: Path, fused: bool | None) -> None:
    """Which has no scaler: a fused optimizer has nothing to unscale, whoever asked for it."""
    model = recognizer()
    model.optimization.make_optimizer = lambda params: torch.optim.SGD(params, lr=0.02, fused=fused)
    trainer = fit_plainly(model, tmp_path, crops, max_steps=1, precision="bf16-mixed", gradient_clip_val=1.0)
    assert trainer.global_step == 1
    assert trainer.optimizers[0].param_groups[0]["fused"] is True


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fused": True}, r"model\.optimizer\.fused cannot be combined with trainer\.gradient_clip_val .* 16-mixed"),
        ({"fused": True, "foreach": True}, r"model\.optimizer or model\.lr_scheduler: `fused` and `foreach` cannot"),
    ],
)
def test_fused_options_that_do_not_fit_are_refused(
    tmp_path: Path, crops: Path, options: dict[str, bool], message: str
) -> None:
    model = recognizer()
    model.optimization.make_optimizer = lambda params: torch.optim.SGD(params, lr=0.02, **options)
    plugin = Scaled("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    with pytest.raises(FacelitError, match=message):
        fit_plainly(model, tmp_path, crops, max_steps=1, plugins=[plugin], gradient_clip_val=1.0)


def test_figures_are_computed_for_logging_steps_only(tmp_path: Path, crops: Path) -> None:
    """Six steps, logged at the first and every third: the head is told which."""
    wanted: list[bool] = []

    class Told(CenterLossHead):
        def forward(self, embeddings: Tensor, labels: Tensor) -> HeadOutput:
            wanted.append(wants_metrics())
            return super().forward(embeddings, labels)

    model = FaceRecognizer(
        VGG16(16, width=0.01), Told(NUM_IDENTITIES, 16), lambda params: torch.optim.SGD(params, lr=0.02)
    )
    fit_plainly(model, tmp_path, crops, log_every_n_steps=3)
    assert wanted == [True, False, True, False, False, True]


def test_init_backbone_takes_over_the_backbone(tmp_path: Path, whole_batches: Path) -> None:
    """Into a run on five identities instead of eight, from its first step, at a learning rate of 0."""
    config = make_run(tmp_path, **DETERMINISTIC)
    write_crops(tmp_path / "five", num_identities=5)
    other = ["--data.train.root", str(tmp_path / "five"), "--model.optimizer.lr", "0", "--trainer.max_epochs", "1"]
    main(["fit", "--config", str(config), "--model.init_backbone", str(last_checkpoint(whole_batches)), *other])
    found, start = load(tmp_path), load(whole_batches)["state_dict"]
    assert found["global_step"] == -(-5 * IMAGES_EACH // BATCH)
    assert found["state_dict"]["head.center_loss.centers"].shape == (5, 16)
    backbone = {name: value for name, value in found["state_dict"].items() if name.startswith("backbone.")}
    assert len(backbone) == 2 * (13 + 2)
    for name, value in backbone.items():
        assert torch.equal(value, start[name]), name


def test_init_backbone_takes_over_nothing_else(whole_batches: Path) -> None:
    def head_state(model: FaceRecognizer) -> dict[str, Tensor]:
        return model.head.state_dict()

    torch.manual_seed(0)
    fresh = recognizer()
    torch.manual_seed(0)
    started = recognizer(init_backbone=last_checkpoint(whole_batches))
    for name, value in head_state(fresh).items():
        assert torch.equal(head_state(started)[name], value), name
    assert not torch.equal(fresh.backbone.features[0].weight, started.backbone.features[0].weight)


def test_from_python_with_a_plain_trainer(tmp_path: Path, plain: tuple[FaceRecognizer, Trainer]) -> None:
    """The checkpoint holds no code: it loads as torch loads files that it does not trust."""
    model, trainer = plain
    assert trainer.current_epoch == 1
    (path,) = tmp_path.glob("**/*.ckpt")
    state = torch.load(path, weights_only=True)["state_dict"]
    again = recognizer()
    again.load_state_dict(state)
    images = torch.rand(3, 3, 112, 112) * 2 - 1
    model.eval()
    again.eval()
    with torch.inference_mode():
        torch.testing.assert_close(again(images), model(images))
        torch.testing.assert_close(again(images), model.backbone(images), rtol=1e-4, atol=1e-5)


def test_labels_that_the_head_does_not_know_are_named(tmp_path: Path, crops: Path) -> None:
    with pytest.raises(FacelitError, match=r"model\.head CenterLossHead: label \d is out of range"):
        fit_plainly(recognizer(num_identities=2), tmp_path, crops, max_steps=1)


def test_an_unknown_interval_is_refused() -> None:
    with pytest.raises(Exception, match=r"model\.lr_interval must be 'epoch' or 'step', not 'hour'"):
        FaceRecognizer(VGG16(16, width=0.01), CenterLossHead(8, 16), lr_interval="hour")
