"""Embedding the crops of a set, identity by identity, and what can be said of an identity from its own embeddings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from facelit.check.near_copies import Embeddings, NearCopy, Rows, find_near_copies
from facelit.check.scan import Scan
from facelit.storage.base import ImageStore
from facelit.storage.images import CROP_SIZE, Crop, decode_crop
from facelit.storage.processes import default_jobs
from facelit.storage.progress import progress_bar

Embed = Callable[[npt.NDArray[np.uint8]], Embeddings]
"""From crops, uint8 RGB (N, 112, 112, 3), to their embeddings."""

OUTLIER = 0.30
"""Cosine to the mean of its identity below which a crop counts as somebody else's."""
_DOUBTFUL, _BELOW_MEDIAN = 0.10, 0.30
_BATCH = 64
_WORTH_A_BAR = 200


class Outlier(NamedTuple):
    """A crop that is far from the others of its identity: its row, its cosine to their mean, and their median cosine."""

    row: int
    score: float
    median: float


class Faces(NamedTuple):
    """What the embeddings of a training set say.

    Attributes:
        means: The mean of each identity's embeddings, normalised; zeros where it has no crop to embed; shape (num_identities, D).
        central: The row of the crop nearest to the mean, int64, shape (num_identities,); -1 where there is none.
        outliers: The worst first.
        near_copies: The most alike first.
    """

    means: Embeddings
    central: Rows
    outliers: list[Outlier]
    near_copies: list[NearCopy]


def usable_rows(scan: Scan, rows: Rows | None = None) -> Rows:
    """Which images are crops that can be embedded, of those that were scanned (all of a store where `rows` is not given)."""
    is_crop = (scan.facts["width"] == CROP_SIZE) & (scan.facts["height"] == CROP_SIZE)
    usable: Rows = np.flatnonzero(is_crop) if rows is None else rows[is_crop]
    return usable


def embed_faces(
    store: ImageStore, rows: Rows, embed: Embed, outlier: float = OUTLIER, near_copy: float | None = None
) -> Faces:
    """Embeds a training set once; only one identity's embeddings are in memory at a time, besides the means.

    Args:
        store: The set.
        rows: Which of its images; see `usable_rows`.
        embed: The network.
        outlier: See `find_outliers`.
        near_copy: See `facelit.check.near_copies.find_near_copies`.

    Raises:
        BadImageError: An image can no longer be read.
    """
    central = np.full(len(store.identities), -1, np.int64)
    means: dict[int, Embeddings] = {}
    outliers: list[Outlier] = []
    copies: list[NearCopy] = []
    for label, own, embeddings in embed_groups(store, rows, store.labels[rows], embed):
        mean, scores = mean_of(embeddings)
        means[label], central[label] = mean, own[scores.argmax()]
        is_outlier = find_outliers(scores, outlier)
        median = float(np.median(scores))
        outliers += [Outlier(int(own[at]), float(scores[at]), median) for at in np.flatnonzero(is_outlier)]
        inner = own[~is_outlier]
        read = partial(_read_some, store, inner)
        copies += [
            one._replace(row=int(inner[one.row]), of=int(inner[one.of]))
            for one in find_near_copies(embeddings[~is_outlier], read, near_copy)
        ]
    width = len(next(iter(means.values()))) if means else 0
    all_means = np.zeros((len(store.identities), width), np.float32)
    for label, mean in means.items():
        all_means[label] = mean
    outliers.sort(key=lambda one: one.score)
    copies.sort(key=lambda one: -one.score)
    return Faces(all_means, central, outliers, copies)


def embed_groups(
    store: ImageStore, rows: Rows, groups: npt.NDArray[np.integer], embed: Embed
) -> Iterator[tuple[int, Rows, Embeddings]]:
    """Embeds images, and yields them group by group: the group's number, its rows, their embeddings.

    Args:
        store: Where they lie.
        rows: Which ones.
        groups: The group of each, shape as `rows`.
        embed: The network.
    """
    order = np.argsort(groups, kind="stable")
    rows, groups = rows[order], groups[order]
    ends = iter([*(np.flatnonzero(np.diff(groups)) + 1).tolist(), len(rows)])
    waiting: list[Embeddings] = []
    begun, done, end = 0, 0, next(ends)
    with progress_bar(f"Embedding {store.path}", len(rows), _WORTH_A_BAR) as show:
        for crops in _read_batches(store, rows):
            waiting.append(embed(crops))
            done += len(crops)
            show(done)
            if done < end:
                continue
            embeddings = np.concatenate(waiting)
            first = done - len(embeddings)
            while begun < end <= done:
                yield int(groups[begun]), rows[begun:end], embeddings[begun - first : end - first]
                begun, end = end, next(ends, end)
            waiting = [embeddings[begun - first :]]


def _read_batches(store: ImageStore, rows: Rows) -> Iterator[npt.NDArray[np.uint8]]:
    """Crops, decoded by threads while the network is at work on those before."""
    with ThreadPoolExecutor(default_jobs()) as threads:
        batches = [rows[start : start + _BATCH].tolist() for start in range(0, len(rows), _BATCH)]
        ahead = [threads.submit(_read, store, row) for row in batches[0]] if batches else []
        for number in range(len(batches)):
            waiting, ahead = (
                ahead,
                [threads.submit(_read, store, row) for batch in batches[number + 1 : number + 2] for row in batch],
            )
            yield np.stack([future.result() for future in waiting])


def _read_some(store: ImageStore, rows: Rows, numbers: Rows) -> npt.NDArray[np.uint8]:
    return np.stack([_read(store, int(row)) for row in rows[numbers]])


def _read(store: ImageStore, row: int) -> Crop:
    return decode_crop(store.encoded(row), lambda: store.place(row))


def mean_of(embeddings: Embeddings) -> tuple[Embeddings, npt.NDArray[np.float32]]:
    """The normalised mean, shape (D,), and each embedding's cosine to it, shape (N,)."""
    total = embeddings.astype(np.float64).sum(0)
    mean: Embeddings = (total / max(float(np.linalg.norm(total)), 1e-12)).astype(np.float32)
    return mean, embeddings @ mean


def find_outliers(scores: npt.NDArray[np.float32], outlier: float = OUTLIER) -> npt.NDArray[np.bool_]:
    """Which crops of an identity are somebody else's, by their cosines to its mean.

    Below `outlier`; or below `outlier` + 0.10 and 0.30 below the identity's median. With few crops a stranger pulls the mean
    towards himself: among one or two none is ever an outlier, among three hardly any.

    Returns:
        bool, shape as `scores`.
    """
    is_doubtful = (scores < outlier + _DOUBTFUL) & (scores < np.median(scores) - _BELOW_MEDIAN)
    return np.asarray((scores < outlier) | is_doubtful)
