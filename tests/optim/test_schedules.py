"""The learning-rate schedules against their formulas and torch's own, and in a run."""

import csv
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from facelit import FaceRecognizer
from facelit.cli import main
from facelit.optim import WarmupCosine, WarmupMultiStep, WarmupPolynomial, WarmupSchedule
from tiny_run import make_run

BASE = 0.3

LRScheduler = torch.optim.lr_scheduler.LRScheduler


def rates(steps: int, schedule: type[WarmupSchedule] = WarmupCosine, **options: Any) -> list[float]:
    """The rate that each of so many optimizer steps is made with."""
    return used_rates(steps, lambda optimizer: schedule(optimizer, **options))


def used_rates(steps: int, make: Callable[[torch.optim.Optimizer], LRScheduler]) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=BASE)
    scheduler = make(optimizer)
    if isinstance(scheduler, WarmupSchedule) and scheduler.total_steps is not None:
        scheduler.set_total_steps(scheduler.total_steps)
    used = []
    for _ in range(steps):
        used.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return used


def formula(step: int, total: int, warmup: float, final: float) -> float:
    """Rises by equal parts over the first warmup * total steps, then half a cosine from 1 to final at `total`."""
    top = warmup * total
    if step < top:
        return BASE * (step + 1) / (top + 1)
    angle = math.pi * (step - top) / (total - top)
    return BASE * (final + (1 - final) / 2 + (1 - final) / 2 * math.cos(angle))


@pytest.mark.parametrize(("total", "warmup", "final"), [(20, 0.25, 0.0), (20, 0.0, 0.1), (7, 0.3, 0.02), (3, 0.5, 0.0)])
def test_rates_are_the_formula(total: int, warmup: float, final: float) -> None:
    found = rates(total, warmup=warmup, final=final, total_steps=total)
    assert found == pytest.approx([formula(step, total, warmup, final) for step in range(total)], rel=1e-9)
    assert all(rate > 0 for rate in found)


def test_rises_then_falls_then_stays() -> None:
    found = rates(30, warmup=0.25, final=0.1, total_steps=20)
    assert all(later > earlier for earlier, later in pairwise(found[:6]))
    assert found[5] == max(found) == pytest.approx(BASE)
    assert all(later < earlier for earlier, later in pairwise(found[5:21]))
    assert found[20:] == pytest.approx([0.1 * BASE] * 10)


def test_polynomial_by_hand() -> None:
    """Twelve steps, the first two of them warming up: thirds, then (1 - p)^2 in tenths."""
    found = rates(14, WarmupPolynomial, warmup=2, power=2.0, total_steps=12)
    left = [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0, 0.0]
    assert found == pytest.approx([BASE / 3, BASE * 2 / 3, *(BASE * share**2 for share in left)], abs=1e-12)


def test_polynomial_stops_at_its_final_rate() -> None:
    found = rates(6, WarmupPolynomial, warmup=0, power=1.0, final=0.2, total_steps=4)
    assert found == pytest.approx([BASE * share for share in (1.0, 0.8, 0.6, 0.4, 0.2, 0.2)])


def test_multi_step_by_hand() -> None:
    """Ten steps: half the rate in the first, a tenth from step 4, a hundredth from step 9."""
    found = rates(12, WarmupMultiStep, warmup=1, milestones=[0.4, 0.9], gamma=0.1, total_steps=10)
    assert found == pytest.approx([BASE * share for share in (0.5, 1, 1, 1, *[0.1] * 5, 0.01, 0.01, 0.01)])


def test_milestones_in_floating_point() -> None:
    """0.07 of 100 steps is 7.000000000000001, and 0.29 is 28.999999999999996: the rate falls at steps 7 and 29 all the same."""
    found = rates(100, WarmupMultiStep, warmup=0, milestones=[0.07, 0.29], total_steps=100)
    assert [step for step in range(1, 100) if found[step] != found[step - 1]] == [7, 29]


@pytest.mark.parametrize(
    ("schedule", "options", "after"),
    [
        (WarmupCosine, {"final": 0.1}, lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 15, eta_min=0.1 * BASE)),
        (WarmupPolynomial, {"power": 2.0}, lambda o: torch.optim.lr_scheduler.PolynomialLR(o, 15, power=2.0)),
        (WarmupPolynomial, {"power": 0.9}, lambda o: torch.optim.lr_scheduler.PolynomialLR(o, 15, power=0.9)),
        (WarmupMultiStep, {"milestones": [0.5, 0.8]}, lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [5, 11])),
    ],
    ids=["cosine", "squared", "flat power", "steps"],
)
@pytest.mark.parametrize("warmup", [0.25, 5], ids=["a share", "steps"])
def test_rates_are_those_of_torch(
    schedule: type[WarmupSchedule],
    options: dict[str, Any],
    after: Callable[[torch.optim.Optimizer], LRScheduler],
    warmup: float,
) -> None:
    """torch chains a LinearLR of 5 steps with its own schedule of 15."""

    def chained(optimizer: torch.optim.Optimizer) -> LRScheduler:
        rising = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1 / 6, total_iters=5)
        return torch.optim.lr_scheduler.SequentialLR(optimizer, [rising, after(optimizer)], milestones=[5])

    found = rates(20, schedule, warmup=warmup, total_steps=20, **options)
    assert found == pytest.approx(used_rates(20, chained), rel=1e-9)


def test_each_group_keeps_its_own_highest_rate() -> None:
    groups = [{"params": [torch.zeros(1, requires_grad=True)], "lr": lr} for lr in (0.3, 0.03)]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    scheduler = WarmupPolynomial(optimizer, warmup=1, power=1.0)
    scheduler.set_total_steps(5)
    for left in (0.5, 1.0, 0.75, 0.5, 0.25):
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.3 * left, 0.03 * left])
        assert scheduler.get_last_lr() == pytest.approx([0.3 * left, 0.03 * left])
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize(
    ("schedule", "options", "message"),
    [
        (WarmupCosine, {"warmup": -0.1}, "warmup must be a fraction"),
        (WarmupCosine, {"warmup": math.inf}, "warmup must be a fraction"),
        (WarmupCosine, {"final": 1.5}, "final must be a fraction"),
        (WarmupPolynomial, {"final": -1e-6}, "final must be a fraction"),
        (WarmupPolynomial, {"power": 0.0}, "power must be positive"),
        (WarmupMultiStep, {"milestones": [8, 14]}, "between 0 and 1, not 8"),
        (WarmupMultiStep, {"milestones": [0.5], "gamma": 0.0}, "gamma must be positive"),
    ],
)
def test_options_out_of_range(schedule: type[WarmupSchedule], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rates(1, schedule, **options)


def test_a_schedule_of_unknown_length_goes_no_step() -> None:
    """Else its rate would stay as it is for good, and nobody would notice."""
    with pytest.raises(ValueError, match="WarmupPolynomial needs the length of the run: give it total_steps"):
        rates(2, WarmupPolynomial)


def test_state_goes_on_where_it_was() -> None:
    """In a schedule made with other settings: the state holds them all."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=BASE)
    scheduler = WarmupCosine(optimizer, warmup=0.25, final=0.1, total_steps=20)
    for _ in range(8):
        optimizer.step()
        scheduler.step()
    other_optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=BASE)
    other = WarmupCosine(other_optimizer)
    other_optimizer.load_state_dict(optimizer.state_dict())
    other.load_state_dict(scheduler.state_dict())
    for step in range(8, 24):
        expected = formula(min(step, 20), 20, 0.25, 0.1)
        assert other_optimizer.param_groups[0]["lr"] == pytest.approx(expected)
        other_optimizer.step()
        other.step()


def test_a_prolonged_run_has_the_longer_schedule_at_once() -> None:
    """Also in its first step: the optimizer comes with the last rate of the short one, here 0."""
    made = []
    for total in (10, 20):
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=BASE)
        scheduler = WarmupCosine(optimizer, warmup=0.0)
        scheduler.set_total_steps(total)
        made.append((optimizer, scheduler))
    (short, scheduler), (optimizer, longer) = made
    for _ in range(10):
        short.step()
        scheduler.step()
    optimizer.load_state_dict(short.state_dict())
    longer.load_state_dict(scheduler.state_dict())
    used = []
    for _ in range(3):
        used.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        longer.step()
    assert used == pytest.approx([formula(step, 20, 0.0, 0.0) for step in (10, 11, 12)])


@pytest.mark.parametrize(
    ("options", "total"),
    [
        ([], 2 * 6),
        (["--trainer.accumulate_grad_batches", "4"], 2 * 2),  # six batches: a step of four, and one of two
        (["--trainer.max_steps", "5"], 5),
    ],
    ids=["epochs x batches", "accumulated", "max_steps"],
)
def test_a_run_fills_in_its_length(tmp_path: Path, options: list[str], total: int) -> None:
    schedule = {"class_path": "facelit.optim.WarmupCosine", "init_args": {"warmup": 0.25, "final": 0.1}}
    config = make_run(
        tmp_path,
        model__lr_scheduler=schedule,
        model__lr_interval="step",
        model__optimizer={"class_path": "torch.optim.SGD", "init_args": {"lr": BASE}},
        model__backbone__init_args={"embedding_dim": 4},
        trainer__max_epochs=2,
        data__verification=None,
    )
    main(["fit", "--config", str(config), *options])
    (log,) = tmp_path.glob("**/metrics.csv")
    with log.open() as file:
        found = {int(row["step"]): float(row["lr"]) for row in csv.DictReader(file)}
    assert found == pytest.approx({step: formula(step, total, 0.25, 0.1) for step in range(total)})
    (path,) = tmp_path.glob("**/last.ckpt")
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["global_step"] == total
    assert checkpoint["lr_schedulers"][0]["total_steps"] == total


def schedule_run(folder: Path, schedule: dict[str, Any], **options: Any) -> Path:
    """The configuration of a short run under a schedule."""
    return make_run(
        folder,
        model__lr_scheduler=schedule,
        model__optimizer={"class_path": "torch.optim.SGD", "init_args": {"lr": BASE}},
        model__backbone__init_args={"embedding_dim": 4},
        trainer__max_epochs=2,
        data__verification=None,
        **options,
    )


def logged_rates(folder: Path) -> dict[int, float]:
    found: dict[int, float] = {}
    for log in sorted(folder.glob("**/metrics.csv")):
        with log.open() as file:
            found |= {int(row["step"]): float(row["lr"]) for row in csv.DictReader(file) if row["lr"]}
    return found


POLYNOMIAL = {"class_path": "facelit.optim.WarmupPolynomial", "init_args": {"warmup": 3, "power": 2.0}}


def test_a_killed_run_goes_on_in_its_schedule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed at step 9, resumed from step 7, mid-epoch: three steps of quarters, then (1 - p)^2 over the nine left."""
    step = FaceRecognizer.training_step

    def fail(self: FaceRecognizer, *args: Any) -> torch.Tensor:
        if self.trainer.global_step == 9:
            raise KeyError("killed")
        return step(self, *args)

    config = schedule_run(tmp_path, POLYNOMIAL, model__lr_interval="step", last_checkpoint={"every_n_train_steps": 7})
    monkeypatch.setattr(FaceRecognizer, "training_step", fail)
    with pytest.raises(KeyError, match="killed"):
        main(["fit", "--config", str(config)])
    monkeypatch.undo()
    (checkpoint,) = tmp_path.glob("**/last.ckpt")
    assert torch.load(checkpoint, weights_only=True)["global_step"] == 7
    main(["fit", "--config", str(config), "--ckpt_path", "last"])
    resumed = logged_rates(tmp_path / "runs" / "tiny" / "version_1")
    expected = [BASE / 4, BASE / 2, BASE * 3 / 4, *(BASE * (1 - done / 9) ** 2 for done in range(9))]
    assert resumed == pytest.approx({step: expected[step] for step in range(7, 12)})


def test_a_schedule_of_steps_refuses_epochs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It would stay in its warm-up for the whole run."""
    config = schedule_run(tmp_path, POLYNOMIAL, model__lr_interval="epoch")
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(config)])
    said = capsys.readouterr().err
    assert "WarmupPolynomial counts optimizer steps, not epochs: set model.lr_interval to step." in said


def test_a_warmup_longer_than_the_run_is_pointed_out(tmp_path: Path) -> None:
    config = schedule_run(tmp_path, POLYNOMIAL, model__lr_interval="step")
    with pytest.warns(UserWarning, match="WarmupPolynomial warms up for 3 steps; the run has 2"):
        main(["fit", "--config", str(config), "--trainer.max_steps", "2"])


def test_a_schedule_wants_an_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = schedule_run(tmp_path, POLYNOMIAL, model__lr_interval="step")
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(config), "--trainer.max_epochs", "-1"])
    assert "must know how long the run is: set trainer.max_epochs or trainer.max_steps." in capsys.readouterr().err
