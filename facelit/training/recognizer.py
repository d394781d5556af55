"""FaceRecognizer: backbone + head + optimizers, as Lightning wants them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable, ReduceLROnPlateau
from pytorch_lightning.core.mixins.hparams_mixin import _given_hyperparameters
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.strategies.launchers import _MultiProcessingLauncher
from pytorch_lightning.utilities.rank_zero import rank_zero_warn
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from facelit.callbacks.bad_images import BadImageLog
from facelit.callbacks.finite_loss import StopOnNonFiniteLoss
from facelit.callbacks.weight_average import WeightAverage
from facelit.checkpoints import CHECKPOINT_KEY, load_backbone
from facelit.data.batches import EvalBatch, TrainBatch
from facelit.data.resuming import begin_next_epoch
from facelit.distributed import global_batch
from facelit.errors import FacelitError
from facelit.heads import Head
from facelit.heads.base import metrics_wanted
from facelit.optim import WarmupSchedule, parameter_groups
from facelit.speed.compiling import CompileMode, make_compiled
from facelit.speed.fusing import StepWatch, fuse
from facelit.speed.reading import read_together
from facelit.speed.recomputing import recompute_activations
from facelit.speed.signals import ask_rarely
from facelit.training import sharding
from facelit.training.run_length import total_steps


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
        compile: Whether the backbone goes through torch.compile; true, or one of its modes: "default", "reduce-overhead",
            "max-autotune". Checkpoints are the same with it and without.
        checkpoint_activations: Whether the backbone's activations are computed again in the backward pass instead of being
            kept: less memory for about a third more arithmetic, and the same results.
        decay_norms_and_biases: Whether the optimizer's weight decay acts on norms, biases and PReLU slopes too.
        ema_decay: Share of a moving average of the backbone's weights that one step keeps, as 0.999. Validations and
            checkpoints then use the average; see `facelit.callbacks.WeightAverage`. By default there is none.
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
        compile: bool | CompileMode = False,
        checkpoint_activations: bool = False,
        decay_norms_and_biases: bool = True,
        ema_decay: float | None = None,
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
        self.decay_norms_and_biases = decay_norms_and_biases
        self.weight_average = WeightAverage(ema_decay)
        self._saved_groups: list[int] | None = None
        self._measured_schedule: WarmupSchedule | None = None
        self.channels_last = channels_last
        self.head_optimizer: torch.optim.Optimizer | None = None
        self.calibration: dict[str, Any] = {}
        """Thresholds by verification set, of the latest validation: `VerificationCallback` sets it, checkpoints keep it."""
        self._rng_states: dict[str, Tensor] = {}
        if init_backbone is not None:
            load_backbone(self.backbone, Path(init_backbone))
        if channels_last:
            self.backbone.to(memory_format=torch.channels_last)
        if checkpoint_activations:
            recompute_activations(self.backbone)
        self._compiled = make_compiled(compile)

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
        if self._compiled is not None:
            return self._compiled(self.backbone, images)
        embeddings: Tensor = self.backbone(images)
        return embeddings

    def training_step(self, batch: TrainBatch, batch_idx: int) -> Tensor:
        """The head's loss on one batch; its metrics are logged every `trainer.log_every_n_steps` steps."""
        embeddings = self(batch.images)
        logs = self._logs_at(batch_idx)
        with global_batch(batch.global_size), metrics_wanted(logs):
            try:
                output = self.head(embeddings, batch.labels)
            except ValueError as error:  # of a backbone or data of one's own: no width or label that the head knows
                if not type(self.head).__module__.startswith("facelit."):
                    raise  # whose own head it is wants to see the line
                raise FacelitError(f"model.head {type(self.head).__name__}: {error}") from error
        if logs:
            self._log_metrics(output.loss, output.metrics, len(batch.labels))
        loss: Tensor = output.loss
        return loss

    def validation_step(self, batch: EvalBatch, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Embeddings of one batch, float32 (N, D), for the callbacks that collect them."""
        embeddings: Tensor = self(batch.images)
        return embeddings.float()

    test_step = validation_step
    predict_step = validation_step

    def configure_model(self) -> None:
        """Gives a sharded head the identities of this process, now that the processes know each other."""
        if not self.head.sharded or not any(parameter.is_meta for parameter in self.head.parameters()):
            return
        # load_from_checkpoint comes here without a trainer.
        if self._trainer is not None and self._trainer.world_size > 1:
            self._refuse_sharding()
        self.head.shard()
        # Read by DistributedDataParallel: these are neither the same on all processes, nor to be averaged over them.
        self._ddp_params_and_buffers_to_ignore = sharding.names_in_model(self.head)

    def _refuse_sharding(self) -> None:
        """Says what a sharded head on several processes does not go with."""
        trainer, identities = self.trainer, self.head.num_identities
        if identities is not None and identities < trainer.world_size:
            raise FacelitError(
                f"model.head.sharded: {identities} identities cannot be shared out over {trainer.world_size} processes."
            )
        if trainer.state.fn != "fit":
            return
        if trainer.precision == "16-mixed":
            raise FacelitError(
                "model.head.sharded does not go with trainer.precision 16-mixed, under which each process would skip steps of its"
                " own: use bf16-mixed or 32-true."
            )
        strategy = trainer.strategy
        if not isinstance(strategy, DDPStrategy) or isinstance(strategy.launcher, _MultiProcessingLauncher):
            raise FacelitError(
                "model.head.sharded on several processes wants --trainer.strategy ddp (or facelit.speed.FaceDDP)."
            )

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The network's optimizer and schedule for Lightning; the head's own is kept aside."""
        self.head_optimizer = self.head.make_optimizer()
        try:
            optimizer = self.make_optimizer(parameter_groups(self.parameters(), self.decay_norms_and_biases))
            self._refuse_other_groups(optimizer)
            fuse(optimizer, self.device, scaled=self._gradient_scaler() is not None)
            self._refuse_unscaling(optimizer)
            if self.make_lr_scheduler is None:
                return {"optimizer": optimizer}
            scheduler = self.make_lr_scheduler(optimizer)
        except (ValueError, TypeError, RuntimeError) as error:  # torch raises each of them for options that do not fit
            raise FacelitError(f"model.optimizer or model.lr_scheduler: {error}") from error
        if isinstance(scheduler, WarmupSchedule):
            self._set_length(scheduler)
        settings: dict[str, Any] = {"scheduler": scheduler, "interval": self.lr_interval}
        if isinstance(scheduler, ReduceLROnPlateau):
            settings["monitor"] = scheduler.monitor
        return {"optimizer": optimizer, "lr_scheduler": settings}  # type: ignore[return-value]  # TypedDict by hand

    def _set_length(self, schedule: WarmupSchedule) -> None:
        """Tells the schedule how many optimizer steps this run has."""
        name = type(schedule).__name__
        if self.lr_interval != "step":
            raise FacelitError(f"{name} counts optimizer steps, not epochs: set model.lr_interval to step.")
        if schedule.total_steps is None:
            self._measured_schedule = schedule
            schedule.set_total_steps(total_steps(self.trainer))
        total = schedule.total_steps or 0
        if schedule.warmup >= max(1, total) and not self.trainer.fast_dev_run:
            rank_zero_warn(f"{name} warms up for {schedule.warmup:g} steps; the run has {total}.", category=UserWarning)

    def _refuse_other_groups(self, optimizer: torch.optim.Optimizer) -> None:
        """A checkpoint's optimizer state goes by the place of each parameter: it fits the same groups only."""
        here, saved = [len(group["params"]) for group in optimizer.param_groups], self._saved_groups
        self._saved_groups = None
        if saved is not None and saved != here:
            raise FacelitError(
                f"the checkpoint's optimizer has its parameters in groups of {saved}, this run's in groups of {here}. A resumed"
                " run keeps model.decay_norms_and_biases as it was; drop the change, or start a new run from the checkpoint's"
                " backbone (--model.init_backbone)."
            )

    def _refuse_unscaling(self, optimizer: torch.optim.Optimizer) -> None:
        """A fused optimizer that unscales gradients inside its step leaves none to clip: Lightning stops at the first one."""
        if self.trainer.gradient_clip_val and getattr(optimizer, "_step_supports_amp_scaling", False):
            raise FacelitError(
                "model.optimizer.fused does not go with trainer.gradient_clip_val under trainer.precision 16-mixed. Leave fused"
                " off, or take bf16-mixed."
            )

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
        with StepWatch(optimizer) as watch:
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if self.head_optimizer is None:
            return
        if self._gradient_scaler() is None or watch.stepped:
            self.head_optimizer.step()
        else:
            self.head_optimizer.zero_grad()

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips by the norm over all identities' gradients, on whatever process they lie."""
        by_norm = gradient_clip_algorithm in (None, "norm")
        if self.head.sharded and self.trainer.world_size > 1 and gradient_clip_val and by_norm:
            sharding.clip_gradients(self.parameters(), self.head, gradient_clip_val)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what the command line must know before it can build the network again, and the thresholds."""
        rng_states = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            rng_states["cuda"] = torch.cuda.get_rng_state(self.device)
        own: dict[str, Any] = {"num_identities": self.head.num_identities, "rng_states": rng_states}
        if self.calibration:
            own["calibration"] = self.calibration
        self.weight_average.save_into(checkpoint, own)
        if self.trainer.optimizers:
            own["identity_places"] = sharding.places_in_optimizer(self.head, self.trainer.optimizers[0])
        if self.head.sharded:
            sharding.gather_checkpoint(checkpoint, self.head, own.get("identity_places", ()))
        checkpoint[CHECKPOINT_KEY] = own

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps the random state for the first step of the resumed run: dropout goes on as if nothing had happened.

        The thresholds of the last validation are kept too, for checkpoints that are written before the next one.
        """
        own = checkpoint.get(CHECKPOINT_KEY, {})
        self._rng_states = own.get("rng_states", {})
        self.calibration = own.get("calibration", {})
        if self.head.sharded:
            sharding.shard_checkpoint(checkpoint, self.head, own.get("identity_places", ()))
        if self._trainer is not None and self._trainer.state.fn == "fit":
            self.weight_average.resume_from(checkpoint, own)
            states = checkpoint.get("optimizer_states") or [{"param_groups": []}]
            self._saved_groups = [len(group["params"]) for group in states[0]["param_groups"]] or None

    def on_train_start(self) -> None:
        """Settles what a resumed run begins with; and nothing in the steps between two logging ones shall wait for the device."""
        begin_next_epoch(self.trainer)
        if self._measured_schedule is not None:
            # The epochs that are left may have another length than those before.
            self._measured_schedule.set_total_steps(total_steps(self.trainer))
        if self._compiled is not None:
            self._compiled.check_accumulation(self.trainer.accumulate_grad_batches)
        ask_rarely(self.trainer, self.trainer.log_every_n_steps)

    def on_train_batch_start(self, batch: TrainBatch, batch_idx: int) -> None:
        """Restores the random state, once."""
        if "cpu" in self._rng_states:
            torch.set_rng_state(self._rng_states["cpu"])
        if "cuda" in self._rng_states and self.device.type == "cuda":
            torch.cuda.set_rng_state(self._rng_states["cuda"], self.device)
        self._rng_states = {}

    def configure_callbacks(self) -> list[Callback]:
        """A loss that is no number stops the run, and a skipped image is written down, however the trainer was made."""
        return [StopOnNonFiniteLoss(), BadImageLog(), self.weight_average]

    def _gradient_scaler(self) -> Any:
        """What scales the loss under 16-mixed; None elsewhere."""
        return getattr(self.trainer.precision_plugin, "scaler", None)

    def _logs_at(self, batch_idx: int) -> bool:
        """As Lightning's own rule for `log_every_n_steps`; the first step too, so that a run shows its loss at once."""
        trainer = self.trainer
        accumulated = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if not (accumulated or trainer.is_last_batch or batch_idx + 1 == trainer.num_training_batches):
            return False  # no step: the figures of the last micro-batch are those that count
        if trainer.fast_dev_run or trainer.global_step == 0:
            return True
        return bool((trainer.global_step + 1) % max(1, trainer.log_every_n_steps) == 0)

    def _log_metrics(self, loss: Tensor, metrics: dict[str, Tensor], batch_size: int) -> None:
        reduce = partial(self.trainer.strategy.reduce, reduce_op="mean") if self.trainer.world_size > 1 else None
        loss, *values = read_together({"loss": loss, **metrics}, reduce).values()
        figures = dict(zip(metrics, values, strict=True))
        self.log_dict(
            {"train/loss": loss} | {f"train/{name}": value for name, value in figures.items()}, batch_size=batch_size
        )
        self.log("loss", loss, prog_bar=True, logger=False, batch_size=batch_size)
        rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        self.log(
            "lr", torch.tensor(float(rate)), batch_size=batch_size
        )  # on the CPU: Lightning would copy a number over
        self._warn_of_trouble({name: float(value) for name, value in figures.items()})

    def _warn_of_trouble(self, metrics: dict[str, float]) -> None:
        warning = self.head.diagnose(metrics)
        if warning is not None:
            rank_zero_warn(f"step {self.trainer.global_step}: {warning}", category=UserWarning)
