"""A head whose identities are shared out over processes, against the whole head on one."""

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pytorch_lightning import Trainer
from pytorch_lightning.strategies import DDPStrategy, FSDPStrategy, Strategy
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from facelit import FacelitError, FaceRecognizer
from facelit.cli.training import main
from facelit.distributed import _sending_device, gather_rows, global_batch, part_sizes
from facelit.heads import AdaFaceHead, ArcFaceHead, CenterTerm, IdentityHead, SoftmaxHead
from facelit.lightning import exclude_from_ddp
from facelit.training.sharding import (
    clip_gradients,
    gather_checkpoint,
    names_in_model,
    places_in_optimizer,
    shard_checkpoint,
)
from tiny_run import make_run, tiny_config, write_config
from two_processes import facelit_on_two_processes, run_on_two_processes

IDENTITIES, DIM, STEPS = 7, 5, 20  # 7 do not divide by two
HEADS = ["softmax", "arcface", "adaface"]


def make_head(name: str, sharded: bool, sample_rate: float = 1.0) -> IdentityHead:
    shared: dict[str, Any] = {"sharded": sharded, "sample_rate": sample_rate}
    if name == "softmax":
        return SoftmaxHead(IDENTITIES, DIM, bias=True, label_smoothing=0.1, **shared)
    if name == "arcface":
        return ArcFaceHead(IDENTITIES, DIM, scale=8.0, margin=0.3, margin_ramp=5, center=CenterTerm(0.1, 0.5), **shared)
    return AdaFaceHead(IDENTITIES, DIM, scale=8.0, label_smoothing=0.1, center=CenterTerm(0.1, 0.5), **shared)


class Model(nn.Module):
    """A backbone of one layer, and a head; float64."""

    def __init__(self, name: str, sharded: bool, sample_rate: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Linear(6, DIM)
        self.head = make_head(name, sharded, sample_rate)
        self.head.shard()
        self.double()
        if sharded:
            exclude_from_ddp(self, names_in_model(self.head))

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        loss: Tensor = self.head(self.backbone(images), labels).loss
        return loss


def train(name: str, rank: int = 0, world_size: int = 1, steps: int = STEPS) -> dict[str, Any]:
    """SGD with momentum, two micro-batches a step, the second uneven, gradients clipped; losses and the whole state."""
    model = Model(name, sharded=world_size > 1)
    wrapped = model if world_size == 1 else DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    center_optimizer = model.head.make_optimizer()
    generator = torch.Generator().manual_seed(1)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        for total, waits in ((8, world_size > 1), (5, False)):
            images = torch.randn(total, 6, generator=generator, dtype=torch.float64)
            labels = torch.randint(IDENTITIES, (total,), generator=generator)
            parts = part_sizes(total, world_size)
            own = slice(sum(parts[:rank]), sum(parts[: rank + 1]))
            with global_batch(total), wrapped.no_sync() if waits else nullcontext():
                loss = wrapped(images[own], labels[own])
            loss.backward()
            losses.append(loss.item())
        if world_size > 1:
            clip_gradients(model.parameters(), model.head, 0.5)
        else:
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        if center_optimizer is not None:
            center_optimizer.step()
    checkpoint = {"state_dict": model.state_dict(), "optimizer_states": [optimizer.state_dict()]}
    if world_size > 1:
        gather_checkpoint(checkpoint, model.head, places_in_optimizer(model.head, optimizer))
    return {"losses": losses, **checkpoint, "backbone": model.backbone.state_dict()}


def train_on_each() -> list[dict[str, Any]]:
    rank = torch.distributed.get_rank()
    return [train(name, rank, 2) for name in HEADS]


@pytest.fixture(scope="module")
def on_two() -> list[list[dict[str, Any]]]:
    return run_on_two_processes(train_on_each)


@pytest.mark.parametrize("name", HEADS)
def test_two_processes_equal_the_whole_head(on_two: list[list[dict[str, Any]]], name: str) -> None:
    one = train(name)
    first, second = (results[HEADS.index(name)] for results in on_two)
    assert first["losses"] == pytest.approx(one["losses"], abs=1e-9)
    assert second["losses"] == pytest.approx(one["losses"], abs=1e-9)
    for name_, value in one["state_dict"].items():
        torch.testing.assert_close(first["state_dict"][name_], value, atol=1e-9, rtol=1e-7, msg=name_)
    for key, value in second["backbone"].items():
        torch.testing.assert_close(first["backbone"][key], value, atol=0, rtol=0, msg=key)
    momentum = one["optimizer_states"][0]["state"]
    assert momentum.keys() == first["optimizer_states"][0]["state"].keys()
    for place, values in momentum.items():
        torch.testing.assert_close(
            first["optimizer_states"][0]["state"][place]["momentum_buffer"], values["momentum_buffer"]
        )
    start = Model(name, sharded=False).state_dict()
    assert all(not torch.equal(start[key], one["state_dict"][key]) for key in start if "norm_std" not in key)


def take_slices(whole: dict[str, Any]) -> dict[str, Tensor]:
    model = Model("arcface", sharded=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    places = places_in_optimizer(model.head, optimizer)
    checkpoint = {"state_dict": dict(whole["state_dict"]), "optimizer_states": whole["optimizer_states"]}
    shard_checkpoint(checkpoint, model.head, places)
    model.load_state_dict(checkpoint["state_dict"])
    optimizer.load_state_dict(checkpoint["optimizer_states"][0])
    return {
        "weight": model.head.weight.detach(),
        "centers": model.head.center_loss.centers.detach(),
        "momentum": optimizer.state[model.head.weight]["momentum_buffer"],
    }


def test_a_whole_checkpoint_is_shared_out() -> None:
    """Also what sharded processes have written, which has the same form."""
    whole = train("arcface", steps=1)
    first, second = run_on_two_processes(take_slices, whole)
    place = 2  # after the backbone's weight and bias
    expected = {
        "weight": whole["state_dict"]["head.weight"],
        "centers": whole["state_dict"]["head.center_loss.centers"],
        "momentum": whole["optimizer_states"][0]["state"][place]["momentum_buffer"],
    }
    for name, value in expected.items():
        assert (len(first[name]), len(second[name])) == (4, 3)
        assert torch.equal(torch.cat([first[name], second[name]]), value), name


def test_a_checkpoint_of_other_identities_is_refused() -> None:
    """Its first rows would fit, and mean other people."""
    model = Model("arcface", sharded=True)
    state = {name: torch.zeros(IDENTITIES + 2, DIM) for name in names_in_model(model.head)}
    with pytest.raises(FacelitError, match=r"9 identities in the checkpoint.* 7\."):
        shard_checkpoint({"state_dict": state}, model.head, [])


def sampled_gradients() -> dict[str, Tensor]:
    model = Model("arcface", sharded=True, sample_rate=0.25)
    rank = torch.distributed.get_rank()
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(4, 6, generator=generator, dtype=torch.float64)[2 * rank : 2 * rank + 2]
    labels = torch.tensor([0, 5, 5, 0])[2 * rank : 2 * rank + 2]
    model(images, labels).backward()
    return {"rows": gather_rows(model.head.weight.grad.abs().sum(dim=1), part_sizes(IDENTITIES, 2))}


def test_sampling_keeps_the_batchs_own_identities() -> None:
    """Of 4 + 3 identities a quarter and at least the batch's (4 samples: up to 4 rows) are compared with."""
    rows = run_on_two_processes(sampled_gradients)[0]["rows"]
    assert rows[0] > 0
    assert rows[5] > 0


def gathered() -> Tensor:
    rank = torch.distributed.get_rank()
    sizes = (3, 2)
    return gather_rows(torch.arange(10).reshape(5, 2)[3 * rank : 3 * rank + sizes[rank]], sizes)


def test_rows_are_gathered_in_order() -> None:
    assert torch.equal(run_on_two_processes(gathered)[0], torch.arange(10).reshape(5, 2))


def test_rows_travel_where_the_backend_can_send(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a training Lightning has moved everything to the CPU, from which NCCL does not send."""
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    for backend, device in (("gloo", "cpu"), ("nccl", "cuda:3")):
        monkeypatch.setattr(torch.distributed, "get_backend", lambda backend=backend: backend)
        assert _sending_device(torch.zeros(2)) == torch.device(device)


def spawning() -> Strategy:
    return Trainer(strategy="ddp_spawn", accelerator="cpu", devices=2, logger=False).strategy


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"world_size": IDENTITIES + 1}, "7 identities cannot be spread over 8 processes"),
        ({"precision": "16-mixed"}, "cannot be combined with trainer.precision 16-mixed"),
        ({"strategy": spawning}, "needs --trainer.strategy ddp"),
        ({"strategy": FSDPStrategy}, "needs --trainer.strategy ddp"),
    ],
)
@pytest.mark.parametrize("fn", ["fit", "validate"])
def test_what_a_sharded_head_does_not_go_with(options: dict[str, Any], message: str, fn: str) -> None:
    """A network that is only validated needs its identities on no process in particular, but must be spread all the same."""
    model = FaceRecognizer(nn.Linear(6, DIM), make_head("arcface", sharded=True))
    given: dict[str, Any] = {"world_size": 2, "precision": "32-true", "strategy": DDPStrategy, **options}
    trainer = SimpleNamespace(**{**given, "strategy": given["strategy"](), "state": SimpleNamespace(fn=fn)})
    model.trainer = trainer
    refused = fn == "fit" or "world_size" in options
    with pytest.raises(FacelitError, match=message) if refused else nullcontext():
        model.configure_model()


def test_rows_are_made_without_a_trainer_too() -> None:
    """As load_from_checkpoint asks for it."""
    model = FaceRecognizer(nn.Linear(6, DIM), make_head("arcface", sharded=True))
    model.configure_model()
    assert model.head.weight.shape == (IDENTITIES, DIM)
    assert not model.head.weight.is_meta


def test_an_error_before_identities_are_shared_out_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Lightning then moves the model to the CPU, rows without memory among it."""
    config = make_run(tmp_path, model__head=HEAD, trainer__val_check_interval=1000)
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(config)])
    assert "trainer.val_check_interval 1000 is more than the 6 batches" in capsys.readouterr().err


def test_casts_reach_rows_that_are_not_made_yet() -> None:
    head = make_head("adaface", sharded=True).cpu().double()
    assert head.weight.is_meta
    head.shard()
    assert (head.weight.dtype, head.weight.device.type) == (torch.float64, "cpu")


HEAD = {
    "class_path": "facelit.heads.ArcFaceHead",
    "init_args": {"scale": 8.0, "margin": 0.3, "sharded": True, "center": {"weight": 0.01, "alpha": 0.5}},
}


def test_the_command_line_shares_out_and_joins_again(tmp_path: Path) -> None:
    """Two processes for an epoch, then one to the end, give what one gives."""
    finals = []
    for name, stages in (("one", [1]), ("two", [2, 1])):
        folder = tmp_path / name
        folder.mkdir()
        for number, processes in enumerate(stages):
            config = (make_run if number == 0 else make_config)(
                folder,
                model__head=HEAD,
                model__backbone__init_args__plain=True,
                data__batch_size=16 // processes,
                trainer__max_epochs=2 if number == len(stages) - 1 else 1,
                trainer__gradient_clip_val=1.0,
            )
            resume = ["--ckpt_path", "last"] if number else []
            if processes == 2:
                facelit_on_two_processes("fit", "--config", config)
            else:
                main(["fit", "--config", str(config), *resume])
        path = max(folder.glob("**/last.ckpt"), key=lambda path: path.stat().st_mtime)
        finals.append(torch.load(path, weights_only=True))
    one, two = finals
    assert one["global_step"] == two["global_step"] == 6
    for name, value in one["state_dict"].items():
        torch.testing.assert_close(two["state_dict"][name], value, rtol=1e-4, atol=2e-5, msg=name)


def make_config(folder: Path, **options: Any) -> Path:
    return write_config(folder, tiny_config(folder, **options))
