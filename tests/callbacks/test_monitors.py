"""Figures that no run gives are refused before training, or after its first batch: Lightning trains an epoch first."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from pytorch_lightning import Callback
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint

from facelit.callbacks.monitors import check_monitors, check_trained_monitors
from facelit.errors import FacelitError
from facelit.training import FaceRecognizer

OURS = FaceRecognizer.__new__(FaceRecognizer)


def trainer(*callbacks: Callback, **options: Any) -> Any:
    settings = {"limit_val_batches": 1.0, "check_val_every_n_epoch": 1, "lr_scheduler_configs": []}
    settings |= {"callback_metrics": {"train/loss": 1, "lr": 2}, "datamodule": SimpleNamespace(verification={"lfw": 0})}
    return SimpleNamespace(callbacks=list(callbacks), **settings | options)


@pytest.mark.parametrize(
    ("watcher", "options", "message"),
    [
        (EarlyStopping("val/accuracy"), {"datamodule": SimpleNamespace(verification={})}, "this run has none"),
        (EarlyStopping("lfw/auc"), {"limit_val_batches": 0}, "this run has none"),
        (EarlyStopping("lfw/auc", check_on_train_epoch_end=True), {"check_val_every_n_epoch": 2}, "without one"),
        (EarlyStopping("lfw/auc", check_on_train_epoch_end=True), {"check_val_every_n_epoch": None}, "without one"),
    ],
)
def test_early_stopping_without_anything_to_look_at(watcher: Callback, options: dict[str, Any], message: str) -> None:
    with pytest.raises(FacelitError, match=rf"monitor of EarlyStopping: .*{message}"):
        check_monitors(trainer(watcher, **options), OURS)


def test_what_will_find_its_figure_passes() -> None:
    none = {"datamodule": SimpleNamespace(verification={})}
    check_monitors(trainer(ModelCheckpoint(monitor="val/accuracy"), **none), OURS)  # keeps the last one only
    check_monitors(trainer(EarlyStopping("train/loss"), **none), OURS)
    check_monitors(trainer(EarlyStopping("val/accuracy", strict=False), **none), OURS)
    check_monitors(trainer(EarlyStopping("lfw/auc"), check_val_every_n_epoch=2), OURS)
    check_monitors(trainer(EarlyStopping("lfw/auc", check_on_train_epoch_end=True)), OURS)


@pytest.mark.parametrize("name", ["val_loss", "train/los", "los"])
@pytest.mark.parametrize("watcher", [EarlyStopping, lambda name: ModelCheckpoint(monitor=name), "schedule"])
def test_a_figure_that_training_does_not_give(name: str, watcher: Any) -> None:
    is_schedule = watcher == "schedule"
    run = trainer(*([] if is_schedule else [watcher(name)]))
    if is_schedule:
        run.lr_scheduler_configs = [SimpleNamespace(monitor=name)]
    with pytest.raises(
        FacelitError, match=rf"monitor of [\w.]+: .* gives the figure '{name}'.*Training gives train/loss"
    ):
        check_trained_monitors(run, OURS)


@pytest.mark.parametrize("name", ["train/loss", "lr", "step", "lfw/auc", "val/accuracy"])
def test_figures_of_training_and_validation_pass(name: str) -> None:
    check_trained_monitors(trainer(ModelCheckpoint(monitor=name)), OURS)


def test_a_class_of_the_user_s_may_log_anything_later() -> None:
    class Own(Callback):
        """Of this file."""

    check_trained_monitors(trainer(EarlyStopping("mine"), Own()), OURS)
