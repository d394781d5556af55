"""Resumes in the middle of an epoch, after checking that its batches still come in the same order."""

from __future__ import annotations

import hashlib
from functools import cached_property
from typing import Any

from pytorch_lightning import Trainer
from pytorch_lightning.utilities.rank_zero import rank_zero_info
from torch.utils.data import DataLoader

from facelit.data.batches import TrainBatch, TrainImages
from facelit.data.identity_folder import IdentityFolder
from facelit.data.samplers import EpochSampler
from facelit.data.sources import IdentitySource
from facelit.errors import FacelitError
from facelit.lightning import (
    batches_in_epoch,
    finish_epoch,
    forget_finished_epoch,
    forget_validation,
    place_in_run,
    validation_pending,
)
from facelit.storage.packed import PackedStore


def begin_at_epoch(sampler: EpochSampler, trainer: Trainer) -> None:
    """Tells a new sampler which epoch comes next; to be called when the loader is made, before workers read ahead.

    Lightning does so only afterwards, and restores a loader's state only in the middle of an epoch.
    """
    sampler.set_epoch(place_in_run(trainer).epochs_finished)
    forget_finished_epoch(trainer)


class TrainLoader(DataLoader[TrainBatch]):
    """A loader of whole batches that saves its position in the epoch in checkpoints.

    The sampler yields requests for whole batches and the dataset stacks them: `batch_size` is None. Lightning saves and
    restores any loader that has `state_dict` and `load_state_dict`.
    """

    trainer: Trainer | None = None

    def state_dict(self) -> dict[str, Any]:
        """The epoch, the number of its batches begun and in all, and the settings that their order depends on.

        Batches count as begun by the trainer, as workers may have read ahead.
        """
        if self.trainer is None:
            return {}
        return {
            "epoch": self.trainer.current_epoch,
            "batches_done": place_in_run(self.trainer).batches_begun,
            "batches": int(min(len(self), self.trainer.num_training_batches)),
            "order": self._order,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues after the last batch before the checkpoint.

        Raises:
            FacelitError: The checkpoint is from the middle of an epoch, whose batches now come in a different order.
        """
        if not state_dict or not isinstance(self.sampler, EpochSampler):
            return
        epoch, done = state_dict["epoch"], state_dict["batches_done"]
        batches = state_dict.get("batches", len(self))  # older checkpoints have neither this nor the order
        changed = differences(self._order, state_dict["order"]) if "order" in state_dict else ""
        if changed and 0 < done < batches:
            checkpoint = getattr(self.trainer, "ckpt_path", None) or "FILE"
            raise FacelitError(
                f"the checkpoint was saved after {done:,} of the {batches:,} batches of its epoch, and their order has"
                f" changed: {changed}. Resume with the same settings, or from the end of an epoch, or start a new run from"
                f" its backbone (--model.init_backbone {checkpoint}, without --ckpt_path)."
            )
        if changed:
            rank_zero_info(f"The order of batches changes from the next epoch on: {changed}.")
        if done < batches:
            self.sampler.resume(epoch, done)
        else:
            self.sampler.resume(epoch + 1, 0)
            if self.trainer is not None:
                self._end_epoch(self.trainer, batches)

    def _end_epoch(self, trainer: Trainer, batches: int) -> None:
        """The epoch is over, but for a validation that was due at its end."""
        if validation_pending(trainer):
            if batches == batches_in_epoch(trainer):
                return
            rank_zero_info("The validation that was due is left out: the epochs have another length now.")
            forget_validation(trainer)
        finish_epoch(trainer)

    @cached_property
    def _order(self) -> dict[str, Any]:
        assert isinstance(self.sampler, EpochSampler) and isinstance(self.dataset, TrainImages)  # noqa: PT018  # for mypy
        return order_of(self.sampler, self.dataset.reader.source)


def order_of(sampler: EpochSampler, source: IdentitySource) -> dict[str, Any]:
    """The settings that determine the images of each batch: plain values, by their names in messages."""
    return {
        "seed": sampler.seed,
        "sampler": type(sampler.plan).__name__,
        **sampler.plan.order_options(sampler.num_replicas),
        "training set": f"of {len(source):,} images ({fingerprint(source)[:12]})",
    }


def differences(now: dict[str, Any], then: dict[str, Any]) -> str:
    """The entries that differ, in words; entries found on only one side are ignored."""
    changed = [name for name in now if name in then and now[name] != then[name]]
    return ", ".join(f"{name} {now[name]} instead of {then[name]}" for name in changed)


def fingerprint(source: IdentitySource) -> str:
    """A hash of a source's labels and identities, and of a folder's file list.

    A pack has the hash of its source: it holds the same images in the same order.
    """
    digest = hashlib.blake2b(len(source).to_bytes(8, "little"), digest_size=16)
    for start in range(0, len(source), 2**20):
        digest.update(source.labels[start : start + 2**20].astype("<i8").tobytes())
    for identity in source.identities:
        digest.update(identity.encode("utf-8", "surrogateescape") + b"\0")
    if isinstance(source, IdentityFolder):
        store = source.store
        digest.update((store.manifest.source if isinstance(store, PackedStore) else store.fingerprint()).encode())
        if source.excludes_images:
            digest.update(source.rows.astype("<i8").tobytes())
    return digest.hexdigest()
