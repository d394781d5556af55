"""WarmupCosine against its formula, and in a run."""

import csv
import math
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
from tiny_run import make_run

from facelit.cli import main
from facelit.optim import WarmupCosine

BASE = 0.3


def rates(steps: int, **options: float) -> list[float]:
    """The rate that each of so many optimizer steps is made with."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=BASE)
    scheduler = WarmupCosine(optimizer, **options)  # type: ignore[arg-type]
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


@pytest.mark.parametrize("warmup", [-0.1, 1.0, 20])
def test_warmup_is_a_share(warmup: float) -> None:
    with pytest.raises(ValueError, match="warmup must be a share"):
        rates(1, warmup=warmup)


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
        model__backbone__init_args={"width": 0.01, "embedding_dim": 4},
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
