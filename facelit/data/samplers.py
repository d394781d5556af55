"""Chooses the images of each batch: redrawn each epoch from a seed, split over processes, resumable mid-epoch.

A *batch plan* (`ShuffleSampler`, `IdentityBalancedSampler`, `RandomTripletSampler`) lays out the global batches of an
epoch; `EpochSampler` gives each process its part of them. Every process draws the same plan, so that a step's global batch
consists of the same images on one process as on eight.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import Dataset, DistributedSampler

from facelit.data.dealing import (
    Indices,
    Integers,
    images_per_identity,
    pick,
    separate_duplicates,
    shuffled,
    shuffled_by_identity,
)
from facelit.distributed import part_sizes
from facelit.errors import FacelitError

__all__ = [
    "BatchPlan",
    "BatchRequest",
    "EpochSampler",
    "IdentityBalancedSampler",
    "Indices",
    "Integers",
    "RandomTripletSampler",
    "ShuffleSampler",
]


class BatchRequest(NamedTuple):
    """A sampler's request to the dataset for a batch.

    `indices` are image numbers, int64 (batch,); `epoch` is the epoch in which they are drawn; `global_size` is the number of
    images in the batch over all processes, which `facelit.distributed.part_sizes` splits.
    """

    indices: Indices
    epoch: int
    global_size: int


class BatchPlan(ABC):
    """Divides an epoch into batches. Labels may be of any integer dtype."""

    @abstractmethod
    def num_batches(self, labels: Integers, world_size: int) -> int:
        """Batches per epoch.

        Raises:
            FacelitError: The data does not suffice for a single batch.
        """

    @abstractmethod
    def draw(self, labels: Integers, world_size: int, rng: np.random.Generator) -> Iterable[Integers]:
        """Draws the global batches of one epoch, num_batches arrays of image numbers.

        The processes take contiguous parts of each, as equal as possible; no batch is smaller than world_size.
        """

    def order_options(self, world_size: int) -> dict[str, Any]:
        """The settings, besides seed and data, that the order depends on; saved in checkpoints and compared when resuming.

        By default the number of processes and every attribute that is a plain value; subclasses may narrow it down.
        """
        plain = {name: value for name, value in vars(self).items() if isinstance(value, (bool, int, float, str))}
        return {"number of processes": world_size, **plain}


class ShuffleSampler(BatchPlan):
    """Every image exactly once per epoch, in random order.

    If the images do not fill the last batch, the last two batches share the remaining images equally, so that no batch is tiny.
    The division depends only on the size of the global batch, not on the number of processes. (With a batch_size of 1 on
    several processes, equal halves would leave some processes without an image: the last batch then holds up to two for each.)

    Args:
        batch_size: Images per process and batch.
        drop_last: Omit the images that do not fill a batch, different ones in each epoch: all batches have the same size.
    """

    def __init__(self, batch_size: int = 128, drop_last: bool = False) -> None:
        _positive(batch_size=batch_size)
        self.batch_size = batch_size
        self.drop_last = drop_last

    def num_batches(self, labels: Integers, world_size: int) -> int:
        """The number of global batches that hold all images."""
        return len(self._sizes(len(labels), world_size))

    def draw(self, labels: Integers, world_size: int, rng: np.random.Generator) -> Iterator[Integers]:
        """A permutation, cut into batches."""
        order, start = shuffled(len(labels), rng), 0
        for size in self._sizes(len(labels), world_size):
            yield order[start : start + size]
            start += size

    def order_options(self, world_size: int) -> dict[str, Any]:
        """The size of the global batch: its split over processes does not matter, except for single images (see above)."""
        return {
            "global batch size": self.batch_size * world_size,
            "drop_last": self.drop_last,
            "batch_size above 1": self.batch_size > 1,
        }

    def _sizes(self, num_images: int, world_size: int) -> list[int]:
        """The number of images in each global batch."""
        whole = self.batch_size * world_size
        count, left = divmod(num_images, whole)
        if count == 0:
            raise FacelitError(
                f"batch_size {self.batch_size} x {world_size} process(es) is larger than the training set of"
                f" {num_images} images: no batch could be filled. Lower --data.batch_size."
            )
        if left == 0 or self.drop_last:
            return [whole] * count
        rest = whole + left
        last = [rest - rest // 2, rest // 2] if self.batch_size > 1 else [rest]
        return [whole] * (count - 1) + last


class IdentityBalancedSampler(BatchPlan):
    """P identities x K images in each process's batch, for mining triplets within the batch.

    The identities in a global batch are distinct. An identity with more than K images returns in later batches of the epoch,
    so that each image is drawn about once; if its images are not a multiple of K, some repeat. Identities with a single image
    have no positive and are omitted.

    Args:
        identities_per_batch: P, identities per process and batch.
        images_per_identity: K, images of each of these identities.
    """

    def __init__(self, identities_per_batch: int = 32, images_per_identity: int = 4) -> None:
        _positive(identities_per_batch=identities_per_batch)
        if images_per_identity < 2:
            raise FacelitError(
                f"images_per_identity must be at least 2 to form a genuine pair, got {images_per_identity}."
            )
        self.identities_per_batch = identities_per_batch
        self.images_per_identity = images_per_identity

    def num_batches(self, labels: Integers, world_size: int) -> int:
        """Enough batches to hold the usable images once; a constant, so that all epochs are equally long."""
        return self._num_batches(images_per_identity(labels), world_size)

    def _num_batches(self, counts: Indices, world_size: int) -> int:
        per_batch = self.identities_per_batch * world_size
        usable = int((counts >= 2).sum())
        if per_batch > usable or self.images_per_identity > counts.max(initial=0):
            raise FacelitError(
                f"P x K = {self.identities_per_batch} identities x {self.images_per_identity} images on {world_size}"
                f" process(es) is more than the data allows: {usable} identities have at least two images, the largest has"
                f" {counts.max(initial=0)}. Lower identities_per_batch or images_per_identity of data.sampler."
            )
        groups = -(-counts[counts >= 2] // self.images_per_identity)
        return max(1, int(groups.sum()) // per_batch)

    def draw(self, labels: Integers, world_size: int, rng: np.random.Generator) -> Integers:
        """Draws groups of K images of one identity, at random places in the epoch, divided into batches.

        An identity's groups are spread evenly: the k-th of n falls into the k-th n-th of the epoch. If two of them still meet
        in a batch, one changes places with a group in another batch.

        Returns:
            Image numbers, (num_batches, world_size * P * K).
        """
        counts = images_per_identity(labels)
        num_batches = self._num_batches(counts, world_size)
        draws = self._draws(counts, num_batches, self.identities_per_batch * world_size, rng)
        identities = np.repeat(np.arange(len(counts), dtype=np.int32), draws)  # of each group
        numbers = np.arange(len(identities)) - np.repeat(np.cumsum(draws) - draws, draws)  # k of each group
        places = (numbers + rng.random(len(identities))) / draws[identities]
        groups = np.argsort(places, kind="stable").reshape(num_batches, -1)
        separate_duplicates(groups, identities, rng)
        return self._images(labels, counts, identities[groups], numbers[groups], rng)

    def order_options(self, world_size: int) -> dict[str, Any]:
        """P over all processes, and K."""
        return {
            "identities per global batch": self.identities_per_batch * world_size,
            "images_per_identity": self.images_per_identity,
        }

    def _draws(self, counts: Indices, num_batches: int, per_batch: int, rng: np.random.Generator) -> Indices:
        """The number of groups of each identity in an epoch: enough to hold its images, but at most one per batch.

        Surplus groups that do not fill a batch are dropped at random. If the limit of one per batch leaves gaps, other
        identities are drawn more often.
        """
        most = np.where(counts >= 2, num_batches, 0)
        draws = np.minimum(-(-counts // self.images_per_identity), most)
        surplus = int(draws.sum()) - num_batches * per_batch
        if surplus >= 0:
            return draws - pick(draws, surplus, rng)
        return draws + pick(most - draws, -surplus, rng)

    def _images(
        self, labels: Integers, counts: Indices, identities: Integers, numbers: Indices, rng: np.random.Generator
    ) -> Integers:
        """The images of groups: an identity's k-th group takes the K images after those of its previous group, cyclically."""
        order = shuffled_by_identity(labels, rng)
        first, size = (np.cumsum(counts) - counts)[identities], counts[identities]
        images = np.empty((*numbers.shape, self.images_per_identity), order.dtype)
        for place in range(self.images_per_identity):
            images[..., place] = order[first + (numbers * self.images_per_identity + place) % size]
        return images.reshape(len(numbers), -1)


class RandomTripletSampler(BatchPlan):
    """Triplets drawn at random before each epoch, as in the script collection that facelit replaces.

    A batch is laid out anchor, positive, negative, anchor, positive, negative, ...; use it with
    `TripletHead(mining="random")`. Every identity can be a negative and, with at least two images, an anchor.

    Args:
        n_triplets: Triplets per epoch, over all processes.
        triplets_per_batch: Triplets per process and batch, with three images each.
    """

    def __init__(self, n_triplets: int = 10_000, triplets_per_batch: int = 64) -> None:
        _positive(n_triplets=n_triplets, triplets_per_batch=triplets_per_batch)
        self.n_triplets = n_triplets
        self.triplets_per_batch = triplets_per_batch

    def num_batches(self, labels: Integers, world_size: int) -> int:
        """The number of batches that `n_triplets` fill."""
        counts = images_per_identity(labels)
        if (counts > 0).sum() < 2 or counts.max(initial=0) < 2:
            raise FacelitError(
                "triplets need two identities, one of them with two images, which the training set does not have."
            )
        count = self.n_triplets // (self.triplets_per_batch * world_size)
        if count == 0:
            raise FacelitError(
                f"n_triplets {self.n_triplets} fill no batch of {self.triplets_per_batch} x {world_size} process(es)."
                " Raise n_triplets or lower triplets_per_batch of data.sampler."
            )
        return count

    def draw(self, labels: Integers, world_size: int, rng: np.random.Generator) -> Integers:
        """Draws an anchor identity uniformly from those with two images, then two of its images, then a negative."""
        total = self.num_batches(labels, world_size) * self.triplets_per_batch * world_size
        order = np.argsort(labels, kind="stable")
        counts = images_per_identity(labels)
        starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
        anchors = rng.choice(np.flatnonzero(counts >= 2), size=total)
        first = rng.integers(counts[anchors])
        second = (first + 1 + rng.integers(counts[anchors] - 1)) % counts[anchors]
        others = np.flatnonzero(counts)
        # A shift by 1..n-1 in the list of identities never lands on the anchor's own.
        negatives = others[
            (np.searchsorted(others, anchors) + 1 + rng.integers(len(others) - 1, size=total)) % len(others)
        ]
        third = rng.integers(counts[negatives])
        triplets = np.stack(
            [
                order[starts[anchors] + first],
                order[starts[anchors] + second],
                order[starts[negatives] + third],
            ],
            axis=1,
        )
        return triplets.reshape(-1, 3 * self.triplets_per_batch * world_size)

    def order_options(self, world_size: int) -> dict[str, Any]:
        """Triplets per epoch, and per global batch."""
        return {"n_triplets": self.n_triplets, "triplets per global batch": self.triplets_per_batch * world_size}


class EpochSampler(DistributedSampler[BatchRequest]):
    """Yields this process's part of each global batch of an epoch.

    It is a `DistributedSampler` so that Lightning keeps it under DDP and calls `set_epoch` on it.

    Args:
        plan: Divides an epoch into batches.
        labels: The identity number of each image, any integer dtype, shape (num_images,); not copied.
        num_replicas: The number of processes.
        rank: This process's rank.
        seed: The random seed; the order depends only on seed and epoch.
    """

    def __init__(self, plan: BatchPlan, labels: Integers, num_replicas: int, rank: int, seed: int) -> None:
        super().__init__(_Labels(labels), num_replicas=num_replicas, rank=rank, seed=seed)
        self.plan = plan
        self.labels = labels
        self.start_batch = 0
        self._length = plan.num_batches(labels, num_replicas)

    def resume(self, epoch: int, batches_done: int) -> None:
        """Continues `epoch` after its first `batches_done` batches, or with the next epoch after all of them."""
        finished = batches_done >= self._length
        self.epoch = epoch + 1 if finished else epoch
        self.start_batch = 0 if finished else batches_done

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch; any epoch but the resumed one starts from its first batch."""
        if epoch != self.epoch:
            self.start_batch = 0
        super().set_epoch(epoch)

    def __iter__(self) -> Iterator[BatchRequest]:
        """This process's share of each remaining batch."""
        rng = np.random.default_rng([self.seed, self.epoch])
        for batch in islice(self.plan.draw(self.labels, self.num_replicas, rng), self.start_batch, None):
            parts = part_sizes(len(batch), self.num_replicas)
            start = sum(parts[: self.rank])
            own = batch[start : start + parts[self.rank]]
            yield BatchRequest(own.astype(np.int64), self.epoch, len(batch))

    def __len__(self) -> int:
        """Batches in a whole epoch: Lightning counts those before a resumed run's start as done."""
        return self._length


class _Labels(Dataset[int]):
    """A dataset whose length `DistributedSampler` asks for."""

    def __init__(self, labels: Integers) -> None:
        self.labels = labels

    def __getitem__(self, index: int) -> int:
        return int(self.labels[index])

    def __len__(self) -> int:
        return len(self.labels)


def _positive(**options: int) -> None:
    for name, value in options.items():
        if value < 1:
            raise FacelitError(f"{name} must be at least 1, got {value}.")
