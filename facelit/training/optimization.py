"""The network's optimizer and learning-rate schedule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable, ReduceLROnPlateau
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch.optim import Optimizer, lr_scheduler

from facelit.callbacks.monitors import check_monitor
from facelit.data.datamodule import FaceDataModule
from facelit.errors import FacelitError
from facelit.lightning import unscales_in_step
from facelit.optim import WarmupSchedule, parameter_groups
from facelit.speed.fusing import fuse
from facelit.training.run_length import ScheduleLength


def default_optimizer(params: Any) -> Optimizer:
    """SGD with momentum 0.9, learning rate 0.05 and weight decay 5e-4."""
    return torch.optim.SGD(params, lr=0.05, momentum=0.9, weight_decay=5e-4)


def gradient_scaler(trainer: Trainer) -> Any:
    """What scales the loss under 16-mixed; None under other precisions."""
    return getattr(trainer.precision_plugin, "scaler", None)


class Optimization:
    """Makes the network's optimizer and schedule, and refuses what fits neither the trainer nor the checkpoint.

    Args:
        make_optimizer: The optimizer, given the parameters.
        make_lr_scheduler: The schedule, given the optimizer; None for a constant rate.
        interval: Whether the schedule advances each "epoch" or each "step".
        decay_norms_and_biases: Whether norms, biases and PReLU slopes are decayed as the weights are.

    Attributes:
        schedule_length: The callback that tells a `WarmupSchedule` how long the run is.

    Raises:
        FacelitError: There is no such interval.
    """

    def __init__(
        self,
        make_optimizer: OptimizerCallable,
        make_lr_scheduler: LRSchedulerCallable | None,
        interval: str,
        decay_norms_and_biases: bool,
    ) -> None:
        if interval not in ("epoch", "step"):
            raise FacelitError(f"model.lr_interval must be 'epoch' or 'step', not {interval!r}.")
        self.make_optimizer = make_optimizer
        self.make_lr_scheduler = make_lr_scheduler
        self.interval = interval
        self.decay_norms_and_biases = decay_norms_and_biases
        self.schedule_length = ScheduleLength()
        self._saved_groups: list[int] | None = None

    def configure(self, module: LightningModule) -> OptimizerLRScheduler:
        """Optimizer and schedule of a module that is on its device, as `configure_optimizers` returns them.

        Raises:
            FacelitError: An option does not fit, or the optimizer suits neither the trainer nor the checkpoint.
        """
        try:
            optimizer = self._optimizer(module)
            if self.make_lr_scheduler is None:
                return {"optimizer": optimizer}
            scheduler = self.make_lr_scheduler(optimizer)
        except (ValueError, TypeError, RuntimeError) as error:  # torch raises each of them for options that do not fit
            raise FacelitError(f"model.optimizer or model.lr_scheduler: {error}") from error
        if isinstance(scheduler, WarmupSchedule):
            self.schedule_length.fill_in(scheduler, self.interval, module.trainer)
        settings: dict[str, Any] = {"scheduler": scheduler, "interval": self.interval}
        if isinstance(scheduler, ReduceLROnPlateau):
            settings["monitor"] = scheduler.monitor
            settings["frequency"] = self._epochs_between_figures(scheduler.monitor, module.trainer)
            check_monitor(scheduler.monitor, "monitor of model.lr_scheduler", module.trainer, module)
        elif isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
            raise FacelitError(
                "model.lr_scheduler: torch's ReduceLROnPlateau cannot be told which figure it looks at. Take Lightning's:"
                " --model.lr_scheduler pytorch_lightning.cli.ReduceLROnPlateau --model.lr_scheduler.monitor train/loss"
            )
        return {"optimizer": optimizer, "lr_scheduler": settings}  # type: ignore[return-value]  # TypedDict by hand

    def _epochs_between_figures(self, monitor: str, trainer: Trainer) -> int:
        """How often there is something for a plateau schedule to look at.

        Raises:
            FacelitError: It would look at a figure of validation where there is none; Lightning says so after the first epoch.
        """
        if monitor.startswith("train/"):
            return 1
        asked = f"model.lr_scheduler ReduceLROnPlateau looks at {monitor}, a figure of validation,"
        if self.interval != "epoch":
            raise FacelitError(f"{asked} after every step: set model.lr_interval to epoch.")
        if trainer.check_val_every_n_epoch is None:
            raise FacelitError(
                f"{asked} after epochs, and trainer.check_val_every_n_epoch null validates at other times. Set it to 1, or take"
                " another schedule."
            )
        data = getattr(trainer, "datamodule", None)
        if not trainer.limit_val_batches or (isinstance(data, FaceDataModule) and not data.verification):
            raise FacelitError(
                f"{asked} and this run has no validation (data.verification, trainer.limit_val_batches)."
            )
        return int(trainer.check_val_every_n_epoch)

    def resume_from(self, checkpoint: Mapping[str, Any]) -> None:
        """Remembers the checkpoint's parameter groups, which those of this run must match."""
        states = checkpoint.get("optimizer_states") or [{"param_groups": []}]
        self._saved_groups = [len(group["params"]) for group in states[0]["param_groups"]] or None

    def _optimizer(self, module: LightningModule) -> Optimizer:
        """Made by the user's class, fused where that pays."""
        trainer = module.trainer
        optimizer = self.make_optimizer(parameter_groups(module.parameters(), self.decay_norms_and_biases))
        self._refuse_other_groups(optimizer)
        fuse(optimizer, module.device, scaled=gradient_scaler(trainer) is not None)
        if trainer.gradient_clip_val and unscales_in_step(optimizer):
            raise FacelitError(
                "model.optimizer.fused cannot be combined with trainer.gradient_clip_val under trainer.precision 16-mixed. Turn"
                " fused off, or use bf16-mixed."
            )
        return optimizer

    def _refuse_other_groups(self, optimizer: Optimizer) -> None:
        """The state in a checkpoint belongs to parameters by their place: it fits the same groups only."""
        here, saved = [len(group["params"]) for group in optimizer.param_groups], self._saved_groups
        self._saved_groups = None
        if saved is not None and saved != here:
            raise FacelitError(
                f"the checkpoint's optimizer has its parameters in groups of {saved}, this run's in groups of {here}. A resumed"
                " run keeps model.decay_norms_and_biases as it was; drop the change, or start a new run from the checkpoint's"
                " backbone (--model.init_backbone)."
            )
