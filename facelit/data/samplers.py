"""Which images make up each batch: drawn anew each epoch from a seed, split over processes, resumable mid-epoch.

A *batch plan* (`ShuffleSampler`, `IdentityBalancedSampler`, `RandomTripletSampler`) lays out the global batches of an
epoch; `EpochSampler` hands each process its part of them. Every process draws the same plan, so the global batch of a
step is the same images on one process as on eight.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset, DistributedSampler

from facelit.errors import FacelitError

Indices = npt.NDArray[np.int64]


class BatchRequest(NamedTuple):
    """What a sampler asks the dataset for: image numbers, int64 (batch,), and the epoch they are drawn in."""

    indices: Indices
    epoch: int


class BatchPlan(ABC):
    """How an epoch is cut into batches."""

    @abstractmethod
    def num_batches(self, labels: Indices, world_size: int) -> int:
        """Batches per epoch; raises `FacelitError` where the data does not allow even one."""

    @abstractmethod
    def draw(self, labels: Indices, world_size: int, rng: np.random.Generator) -> Indices:
        """Image numbers of one epoch, int64, shape (num_batches, world_size * batch_size)."""


class ShuffleSampler(BatchPlan):
    """Every image once per epoch, in random order; an incomplete last batch is dropped.

    Args:
        batch_size: Images per process and batch.
    """

    def __init__(self, batch_size: int = 128) -> None:
        _positive(batch_size=batch_size)
        self.batch_size = batch_size

    def num_batches(self, labels: Indices, world_size: int) -> int:
        """Whole global batches that the images fill."""
        count = len(labels) // (self.batch_size * world_size)
        if count == 0:
            raise FacelitError(
                f"batch_size {self.batch_size} x {world_size} process(es) is larger than the training set of"
                f" {len(labels)} images: no batch could be filled. Lower --data.batch_size."
            )
        return count

    def draw(self, labels: Indices, world_size: int, rng: np.random.Generator) -> Indices:
        """A permutation, cut into rows."""
        count = self.num_batches(labels, world_size)
        order = rng.permutation(len(labels))
        return order[: count * self.batch_size * world_size].reshape(count, -1)


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

    def num_batches(self, labels: Indices, world_size: int) -> int:
        """As many as hold the usable images once: fixed, so that every epoch is equally long."""
        per_batch = self.identities_per_batch * world_size
        counts = np.bincount(labels)
        usable = int((counts >= 2).sum())
        if per_batch > usable or self.images_per_identity > counts.max(initial=0):
            raise FacelitError(
                f"P x K = {self.identities_per_batch} identities x {self.images_per_identity} images on {world_size}"
                f" process(es) is more than the data allows: {usable} identities have two images or more, the largest has"
                f" {counts.max(initial=0)}. Lower identities_per_batch or images_per_identity of data.sampler."
            )
        groups = -(-counts[counts >= 2] // self.images_per_identity)
        return max(1, int(groups.sum()) // per_batch)

    def draw(self, labels: Indices, world_size: int, rng: np.random.Generator) -> Indices:
        """Groups of K images of one identity, dealt to batches so that no identity is in a batch twice.

        Identities are drawn with the number of groups they have left as weight: the large ones are spread over the whole
        epoch, and only where too few identities are left are used-up ones drawn again.
        """
        count, per_batch = self.num_batches(labels, world_size), self.identities_per_batch * world_size
        groups = self._groups(labels, rng)
        weights = np.array([len(own) for own in groups], dtype=np.float64)
        batches = np.empty((count, per_batch * self.images_per_identity), dtype=np.int64)
        for batch in batches:
            # Efraimidis & Spirakis: the smallest Exp(1)/weight keys are a weighted sample without replacement.
            keys = rng.exponential(size=len(groups)) / np.maximum(weights, 1e-9)
            chosen = rng.permutation(np.argpartition(keys, per_batch - 1)[:per_batch])
            # An identity's last group stays, for the case that it must be drawn again.
            drawn = [
                groups[position].pop() if len(groups[position]) > 1 else groups[position][0] for position in chosen
            ]
            weights[chosen] -= 1
            batch[:] = np.concatenate(drawn)
        return batches

    def _groups(self, labels: Indices, rng: np.random.Generator) -> list[list[Indices]]:
        """Each usable identity's images, shuffled and cut into groups of K, the last one filled up from the first."""
        shuffled = rng.permutation(len(labels))
        order = shuffled[np.argsort(labels[shuffled], kind="stable")]
        size = self.images_per_identity
        own_images = np.split(order, np.cumsum(np.bincount(labels))[:-1])
        padded = [np.resize(images, -(-len(images) // size) * size) for images in own_images if len(images) >= 2]
        return [list(images.reshape(-1, size)) for images in padded]


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

    def num_batches(self, labels: Indices, world_size: int) -> int:
        """Whole batches that `n_triplets` fill."""
        counts = np.bincount(labels)
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

    def draw(self, labels: Indices, world_size: int, rng: np.random.Generator) -> Indices:
        """Anchor identity uniform among those with two images, then two distinct images of it, then an outsider."""
        total = self.num_batches(labels, world_size) * self.triplets_per_batch * world_size
        order = np.argsort(labels, kind="stable")
        counts = np.bincount(labels)
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


class EpochSampler(DistributedSampler[BatchRequest]):
    """Yields this process's part of each global batch of an epoch.

    It is a `DistributedSampler` because Lightning then leaves it in place under DDP and calls `set_epoch` on it.

    Args:
        plan: How an epoch is cut into batches.
        labels: Identity number of each image, int64, shape (num_images,).
        num_replicas: Number of processes.
        rank: This process.
        seed: The order is a function of seed and epoch alone.
    """

    def __init__(self, plan: BatchPlan, labels: Indices, num_replicas: int, rank: int, seed: int) -> None:
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
        batches = self.plan.draw(self.labels, self.num_replicas, rng)
        share = batches.shape[1] // self.num_replicas
        for batch in batches[self.start_batch :]:
            yield BatchRequest(batch[self.rank * share : (self.rank + 1) * share], self.epoch)

    def __len__(self) -> int:
        """Batches of a whole epoch: Lightning counts the ones before a resumed run's start as done."""
        return self._length


class _Labels(Dataset[int]):
    """What `DistributedSampler` wants to know the length of."""

    def __init__(self, labels: Indices) -> None:
        self.labels = labels

    def __getitem__(self, index: int) -> int:
        return int(self.labels[index])

    def __len__(self) -> int:
        return len(self.labels)


def _positive(**options: int) -> None:
    for name, value in options.items():
        if value < 1:
            raise FacelitError(f"{name} must be at least 1, got {value}.")
