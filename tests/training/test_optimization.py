"""What the optimizer's options are refused for before a run starts."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pytorch_lightning.cli import ReduceLROnPlateau
from torch.optim.lr_scheduler import OneCycleLR

from facelit.errors import FacelitError
from facelit.lightning import Place
from facelit.training import run_length
from facelit.training.optimization import Optimization, default_optimizer
from facelit.training.run_length import ScheduleLength


def settings(monitor: str, interval: str = "epoch", plateau: Any = ReduceLROnPlateau, **trainer: Any) -> dict[str, Any]:
    """What Lightning is told of a plateau schedule."""
    defaults = {"check_val_every_n_epoch": 1, "limit_val_batches": 1.0, "gradient_clip_val": None, "datamodule": None}
    defaults["callbacks"] = []
    module = torch.nn.Linear(2, 2)
    module.trainer = SimpleNamespace(**defaults | {"precision_plugin": None} | trainer)
    module.device = torch.device("cpu")
    optimization = Optimization(default_optimizer, lambda one: plateau(one, monitor), interval, False)
    return optimization.configure(module)["lr_scheduler"]


def test_a_plateau_schedule_steps_where_validations_are() -> None:
    """With a validation every second epoch the run died after the first."""
    assert settings("val/accuracy")["frequency"] == 1
    assert settings("val/accuracy", check_val_every_n_epoch=2)["frequency"] == 2
    assert settings("train/loss", check_val_every_n_epoch=2, limit_val_batches=0)["frequency"] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"interval": "step"}, "set model.lr_interval to epoch"),
        ({"check_val_every_n_epoch": None}, "check_val_every_n_epoch null"),
        ({"limit_val_batches": 0}, "no validation"),
    ],
)
def test_a_plateau_schedule_without_anything_to_look_at_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(FacelitError, match=f"ReduceLROnPlateau looks at lfw/auc.*{message}"):
        settings("lfw/auc", **options)


def test_torch_s_plateau_schedule_has_no_figure_to_look_at() -> None:
    with pytest.raises(FacelitError, match=r"--model\.lr_scheduler pytorch_lightning\.cli\.ReduceLROnPlateau"):
        settings("max", plateau=torch.optim.lr_scheduler.ReduceLROnPlateau)


@pytest.mark.parametrize(
    ("interval", "total", "is_short"), [("step", 5, True), ("step", 6, False), ("epoch", 1, True), ("epoch", 2, False)]
)
def test_a_cycle_that_ends_before_the_run_is_refused_before_training(
    interval: str, total: int, is_short: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two epochs of three batches: torch raises in the step after the last one it was told of."""
    schedule = OneCycleLR(torch.optim.SGD([torch.zeros(1)], 0.1), 0.1, total_steps=total)
    monkeypatch.setattr(run_length, "place_in_run", lambda trainer: Place(0, False, 0))
    trainer = SimpleNamespace(
        lr_scheduler_configs=[SimpleNamespace(scheduler=schedule, interval=interval)],
        estimated_stepping_batches=6,
        global_step=0,
        max_epochs=2,
        datamodule=None,
    )
    with pytest.raises(FacelitError, match="total_steps to") if is_short else nullcontext():
        ScheduleLength().on_train_start(trainer, torch.nn.Linear(1, 1))
