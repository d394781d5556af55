"""FaceRecognizer: backbone + head + optimizers, as Lightning wants them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable, ReduceLROnPlateau
from pytorch_lightning.core.mixins.hparams_mixin import _given_hyperparameters
from pytorch_lightning.utilities.rank_zero import rank_zero_warn
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from facelit.callbacks.bad_images import BadImageLog
from facelit.callbacks.finite_loss import StopOnNonFiniteLoss
from facelit.checkpoints import CHECKPOINT_KEY, load_backbone
from facelit.data.batches import EvalBatch, TrainBatch
from facelit.data.datamodule import FaceDataModule
from facelit.distributed import global_batch
from facelit.errors import FacelitError
from facelit.heads import Head
from facelit.optim import WarmupCosine


def _default_optimizer(params: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.05, momentum=0.9, weight_decay=5e-4)


class FaceRecognizer(LightningModule):
    """Trains a backbone under a head, and embeds.

    Args:
        backbone: Float images in [-1, 1], shape (N, 3, 112, 112), to embeddings (N, D).
        head: Embeddings and labels to a loss; see `facelit.heads`.
        optimizer: The network's optimizer, given its parameters. Centers have their own, from the head.
        lr_scheduler: Learning-rate schedule, given the optimizer.
        lr_interval: Whether the schedule advances each "epoch" or each "step".
        init_backbone: Checkpoint whose backbone this run starts from, for training on other identities (transfer).
        channels_last: Whether convolutions work on NHWC memory, which is faster on most hardware.
    """

    def __init__(
        self,
        backbone: nn.Module,
        head: Head,
        optimizer: OptimizerCallable = _default_optimizer,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: str = "epoch",
        init_backbone: str | None = None,
        channels_last: bool = True,
    ) -> None:
        super().__init__()
        if _given_hyperparameters.get() is not None:
            # Made by the command line: the checkpoint keeps the configuration, plain values that load safely. Objects
            # handed over in Python are not kept: a checkpoint with a function or a module in it loads nowhere safely.
            self.save_hyperparameters()
        if lr_interval not in ("epoch", "step"):
            raise FacelitError(f"model.lr_interval must be 'epoch' or 'step', not {lr_interval!r}.")
        self.backbone = backbone
        self.head = head
        self.make_optimizer = optimizer
        self.make_lr_scheduler = lr_scheduler
        self.lr_interval = lr_interval
        self.channels_last = channels_last
        self.head_optimizer: torch.optim.Optimizer | None = None
        self.calibration: dict[str, Any] = {}
        """Thresholds by verification set, of the latest validation: `VerificationCallback` sets it, checkpoints keep it."""
        self._rng_states: dict[str, Tensor] = {}
        if init_backbone is not None:
            load_backbone(self.backbone, Path(init_backbone))
        if channels_last:
            self.backbone.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Embeds crops.

        Args:
            images: float, RGB in [-1, 1], shape (N, 3, 112, 112).

        Returns:
            Embeddings, shape (N, D), not normalised.
        """
        # Under the `*-true` precisions the weights are not float32; the images are, until here.
        images = images.to(next(self.backbone.parameters()).dtype)
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        embeddings: Tensor = self.backbone(images)
        return embeddings

    def training_step(self, batch: TrainBatch, batch_idx: int) -> Tensor:
        """The head's loss on one batch; its metrics are logged every `trainer.log_every_n_steps` steps."""
        embeddings = self(batch.images)
        with global_batch(batch.global_size):
            output = self.head(embeddings, batch.labels)
        if self._logs_this_step():
            self._log_metrics(output.loss, output.metrics, len(batch.labels))
        loss: Tensor = output.loss
        return loss

    def validation_step(self, batch: EvalBatch, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Embeddings of one batch, float32 (N, D), for the callbacks that collect them."""
        embeddings: Tensor = self(batch.images)
        return embeddings.float()

    test_step = validation_step
    predict_step = validation_step

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The network's optimizer and schedule for Lightning; the head's own is kept aside."""
        self.head_optimizer = self.head.make_optimizer()
        try:
            optimizer = self.make_optimizer([parameter for parameter in self.parameters() if parameter.requires_grad])
            if self.make_lr_scheduler is None:
                return {"optimizer": optimizer}
            scheduler = self.make_lr_scheduler(optimizer)
        except (ValueError, TypeError) as error:
            raise FacelitError(f"model.optimizer or model.lr_scheduler: {error}") from error
        if isinstance(scheduler, WarmupCosine) and scheduler.total_steps is None:
            scheduler.total_steps = self._total_steps()
            for group, rate in zip(optimizer.param_groups, scheduler.get_lr(), strict=True):
                group["lr"] = rate
        settings: dict[str, Any] = {"scheduler": scheduler, "interval": self.lr_interval}
        if isinstance(scheduler, ReduceLROnPlateau):
            settings["monitor"] = scheduler.monitor
        return {"optimizer": optimizer, "lr_scheduler": settings}  # type: ignore[return-value]  # TypedDict by hand

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Any,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Steps the network, then the centers, once and together.

        Lightning sees one optimizer: `global_step`, clipping and accumulation mean what they say. A step that the fp16
        gradient scaler skips does not move the centers either.
        """
        scale = self._gradient_scale()
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if self.head_optimizer is None:
            return
        if scale is not None and self._gradient_scale() < scale:  # type: ignore[operator]  # not None before: not now
            self.head_optimizer.zero_grad()
        else:
            self.head_optimizer.step()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what the command line must know before it can build the network again, and the thresholds."""
        rng_states = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            rng_states["cuda"] = torch.cuda.get_rng_state(self.device)
        own: dict[str, Any] = {"num_identities": self.head.num_identities, "rng_states": rng_states}
        if self.calibration:
            own["calibration"] = self.calibration
        checkpoint[CHECKPOINT_KEY] = own

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps the random state for the first step of the resumed run: dropout goes on as if nothing had happened.

        The thresholds of the last validation are kept too, for checkpoints that are written before the next one.
        """
        own = checkpoint.get(CHECKPOINT_KEY, {})
        self._rng_states = own.get("rng_states", {})
        self.calibration = own.get("calibration", {})

    def on_train_batch_start(self, batch: TrainBatch, batch_idx: int) -> None:
        """Restores the random state, once."""
        if "cpu" in self._rng_states:
            torch.set_rng_state(self._rng_states["cpu"])
        if "cuda" in self._rng_states and self.device.type == "cuda":
            torch.cuda.set_rng_state(self._rng_states["cuda"], self.device)
        self._rng_states = {}

    def configure_callbacks(self) -> list[Callback]:
        """A loss that is no number stops the run, and a skipped image is written down, however the trainer was made."""
        return [StopOnNonFiniteLoss(), BadImageLog()]

    def _total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        trainer = self.trainer
        data = getattr(trainer, "datamodule", None)
        if not isinstance(data, FaceDataModule):
            return int(trainer.estimated_stepping_batches)
        # Lightning's own estimate sets up the loader before a resumed run knows its place in the epoch.
        batches, limit = data.batches_per_epoch, trainer.limit_train_batches
        batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
        steps = -(-batches // trainer.accumulate_grad_batches) * max(0, trainer.max_epochs or 0)
        limits = [int(limit) for limit in (steps, trainer.max_steps) if limit > 0]
        if not limits:
            raise FacelitError(
                "WarmupCosine must know how long the run is: set trainer.max_epochs or trainer.max_steps."
            )
        return min(limits)

    def _gradient_scale(self) -> float | None:
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        return None if scaler is None else float(scaler.get_scale())

    def _logs_this_step(self) -> bool:
        """As Lightning's own rule for `log_every_n_steps`; the first step too, so that a run shows its loss at once."""
        trainer = self.trainer
        if trainer.fast_dev_run or trainer.global_step == 0:
            return True
        return bool((trainer.global_step + 1) % max(1, trainer.log_every_n_steps) == 0)

    def _log_metrics(self, loss: Tensor, metrics: dict[str, Tensor], batch_size: int) -> None:
        values = {"train/loss": loss.detach(), **{f"train/{name}": value for name, value in metrics.items()}}
        distributed = self.trainer.world_size > 1
        self.log_dict(values, batch_size=batch_size, sync_dist=distributed)
        self.log("loss", loss.detach(), prog_bar=True, logger=False, batch_size=batch_size, sync_dist=distributed)
        self.log("lr", self.trainer.optimizers[0].param_groups[0]["lr"], batch_size=batch_size)
        self._warn_of_trouble({name: float(value) for name, value in metrics.items()})

    def _warn_of_trouble(self, metrics: dict[str, float]) -> None:
        warning = self.head.diagnose(metrics)
        if warning is not None:
            rank_zero_warn(f"step {self.trainer.global_step}: {warning}", category=UserWarning)
