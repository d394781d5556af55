"""WeightAverage against an average worked out from recorded weights; and what validations, checkpoints and resumes make of it."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from pytorch_lightning import Callback, Trainer
from torch import Tensor, nn

import facelit
from facelit import FaceRecognizer
from facelit.backbones import VGG16
from facelit.callbacks import WeightAverage
from facelit.cli import main
from facelit.data import FaceDataModule, IdentityFolder, PairsFolder
from facelit.heads import SoftmaxHead
from tiny_net import TinyNet
from tiny_run import make_run, write_crops, write_pairs
from two_processes import run_on_two_processes

DECAY = 0.5
State = dict[str, Tensor]


def state(module: nn.Module) -> State:
    """A copy of all that a checkpoint keeps of a module."""
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def averaged(weights: list[State], decay: float) -> State:
    """The average after the last of these, the first being what training started from; one number of updates after another."""
    average = {name: value.double() for name, value in weights[0].items()}
    for update, new in enumerate(weights[1:], start=1):
        kept = min(decay, (1 + update) / (10 + update))
        for name, value in new.items():
            average[name] = kept * average[name] + (1 - kept) * value.double() if value.is_floating_point() else value
    return {name: value.to(weights[0][name].dtype) for name, value in average.items()}


def assert_same(actual: State, expected: State, tolerance: float = 1e-6) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=tolerance, atol=tolerance, msg=name)


class Recorder(Callback):
    """What the backbone holds at the moments that matter."""

    def __init__(self) -> None:
        self.before: list[State] = []  # before each batch, and after the last step
        self.raw: list[State] = []
        self.validated: list[tuple[int, State]] = []

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.raw.append(state(pl_module.backbone))

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.before.append(state(pl_module.backbone))
        if trainer.global_step == 4:
            trainer.save_checkpoint(Path(trainer.default_root_dir, "middle.ckpt"))

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == len(self.raw):
            self.raw.append(state(pl_module.backbone))

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self.validated.append((trainer.global_step, state(pl_module.backbone)))


def fit(folder: Path, ema_decay: float | None = DECAY, **options: Any) -> tuple[FaceRecognizer, Trainer, Recorder]:
    """Two epochs of three batches each, verified after each epoch."""
    crops = folder / "crops"
    if not crops.is_dir():
        write_crops(crops)
    torch.manual_seed(0)
    backbone = VGG16(embedding_dim=8, width=0.01, batch_norm=True)
    model = FaceRecognizer(
        backbone, SoftmaxHead(8, 8), lambda params: torch.optim.SGD(params, lr=0.1), ema_decay=ema_decay
    )
    recorder = Recorder()
    settings: dict[str, Any] = {"max_epochs": 2, "callbacks": [recorder], **options}
    trainer = Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        logger=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )
    verification = {"tiny": PairsFolder(crops, write_pairs(folder / "pairs.txt"))}
    trainer.fit(model, FaceDataModule(IdentityFolder(crops), verification, batch_size=16, num_workers=0))
    return model, trainer, recorder


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[FaceRecognizer, Trainer, Recorder, Path]:
    folder = tmp_path_factory.mktemp("fitted")
    model, trainer, recorder = fit(folder)
    trainer.save_checkpoint(folder / "end.ckpt")
    trainer.save_checkpoint(folder / "weights.ckpt", weights_only=True)
    return model, trainer, recorder, folder


Fitted = tuple[FaceRecognizer, Trainer, Recorder, Path]


def backbone_of(state_dict: State) -> State:
    return {name.removeprefix("backbone."): value for name, value in state_dict.items() if name.startswith("backbone.")}


def test_validations_see_the_average(fitted: Fitted) -> None:
    recorder = fitted[2]
    assert {step for step, _ in recorder.validated} == {3, 6}
    for step, seen in recorder.validated:
        assert_same(seen, averaged(recorder.raw[: step + 1], DECAY))
    assert not torch.equal(recorder.raw[3]["embedding.3.weight"], recorder.validated[0][1]["embedding.3.weight"])


def test_training_goes_on_from_the_weights_themselves(fitted: Fitted) -> None:
    recorder = fitted[2]
    for before, raw in zip(recorder.before, recorder.raw, strict=False):
        assert_same(before, raw, tolerance=0)


def test_the_average_stays_in_the_network(fitted: Fitted) -> None:
    model, _, recorder, _ = fitted
    assert_same(state(model.backbone), averaged(recorder.raw, DECAY))


@pytest.mark.parametrize(("name", "step"), [("middle.ckpt", 4), ("end.ckpt", 6)])
def test_checkpoints_hold_the_average(fitted: Fitted, name: str, step: int) -> None:
    """In place of the weights, between two validations too; what training goes on from is beside it."""
    _, _, recorder, folder = fitted
    saved = torch.load(folder / name, weights_only=True)
    assert_same(backbone_of(saved["state_dict"]), averaged(recorder.raw[: step + 1], DECAY))
    assert_same(backbone_of(saved["facelit"]["weight_average"]["raw"]), recorder.raw[step], tolerance=0)
    assert saved["facelit"]["weight_average"]["updates"] == step


def test_weights_alone_are_the_average(fitted: Fitted) -> None:
    """A file that nobody can resume from need not hold them twice."""
    _, _, recorder, folder = fitted
    saved = torch.load(folder / "weights.ckpt", weights_only=True)
    assert_same(backbone_of(saved["state_dict"]), averaged(recorder.raw, DECAY))
    assert "weight_average" not in saved["facelit"]


def test_the_head_is_not_averaged(fitted: Fitted) -> None:
    model, _, _, folder = fitted
    saved = torch.load(folder / "end.ckpt", weights_only=True)
    assert all(name.startswith("backbone.") for name in saved["facelit"]["weight_average"]["raw"])
    for name, value in state(model.head).items():
        assert torch.equal(saved["state_dict"][f"head.{name}"], value)


def test_training_is_as_without_it(fitted: Fitted, tmp_path: Path) -> None:
    model, _, _ = fit(tmp_path, ema_decay=None)
    assert_same(state(model.backbone), fitted[2].raw[-1], tolerance=0)
    assert_same(state(model.head), state(fitted[0].head), tolerance=0)


def test_an_accumulated_batch_is_one_update(tmp_path: Path) -> None:
    model, trainer, recorder = fit(tmp_path, accumulate_grad_batches=2)
    assert trainer.global_step == 4 == len(recorder.raw) - 1
    # Between two steps nothing but the statistics of batch norms changes: they are averaged as they are at the step.
    assert_same(state(model.backbone), averaged(recorder.raw, DECAY))


def test_a_validation_afterwards_changes_nothing(tmp_path: Path) -> None:
    """Not the average that training left, nor weights that were loaded since."""
    model, trainer, recorder = fit(tmp_path, max_epochs=1)
    trainer.validate(model, datamodule=trainer.datamodule, verbose=False)
    assert_same(state(model.backbone), averaged(recorder.raw, DECAY))
    model.backbone.load_state_dict(recorder.raw[0])
    trainer.validate(model, datamodule=trainer.datamodule, verbose=False)
    assert_same(state(model.backbone), recorder.raw[0], tolerance=0)
    assert_same(recorder.validated[-1][1], recorder.raw[0], tolerance=0)
    trainer.save_checkpoint(tmp_path / "later.ckpt")
    later = torch.load(tmp_path / "later.ckpt", weights_only=True)
    assert_same(backbone_of(later["state_dict"]), recorder.raw[0], tolerance=0)


# Whole runs of the command line.


def last(folder: Path) -> dict[str, Any]:
    path = max(folder.glob("**/last.ckpt"), key=lambda path: path.stat().st_mtime)
    return torch.load(path, weights_only=True)


def killed_at(monkeypatch: pytest.MonkeyPatch, step: int, run: Callable[[], None]) -> None:
    training_step = FaceRecognizer.training_step

    def fail(self: FaceRecognizer, *args: Any) -> Tensor:
        if self.trainer.global_step == step:
            raise KeyError("killed")
        return training_step(self, *args)

    monkeypatch.setattr(FaceRecognizer, "training_step", fail)
    with pytest.raises(KeyError, match="killed"):
        run()
    monkeypatch.undo()


SCORES = ["--verification.save_scores", "true"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    config = make_run(folder, model__ema_decay=0.8, trainer__max_epochs=2)
    main(["fit", "--config", str(config), *SCORES])
    return folder


@pytest.mark.parametrize("every", [6, 8], ids=["end of epoch", "mid-epoch"])
def test_a_killed_run_resumes_exactly(
    tmp_path: Path, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    """The average, the weights themselves and the head end bit-equal."""
    config = str(make_run(tmp_path, model__ema_decay=0.8, trainer__max_epochs=2))
    often = ["--last_checkpoint.every_n_train_steps", str(every)]
    killed_at(monkeypatch, 9, lambda: main(["fit", "--config", config, *often, *SCORES]))
    assert last(tmp_path)["global_step"] == every
    main(["fit", "--config", config, "--ckpt_path", "last", *SCORES])
    expected, actual = last(uninterrupted), last(tmp_path)
    assert_same(actual["state_dict"], expected["state_dict"], tolerance=0)
    then, now = (checkpoint["facelit"]["weight_average"] for checkpoint in (expected, actual))
    assert then["updates"] == now["updates"] == 12
    assert_same(now["raw"], then["raw"], tolerance=0)
    assert not torch.equal(now["raw"]["backbone.6.weight"], actual["state_dict"]["backbone.6.weight"])


def test_a_checkpoint_gives_the_figures_of_its_validation(uninterrupted: Path, tmp_path: Path) -> None:
    """The scores of every pair, to the last digit; and facelit.load embeds as the average does."""
    (log,) = uninterrupted.glob("**/tiny-scores.tsv")
    scores = log.read_text()
    (path,) = uninterrupted.glob("**/last.ckpt")
    config = str(uninterrupted / "tiny.yaml")
    elsewhere = ["--trainer.logger.save_dir", str(tmp_path)]
    main(["validate", "--config", config, "--ckpt_path", str(path), *SCORES, *elsewhere])
    (again,) = tmp_path.glob("**/tiny-scores.tsv")
    assert again.read_text() == scores
    backbone = TinyNet()
    backbone.load_state_dict(backbone_of(last(uninterrupted)["state_dict"]))
    images = torch.zeros(2, 3, 112, 112)
    torch.testing.assert_close(facelit.load(path, backbone=TinyNet()).backbone(images), backbone.eval()(images))


def test_a_run_may_drop_its_average(uninterrupted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It goes on from the weights themselves: the end is that of a run that never averaged."""
    config = str(make_run(tmp_path, model__ema_decay=0.8))
    main(["fit", "--config", config, "--trainer.max_epochs", "1", *SCORES])
    options = ["--ckpt_path", "last", "--model.ema_decay", "null", "--trainer.max_epochs", "2"]
    main(["fit", "--config", config, *options, *SCORES])
    actual, never = last(tmp_path), last(uninterrupted)
    assert "weight_average" not in actual["facelit"]
    expected = {**never["state_dict"], **never["facelit"]["weight_average"]["raw"]}
    assert_same(actual["state_dict"], expected, tolerance=0)


def test_a_run_may_begin_to_average(tmp_path: Path) -> None:
    """From the weights of a checkpoint without: its first update takes 2/11 of them."""
    config = str(make_run(tmp_path, trainer__max_steps=6))
    main(["fit", "--config", config, *SCORES])
    before = last(tmp_path)["state_dict"]
    options = ["--ckpt_path", "last", "--model.ema_decay", "0.8", "--trainer.max_steps", "7"]
    main(["fit", "--config", config, *options, *SCORES])
    saved = last(tmp_path)
    assert saved["facelit"]["weight_average"]["updates"] == 1
    weights = [backbone_of(before), backbone_of(saved["facelit"]["weight_average"]["raw"])]
    assert_same(backbone_of(saved["state_dict"]), averaged(weights, 0.8))


@pytest.mark.parametrize("decay", ["1", "-0.1", "99.9"])
def test_a_decay_out_of_range(tmp_path: Path, capsys: pytest.CaptureFixture[str], decay: str) -> None:
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(make_run(tmp_path)), "--model.ema_decay", decay])
    assert "model.ema_decay must be a number from 0 to below 1, such as 0.999, or null" in capsys.readouterr().err


# What no run on one CPU shows.


def module_of(backbone: nn.Module) -> Any:
    return SimpleNamespace(backbone=backbone)


def steps(average: WeightAverage, backbone: nn.Module, count: int, change: Callable[[], None]) -> Any:
    """So many optimizer steps; returns the trainer's stand-in."""
    trainer: Any = SimpleNamespace(global_step=0, state=SimpleNamespace(fn="fit"))
    average.on_train_start(trainer, module_of(backbone))
    for _ in range(count):
        change()
        trainer.global_step += 1
        average.on_train_batch_end(trainer, module_of(backbone), None, None, 0)
    return trainer


def test_bfloat16_weights_are_averaged_in_float32() -> None:
    """After 1,000 steps up by one, 0.999 lags far behind; in bfloat16, where 256 + 1 = 256, it would not move so far."""
    backbone = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    values = iter(range(1, 1001))
    nn.init.zeros_(backbone.weight)

    def change() -> None:
        nn.init.constant_(backbone.weight, next(values))

    average = WeightAverage(0.999)
    steps(average, backbone, 1000, change)
    recorded = [{"weight": torch.tensor([[float(value)]]).bfloat16().float()} for value in range(1001)]
    checkpoint: dict[str, Any] = {"state_dict": {"backbone.weight": backbone.weight}}
    average.save_into(checkpoint, {})
    assert checkpoint["state_dict"]["backbone.weight"].dtype == torch.float32
    assert_same({"weight": checkpoint["state_dict"]["backbone.weight"]}, averaged(recorded, 0.999), tolerance=1e-4)


def buffers_on_each_process() -> tuple[Tensor, Tensor]:
    """Statistics that differ between the processes: those during a validation, and those after it."""
    backbone = nn.BatchNorm1d(3)
    average = WeightAverage(0.5)
    trainer = steps(average, backbone, 2, lambda: nn.init.constant_(backbone.running_mean, 1.0 + dist.get_rank()))
    average.on_validation_start(trainer, module_of(backbone))
    during = backbone.running_mean.clone()
    average.on_validation_end(trainer, module_of(backbone))
    return during, backbone.running_mean.clone()


def test_every_process_validates_the_first_ones_network() -> None:
    """From 0 to 1 in two steps that keep 2/11 and 3/12 of the average: 1 - 2/11 * 1/4."""
    (first, first_after), (second, second_after) = run_on_two_processes(buffers_on_each_process)
    expected = torch.full((3,), 1 - 2 / 11 / 4)
    torch.testing.assert_close(first, expected)
    torch.testing.assert_close(second, expected)
    assert first_after.tolist() == [1.0] * 3
    assert second_after.tolist() == [2.0] * 3
