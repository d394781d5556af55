"""How many optimizer steps a run has: what a schedule that ends with the run must know."""

from __future__ import annotations

from math import inf

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities.rank_zero import rank_zero_warn
from torch.optim.lr_scheduler import OneCycleLR

from facelit.data.datamodule import FaceDataModule, training_batches
from facelit.errors import FacelitError
from facelit.lightning import place_in_run
from facelit.optim import WarmupSchedule

_NO_END = "the schedule must know how long the run is: set trainer.max_epochs or trainer.max_steps."


class ScheduleLength(Callback):
    """Tells a `WarmupSchedule` how many optimizer steps the run has, unless the user did.

    `FaceRecognizer` makes one and calls `fill_in`.
    """

    def __init__(self) -> None:
        self._schedule: WarmupSchedule | None = None

    def fill_in(self, schedule: WarmupSchedule, interval: str, trainer: Trainer) -> None:
        """Sets the schedule's length; warns if the run ends before its warm-up does.

        Args:
            schedule: The schedule just made.
            interval: What it advances by: "epoch" or "step".
            trainer: Whose run it is.

        Raises:
            FacelitError: It advances by epochs, or the run has no end.
        """
        name = type(schedule).__name__
        if interval != "step":
            raise FacelitError(f"{name} counts optimizer steps, not epochs: set model.lr_interval to step.")
        self._schedule = None
        if schedule.total_steps is None:
            self._schedule = schedule
            schedule.set_total_steps(total_steps(trainer))
        total = schedule.total_steps or 0
        if schedule.warmup >= max(1, total) and not trainer.fast_dev_run:
            rank_zero_warn(f"{name} warms up for {schedule.warmup:g} steps; the run has {total}.", category=UserWarning)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Counts again: the remaining epochs of a resumed run may differ in length from those before.

        Raises:
            FacelitError: torch's `OneCycleLR` ends before the run; torch says so only then.
        """
        if self._schedule is not None:
            self._schedule.set_total_steps(total_steps(trainer))
        for each in trainer.lr_scheduler_configs:
            if isinstance(each.scheduler, OneCycleLR):
                _check_one_cycle(each.scheduler, each.interval, trainer)


def _check_one_cycle(schedule: OneCycleLR, interval: str, trainer: Trainer) -> None:
    if interval == "step":
        length, left = total_steps(trainer), total_steps(trainer) - trainer.global_step
    else:
        length = trainer.max_epochs or -1
        left = length - place_in_run(trainer).epochs_finished
    if schedule.last_epoch + left > schedule.total_steps:
        raise FacelitError(
            f"model.lr_scheduler: OneCycleLR ends after total_steps {schedule.total_steps}, the run after {length} {interval}s. Set"
            f" model.lr_scheduler.total_steps to {length}; a resumed run keeps the schedule that it began with."
        )


def total_steps(trainer: Trainer) -> int:
    """Optimizer steps of the whole run: those made, and those to come.

    A resumed run may have other epochs than before (another batch size, other processes, more images): ask again once its
    place is known, in `on_train_start`.

    Raises:
        FacelitError: The run has no end: neither `max_epochs` nor `max_steps` is set.
    """
    data = getattr(trainer, "datamodule", None)
    if not isinstance(data, FaceDataModule):
        estimate = trainer.estimated_stepping_batches
        if not 0 < estimate < inf:
            raise FacelitError(_NO_END)
        return int(estimate)
    # Lightning's own estimate sets up the loader before a resumed run knows its place in the epoch.
    batches, accumulated = training_batches(trainer, data.batches_per_epoch), trainer.accumulate_grad_batches
    in_epoch = -(-batches // accumulated)
    place, max_epochs = place_in_run(trainer), trainer.max_epochs or 0
    steps = 0
    if max_epochs > 0:
        steps = trainer.global_step + max(0, max_epochs - place.epochs_finished) * in_epoch
        if place.epoch_begun:
            steps -= in_epoch if place.batches_begun >= batches else place.batches_begun // accumulated
    limits = [int(limit) for limit in (steps, trainer.max_steps) if limit > 0]
    if not limits:
        raise FacelitError(_NO_END)
    return min(limits)
