"""Which images make up each batch: drawn anew each epoch from a seed, split over processes, resumable mid-epoch.

A *batch plan* (`ShuffleSampler`, `IdentityBalancedSampler`, `RandomTripletSampler`) lays out the global batches of an
epoch; `EpochSampler` hands each process its part of them. Every process draws the same plan, so the global batch of a
step is the same images on one process as on eight.
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
    """What a sampler asks the dataset for.

    `indices`: image numbers, int64 (batch,); `epoch`: the one they are drawn in; `global_size`: images of the batch over
    all processes, which share it out as `facelit.distributed.part_sizes` says.
    """

    indices: Indices
    epoch: int
    global_size: int


class BatchPlan(ABC):
    """How an epoch is cut into batches. Labels may be of any integer dtype."""

    @abstractmethod
    def num_batches(self, labels: Integers, world_size: int) -> int:
        """Batches per epoch; raises `FacelitError` where the data does not allow even one."""

    @abstractmethod
    def draw(self, labels: Integers, world_size: int, rng: np.random.Generator) -> Iterable[Integers]:
        """The global batches of one epoch, num_batches arrays of image numbers.

        The processes take contiguous parts of each, near-equal ones where the batch does not divide; no batch is smaller
        than world_size.
        """

    def order_options(self, world_size: int) -> dict[str, Any]:
        """What the order depends on beside seed and data, by name: a checkpoint keeps it, and a resumed run compares.

        By default the number of processes and every attribute that is a plain value; plans that know better say less.
        """
        plain = {name: value for name, value in vars(self).items() if isinstance(value, (bool, int, float, str))}
        return {"number of processes": world_size, **plain}


class ShuffleSampler(BatchPlan):
    """Every image exactly once per epoch, in random order.

    Where the images do not fill the last batch, it shares what is left with the one before, half and half, so that no
    batch is tiny; the cut depends on the size of the global batch alone, and so is one process's on many. (With a
    batch_size of 1 on several processes halves would leave some without an image: there the last batch holds up to two
    for each.)

    Args:
        batch_size: Images per process and batch.
        drop_last: Leave out the images that do not fill a batch, other ones in each epoch: all batches are of one size.
    """

    def __init__(self, batch_size: int = 128, drop_last: bool = False) -> None:
        _positive(batch_size=batch_size)
        self.batch_size = batch_size
        self.drop_last = drop_last

    def num_batches(self, labels: Integers, world_size: int) -> int:
        """Global batches that hold the images."""
        return len(self._sizes(len(labels), world_size))

    def draw(self, labels: Integers, world_size: int, rng: np.random.Generator) -> Iterator[Integers]:
        """A permutation, cut into batches."""
        order, start = shuffled(len(labels), rng), 0
        for size in self._sizes(len(labels), world_size):
            yield order[start : start + size]
            start += size

    def order_options(self, world_size: int) -> dict[str, Any]:
        """The size of the global batch: how processes share it does not matter, but for single images (see above)."""
        return {
            "global batch size": self.batch_size * world_size,
            "drop_last": self.drop_last,
            "batch_size above 1": self.batch_size > 1,
        }

    def _sizes(self, num_images: int, world_size: int) -> list[int]:
        """Images of each global batch."""
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
    """P identities x K images in each process's batch, for mining triplets inside the batch.

    The identities of a global batch are distinct. An identity with more than K images comes back in later batches of the
    epoch, so that each image is drawn about once; one whose images are not a multiple of K repeats some. Identities with
    a single image have no positive and are left out.

    Args:
        identities_per_batch: P, identities per process and batch.
        images_per_identity: K, images of each of them.
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
        """As many as hold the usable images once: fixed, so that every epoch is equally long."""
        return self._num_batches(images_per_identity(labels), world_size)

    def _num_batches(self, counts: Indices, world_size: int) -> int:
        per_batch = self.identities_per_batch * world_size
        usable = int((counts >= 2).sum())
        if per_batch > usable or self.images_per_identity > counts.max(initial=0):
            raise FacelitError(
                f"P x K = {self.identities_per_batch} identities x {self.images_per_identity} images on {world_size}"
                f" process(es) is more than the data allows: {usable} identities have two images or more, the largest has"
                f" {counts.max(initial=0)}. Lower identities_per_batch or images_per_identity of data.sampler."
            )
        groups = -(-counts[counts >= 2] // self.images_per_identity)
        return max(1, int(groups.sum()) // per_batch)

    def draw(self, labels: Integers, world_size: int, rng: np.random.Generator) -> Integers:
        """Groups of K images of one identity, at random places of the epoch, cut into batches.

        The groups of an identity are spread evenly: number k of n falls into the k-th n-th of the epoch. Where two of them
        meet in a batch all the same, one changes places with a group of another batch.

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
        """How many groups an epoch draws of each identity: as many as hold its images, but at most one for each batch.

        The last few groups that fill no batch are left out, at random. Where identities with more images than batches leave
        gaps, others are drawn more often.
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
        """The images of groups: number k of an identity has its next K after those of number k - 1, round and round."""
        order = shuffled_by_identity(labels, rng)
        first, size = (np.cumsum(counts) - counts)[identities], counts[identities]
        images = np.empty((*numbers.shape, self.images_per_identity), order.dtype)
        for place in range(self.images_per_identity):
            images[..., place] = order[first + (numbers * self.images_per_identity + place) % size]
        return images.reshape(len(numbers), -1)


class RandomTripletSampler(BatchPlan):
    """Triplets drawn at random before each epoch: the strategy of the script collection facelit replaces.

    A batch is laid out anchor, positive, negative, anchor, positive, negative, ...; use it with
    `TripletHead(mining="random")`. Every identity can be an anchor (with two images or more) or a negative.

    Args:
        n_triplets: Triplets per epoch, over all processes.
        triplets_per_batch: Triplets per process and batch, so three times as many images.
    """

    def __init__(self, n_triplets: int = 10_000, triplets_per_batch: int = 64) -> None:
        _positive(n_triplets=n_triplets, triplets_per_batch=triplets_per_batch)
        self.n_triplets = n_triplets
        self.triplets_per_batch = triplets_per_batch

    def num_batches(self, labels: Integers, world_size: int) -> int:
        """Whole batches that `n_triplets` fill."""
        counts = images_per_identity(labels)
        if (counts > 0).sum() < 2 or counts.max(initial=0) < 2:
            raise FacelitError(
                "triplets need two identities, one of them with two images; the training set has neither."
            )
        count = self.n_triplets // (self.triplets_per_batch * world_size)
        if count == 0:
            raise FacelitError(
                f"n_triplets {self.n_triplets} fill no batch of {self.triplets_per_batch} x {world_size} process(es)."
                " Raise n_triplets or lower triplets_per_batch of data.sampler."
            )
        return count

    def draw(self, labels: Integers, world_size: int, rng: np.random.Generator) -> Integers:
        """Anchor identity uniform among those with two images, then two distinct images of it, then an outsider."""
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
        """Triplets of an epoch, and of a batch over all processes."""
        return {"n_triplets": self.n_triplets, "triplets per global batch": self.triplets_per_batch * world_size}


class EpochSampler(DistributedSampler[BatchRequest]):
    """Yields this process's part of each global batch of an epoch.

    It is a `DistributedSampler` because Lightning then leaves it in place under DDP and calls `set_epoch` on it.

    Args:
        plan: How an epoch is cut into batches.
        labels: Identity number of each image, any integer dtype, shape (num_images,); they are not copied.
        num_replicas: Number of processes.
        rank: This process.
        seed: The order is a function of seed and epoch alone.
    """

    def __init__(self, plan: BatchPlan, labels: Integers, num_replicas: int, rank: int, seed: int) -> None:
        super().__init__(_Labels(labels), num_replicas=num_replicas, rank=rank, seed=seed)
        self.plan = plan
        self.labels = labels
        self.start_batch = 0
        self._length = plan.num_batches(labels, num_replicas)

    def resume(self, epoch: int, batches_done: int) -> None:
        """Continues `epoch` after its first `batches_done` batches (after all of them: with the next epoch)."""
        finished = batches_done >= self._length
        self.epoch = epoch + 1 if finished else epoch
        self.start_batch = 0 if finished else batches_done

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch; another epoch than the resumed one starts from its first batch."""
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
        """Batches of a whole epoch: Lightning counts the ones before a resumed run's start as done."""
        return self._length


class _Labels(Dataset[int]):
    """What `DistributedSampler` wants to know the length of."""

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
