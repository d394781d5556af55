"""FaceRecognizer: backbone, head and optimizers as Lightning trains them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from facelit.backbones.pieces import embed_in_pieces
from facelit.callbacks.bad_images import BadImageLog
from facelit.callbacks.checkpoint_files import CheckpointFiles
from facelit.callbacks.finite_loss import StopOnNonFiniteLoss
from facelit.callbacks.pending_validation import PendingValidation
from facelit.callbacks.random_state import RandomState
from facelit.callbacks.stop_signals import StopSignals
from facelit.callbacks.weight_average import WeightAverage
from facelit.checkpoints import CHECKPOINT_KEY
from facelit.data.synthetic import is_drawn
from facelit.heads import Head
from facelit.importing.checkpoint import load_backbone
from facelit.lightning import begin_next_epoch, made_by_command_line, trainer_of
from facelit.speed.compiling import CompileMode, make_compiled
from facelit.speed.fusing import StepWatch
from facelit.speed.recomputing import recompute_activations
from facelit.training import sharding
from facelit.training.batches import images_of, training_batch
from facelit.training.distillation import Distillation, DistillationTerm, refuse_without_teacher
from facelit.training.loss import apply_head, log_figures, wants_figures
from facelit.training.optimization import Optimization, default_optimizer, gradient_scaler
from facelit.training.resizing import ProgressiveResizing, Resizer


class FaceRecognizer(LightningModule):
    """Trains a backbone under a head, and embeds; with `FaceDataModule` or any DataLoader of (images, labels).

    Args:
        backbone: Float images in [-1, 1], shape (N, 3, 112, 112), to embeddings (N, D).
        head: Embeddings and labels to a loss; see `facelit.heads`.
        optimizer: The network's optimizer, given its parameters. Centers have their own, from the head.
        lr_scheduler: Learning-rate schedule, given the optimizer.
        lr_interval: Whether the schedule advances each "epoch" or each "step".
        init_backbone: Checkpoint whose backbone this run starts from, for training on other identities (transfer); or anybody's
            weights that `facelit import` knows.
        channels_last: Whether convolutions work on NHWC memory, which is faster on most hardware.
        compile: Whether the backbone goes through torch.compile; true, or one of its modes: "default", "reduce-overhead",
            "max-autotune". Checkpoints are the same either way.
        checkpoint_activations: Whether the backward pass recomputes the backbone's activations instead of keeping them:
            less memory, about a third more arithmetic, the same results.
        decay_norms_and_biases: Whether the optimizer's weight decay acts on norms, biases and PReLU slopes too.
        ema_decay: Share of a moving average of the backbone's weights that one step keeps, for example 0.999; validations
            and checkpoints then use the average (`facelit.callbacks.WeightAverage`). By default there is none.
        distillation: A frozen network whose embeddings the backbone's follow, besides what the head asks for.
        resizing: Smaller training images for the first part of the run, which is faster.

    Raises:
        FacelitError: An option is out of range, or `init_backbone` does not fit.
    """

    def __init__(
        self,
        backbone: nn.Module,
        head: Head,
        optimizer: OptimizerCallable = default_optimizer,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: str = "epoch",
        init_backbone: str | None = None,
        channels_last: bool = True,
        compile: bool | CompileMode = False,
        checkpoint_activations: bool = False,
        decay_norms_and_biases: bool = True,
        ema_decay: float | None = None,
        distillation: DistillationTerm | None = None,
        resizing: ProgressiveResizing | None = None,
    ) -> None:
        super().__init__()
        if made_by_command_line():
            self.save_hyperparameters()  # plain values, which load safely: the objects that Python code hands over would not
        self._set_model(backbone, init_backbone, channels_last, compile, checkpoint_activations)
        self._set_loss(head, distillation)
        self._resizer = None if resizing is None else Resizer(resizing)
        optimization = Optimization(optimizer, lr_scheduler, lr_interval, decay_norms_and_biases)
        self._set_optimization(optimization, ema_decay)
        self.calibration: dict[str, Any] = {}
        """The latest validation's thresholds by set: `VerificationCallback` sets them, checkpoints keep them."""

    def _set_model(
        self, backbone: nn.Module, weights: str | None, channels_last: bool, compile: bool | str, recompute: bool
    ) -> None:
        self.backbone = backbone
        self.channels_last = channels_last
        if weights is not None:
            load_backbone(backbone, weights)
        if channels_last:
            backbone.to(memory_format=torch.channels_last)
        if recompute:
            recompute_activations(backbone, compiled=bool(compile))
        self._compiled = make_compiled(compile)

    def _set_loss(self, head: Head, term: DistillationTerm | None) -> None:
        self.head = head
        self.head_optimizer: torch.optim.Optimizer | None = None
        self.distillation = None if term is None else Distillation(term)
        refuse_without_teacher(head, self.distillation)

    def _set_optimization(self, optimization: Optimization, ema_decay: float | None) -> None:
        self.optimization = optimization
        self.weight_average = WeightAverage(ema_decay)
        self._random_state = RandomState()
        self._pending_validation = PendingValidation()
        self._stop_signals = StopSignals(command_line=made_by_command_line())

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
        embeddings: Tensor = self._compiled(self.backbone, images) if self._compiled else self.backbone(images)
        return embeddings

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The head's loss on a `TrainBatch`, or on (images, labels): float (N, 3, 112, 112) in [-1, 1], integers (N,)."""
        crops = training_batch(batch, first=batch_idx == 0)
        logs = wants_figures(self.trainer, batch_idx)
        assert isinstance(crops.images, Tensor)
        embeddings = self(crops.images if self._resizer is None else self._resizer(crops.images, self.global_step))
        output = apply_head(self.head, embeddings, crops, logs)
        if self.distillation is not None:
            output = self.distillation(output, embeddings, crops)
        if logs:
            log_figures(self, self.head, output, len(crops.labels))
        return output.loss

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Embeddings, float32 (N, D), of an `EvalBatch`, of images, or of (images, ...); callbacks collect them."""
        images = images_of(batch, first=batch_idx == 0)
        # A compiled network is compiled for a size.
        return (self(images) if self._compiled else embed_in_pieces(self.forward, images)).float()

    test_step = validation_step
    predict_step = validation_step

    def configure_model(self) -> None:
        """Gives a sharded head the identities of this process, now that the processes know each other; opens the teacher."""
        sharding.spread(self, self.head)
        if self.distillation is not None and self.trainer.state.fn == "fit":
            self.distillation.open(self.backbone)

    def configure_callbacks(self) -> list[Callback]:
        """What every run needs, however its trainer was made."""
        own = (self.weight_average, self._random_state, self._pending_validation, self.optimization.schedule_length)
        resizer = [] if self._resizer is None else [self._resizer]
        return [self._stop_signals, CheckpointFiles(), StopOnNonFiniteLoss(), BadImageLog(), *own, *resizer]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The network's optimizer and schedule for Lightning; the head's own is kept aside."""
        self.head_optimizer = self.head.make_optimizer()
        return self.optimization.configure(self)

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        """Steps the network, then the centers: Lightning sees one optimizer, and `global_step` keeps its meaning.

        A step that the fp16 gradient scaler skips does not move the centers either.
        """
        with StepWatch(optimizer) as watch:
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if self.head_optimizer is None:
            return
        if gradient_scaler(self.trainer) is None or watch.stepped:
            self.head_optimizer.step()
        else:
            self.head_optimizer.zero_grad()

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clips by the norm over the gradients of all identities, on whichever process they are."""
        by_norm = gradient_clip_algorithm in (None, "norm")
        if gradient_clip_val and by_norm and self.head.sharded and self.trainer.world_size > 1:
            sharding.clip_gradients(self.parameters(), self.head, gradient_clip_val)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds facelit's own entries: see `facelit.checkpoints.CHECKPOINT_KEY`."""
        own: dict[str, Any] = {"num_identities": self.head.num_identities}
        own |= {"calibration": self.calibration} if self.calibration else {}
        own |= {"drawn": True} if is_drawn(_training_set(trainer_of(self))) else {}
        self._random_state.save_into(own, self.device)
        self._pending_validation.save_into(own, self.trainer)
        if self.distillation is not None:
            self.distillation.save_into(own)
        self.weight_average.save_into(checkpoint, own)
        sharding.save_into(checkpoint, own, self.head, self.trainer)
        checkpoint[CHECKPOINT_KEY] = own

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes them back."""
        own = checkpoint.get(CHECKPOINT_KEY, {})
        self._random_state.resume_from(own)
        self.calibration = own.get("calibration", {})
        if self.head.sharded:
            sharding.shard_checkpoint(checkpoint, self.head, own.get("identity_places", ()))
        if self.distillation is not None:
            self.distillation.resume_from(checkpoint["state_dict"], own)
        trainer = trainer_of(self)
        if trainer is not None and trainer.state.fn == "fit":
            self.weight_average.resume_from(checkpoint, own)
            self._pending_validation.resume_from(checkpoint, own)
            self.optimization.resume_from(checkpoint)

    def on_fit_start(self) -> None:
        """Has the teacher's embeddings ready; a signal still ends the run at once."""
        if self.distillation is not None:
            self.distillation.begin(self.trainer, self.device)

    def on_train_start(self) -> None:
        """Settles where a resumed run begins."""
        begin_next_epoch(self.trainer)
        if self._compiled is not None:
            self._compiled.check_accumulation(self.trainer.accumulate_grad_batches)


def _training_set(trainer: Any) -> Any:
    """The data module's; None without one."""
    return getattr(getattr(trainer, "datamodule", None), "train", None)
