"""FaceDDP: its settings change no weight, and compressed gradients stay close."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.cli import LightningArgumentParser
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from facelit import FacelitError
from facelit.cli.lightning_cli import FacelitCLI
from facelit.cli.training import main
from facelit.distributed import rank
from facelit.heads import CenterLossHead
from facelit.speed import FaceDDP
from two_processes import run_on_two_processes

ROOT = Path(__file__).resolve().parents[2]

STEPS, ACCUMULATE, BATCH = 6, 2, 6
SETTINGS: dict[str, dict[str, Any]] = {
    "torch's own": {"gradient_as_bucket_view": False},
    "facelit's": {},
    "small buckets": {"bucket_cap_mb": 0.001},
    "fp16": {"compress": "fp16"},
    "bf16": {"compress": "bf16"},
    "powersgd": {"compress": "powersgd", "powersgd_start": 2, "powersgd_rank": 3},
}
ONE_BATCH: dict[str, dict[str, Any]] = {
    "one batch, torch's own": {"gradient_as_bucket_view": False},
    "one batch, static graph": {"static_graph": True},
}


class Model(LightningModule):
    """A backbone and a head with centers, as a recognizer joins them."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 8))
        self.head = CenterLossHead(5, 8)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        return self.head(self.backbone(x), labels).loss


def train(settings: dict[str, Any], accumulate: int = ACCUMULATE) -> dict[str, Tensor]:
    """A process's weights, trained with accumulated micro-batches and both optimizers."""
    torch.manual_seed(0)
    model = Model()
    strategy = FaceDDP(**settings)
    strategy.parallel_devices, strategy.model = [torch.device("cpu")], model
    strategy.configure_ddp()
    parallel = strategy.model
    assert isinstance(parallel, DistributedDataParallel)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05, momentum=0.9)
    centers = model.head.make_optimizer()
    assert centers is not None
    data = torch.Generator().manual_seed(1 + rank())
    for _ in range(STEPS):
        optimizer.zero_grad()
        for number in range(accumulate):
            x, labels = torch.randn(BATCH, 12, generator=data), torch.randint(0, 5, (BATCH,), generator=data)
            parallel.require_backward_grad_sync = number == accumulate - 1  # as no_sync(), and Lightning, do
            parallel(x, labels).backward()
        optimizer.step()
        centers.step()
    return {name: value.clone() for name, value in model.state_dict().items()}


def train_all() -> dict[str, dict[str, Tensor]]:
    whole = {name: train(settings, accumulate=1) for name, settings in ONE_BATCH.items()}
    return whole | {name: train(settings) for name, settings in SETTINGS.items()}


@pytest.fixture(scope="module")
def trained() -> list[dict[str, dict[str, Tensor]]]:
    return run_on_two_processes(train_all)


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Between two sets of weights, as a share of the way that the training has gone."""
    torch.manual_seed(0)
    start = Model().state_dict()
    apart = sum((one[name] - other[name]).square().sum() for name in start)
    return float((apart / sum((other[name] - start[name]).square().sum() for name in start)).sqrt())


@pytest.mark.parametrize("name", {**SETTINGS, **ONE_BATCH})
def test_processes_agree(trained: list[dict[str, dict[str, Tensor]]], name: str) -> None:
    for key, value in trained[0][name].items():
        assert torch.equal(value, trained[1][name][key]), key


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("facelit's", "torch's own"),
        ("small buckets", "torch's own"),
        ("one batch, static graph", "one batch, torch's own"),
    ],
)
def test_settings_change_no_weight(trained: list[dict[str, dict[str, Tensor]]], name: str, own: str) -> None:
    for key, value in trained[0][own].items():
        assert torch.equal(trained[0][name][key], value), key


@pytest.mark.parametrize(("name", "share"), [("fp16", 2e-3), ("bf16", 2e-2), ("powersgd", 0.5)])
def test_compressed_training_stays_close(trained: list[dict[str, dict[str, Tensor]]], name: str, share: float) -> None:
    found = distance(trained[0][name], trained[0]["torch's own"])
    assert 0 < found < share


def test_static_graph_and_accumulated_batches_are_refused() -> None:
    with pytest.raises(FacelitError, match=r"static_graph cannot be combined with trainer\.accumulate_grad_batches"):
        FaceDDP(static_graph=True).setup(Trainer(accumulate_grad_batches=2, logger=False, accelerator="cpu"))


def test_powersgd_and_scaled_gradients_are_refused() -> None:
    trainer = SimpleNamespace(accumulate_grad_batches=1, precision="16-mixed")
    with pytest.raises(FacelitError, match=r"powersgd cannot be combined with trainer\.precision 16-mixed"):
        FaceDDP(compress="powersgd").setup(trainer)  # type: ignore[arg-type]


def test_typed_on_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    parser = LightningArgumentParser()
    parser.add_lightning_class_args(Trainer, "trainer")
    strategy = ["--trainer.strategy=facelit.speed.FaceDDP", "--trainer.strategy.compress=bf16"]
    options = [*strategy, "--trainer.strategy.bucket_cap_mb=50", "--trainer.accelerator=cpu", "--trainer.devices=2"]
    trainer = parser.instantiate_classes(parser.parse_args([*options, "--trainer.logger=false"])).trainer
    assert isinstance(trainer.strategy, FaceDDP)
    assert trainer.strategy.compress == "bf16"
    wrapped: dict[str, Any] = {}

    class Wrapper:
        def __init__(self, **options: Any) -> None:
            wrapped.update(options)

        def register_comm_hook(self, state: object, hook: Any) -> None:
            wrapped["hook"] = hook

    monkeypatch.setattr("pytorch_lightning.strategies.ddp.DistributedDataParallel", Wrapper)
    trainer.strategy.parallel_devices, trainer.strategy.model = [torch.device("cpu")], Model()
    trainer.strategy.configure_ddp()
    assert {
        "find_unused_parameters": False,
        "gradient_as_bucket_view": True,
        "bucket_cap_mb": 50,
    }.items() <= wrapped.items()
    assert not wrapped["static_graph"]
    assert callable(wrapped["hook"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compress": "int8"}, "compress must be one of fp16, bf16, powersgd, or null, not int8"),
        ({"bucket_cap_mb": 0}, "bucket_cap_mb must be more than 0"),
        ({"powersgd_start": 1}, "powersgd_start at least 2"),
    ],
)
def test_other_values_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(FacelitError, match=message):
        FaceDDP(**options)


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        ("facelit.speed.FaceDDP", "made a FaceDDP"),
        ("facelit.speed.FaceDP", "there is no class facelit.speed.FaceDP"),
        ("nosuch.FaceDDP", "there is no class nosuch.FaceDDP"),
        ("facelit.heads.SoftmaxHead", "is not a Lightning strategy"),
    ],
)
def test_named_without_options(
    strategy: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(cli: FacelitCLI) -> None:
        raise FacelitError(f"made a {type(cli.config_init['fit'].trainer.strategy).__name__}")

    monkeypatch.setattr(FacelitCLI, "instantiate_trainer", stop)
    configs = [f"--config={ROOT / 'configs' / name}" for name in ("center.yaml", "demo.yaml")]
    with pytest.raises(SystemExit):
        main(["fit", *configs, "--trainer.accelerator=cpu", f"--trainer.strategy={strategy}"])
    assert message in capsys.readouterr().err
