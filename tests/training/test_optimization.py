"""What the optimizer's options are refused for before a run starts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pytorch_lightning.cli import ReduceLROnPlateau

from facelit.errors import FacelitError
from facelit.training.optimization import Optimization, default_optimizer


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
