"""The loss of a training step, and what it logs."""

from __future__ import annotations

from functools import partial

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from facelit.data.batches import TrainBatch
from facelit.distributed import global_batch
from facelit.errors import FacelitError
from facelit.heads import Head, HeadOutput
from facelit.heads.base import metrics_wanted
from facelit.lightning import ends_step, logs_step
from facelit.speed.scalars import fetch_scalars


def wants_figures(trainer: Trainer, batch_idx: int) -> bool:
    """Whether the step that ends with this batch is logged: every `log_every_n_steps`, and the very first.

    Of the batches accumulated for a step, the last one's figures count.
    """
    if not ends_step(trainer, batch_idx):
        return False
    return bool(trainer.fast_dev_run or trainer.global_step == 0 or logs_step(trainer, trainer.global_step + 1))


def apply_head(head: Head, embeddings: Tensor, crops: TrainBatch, logged: bool) -> HeadOutput:
    """What the head makes of a batch's embeddings (N, D), with its metrics if they are logged.

    Raises:
        FacelitError: The embeddings' width or a label does not fit the head.
    """
    with global_batch(crops.global_size), metrics_wanted(logged):
        try:
            output: HeadOutput = head(embeddings, crops.labels)
        except ValueError as error:  # of a backbone or data of one's own
            if not type(head).__module__.startswith("facelit."):
                raise  # the author of a head of one's own wants to see the line
            raise FacelitError(f"model.head {type(head).__name__}: {error}") from error
    return output


def log_figures(module: LightningModule, head: Head, output: HeadOutput, batch_size: int) -> None:
    """Logs the loss, the head's metrics and the learning rate, averaged over the processes; warns of what they show."""
    trainer = module.trainer
    average = partial(trainer.strategy.reduce, reduce_op="mean") if trainer.world_size > 1 else None
    loss, *values = fetch_scalars({"loss": output.loss, **output.metrics}, average).values()
    figures = dict(zip(output.metrics, values, strict=True))
    train = {"train/loss": loss} | {f"train/{name}": value for name, value in figures.items()}
    module.log_dict(train, batch_size=batch_size)
    module.log("loss", loss, prog_bar=True, logger=False, batch_size=batch_size)
    rate = torch.tensor(float(trainer.optimizers[0].param_groups[0]["lr"]))  # Lightning would copy a number to the GPU
    module.log("lr", rate, batch_size=batch_size)
    _warn_of_trouble(trainer, head, figures)


def _warn_of_trouble(trainer: Trainer, head: Head, figures: dict[str, Tensor]) -> None:
    warning = head.diagnose({name: float(value) for name, value in figures.items()})
    if warning is not None:
        rank_zero_warn(f"step {trainer.global_step}: {warning}", category=UserWarning)
