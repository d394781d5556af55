"""How long a run is in optimizer steps: what a schedule that ends with the run must know."""

from __future__ import annotations

from pytorch_lightning import Trainer

from facelit.data.datamodule import FaceDataModule, training_batches
from facelit.errors import FacelitError


def total_steps(trainer: Trainer) -> int:
    """Optimizer steps of the whole run: those made, and those that are left of it.

    A resumed run may have other epochs than before (another batch size, other processes, more images): ask again once its
    place is known, in `on_train_start`.

    Raises:
        FacelitError: Neither `max_epochs` nor `max_steps` is set.
    """
    data = getattr(trainer, "datamodule", None)
    if not isinstance(data, FaceDataModule):
        return int(trainer.estimated_stepping_batches)
    # Lightning's own estimate sets up the loader before a resumed run knows its place in the epoch.
    batches, accumulated = training_batches(trainer, data.batches_per_epoch), trainer.accumulate_grad_batches
    in_epoch = -(-batches // accumulated)
    fit_loop, max_epochs = trainer.fit_loop, trainer.max_epochs or 0
    epoch = fit_loop.epoch_progress.current
    steps = 0
    if max_epochs > 0:
        steps = trainer.global_step + max(0, max_epochs - epoch.processed) * in_epoch
        if epoch.ready > epoch.processed:  # an epoch has begun
            done = fit_loop.epoch_loop.batch_progress.current.ready
            steps -= in_epoch if done >= batches else done // accumulated
    limits = [int(limit) for limit in (steps, trainer.max_steps) if limit > 0]
    if not limits:
        raise FacelitError("the schedule must know how long the run is: set trainer.max_epochs or trainer.max_steps.")
    return min(limits)
