"""Embedding the crops of a set, identity by identity, and what can be said of an identity from its own embeddings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from facelit.check.scan import Scan
from facelit.storage.base import ImageStore
from facelit.storage.images import CROP_SIZE, Crop, decode_crop
from facelit.storage.processes import default_jobs
from facelit.storage.progress import progress_bar

Rows = npt.NDArray[np.int64]
Embeddings = npt.NDArray[np.float32]
"""One a row, L2-normalised, shape (N, D)."""
Embed = Callable[[npt.NDArray[np.uint8]], Embeddings]
"""From crops, uint8 RGB (N, 112, 112, 3), to their embeddings."""

OUTLIER = 0.30
"""Cosine to the mean of its identity below which a crop counts as somebody else's."""
NEAR_COPY = 0.985
"""Cosine above which two crops of one identity count as one picture."""

_DOUBTFUL, _BELOW_MEDIAN = 0.10, 0.30
_BATCH = 64
_BLOCK = 1_024
"""So many embeddings are compared with others at a time."""
_WORTH_A_BAR = 200


class Outlier(NamedTuple):
    """A crop that is far from the others of its identity: its row, its cosine to their mean, and their median cosine."""

    row: int
    score: float
    median: float


class NearCopy(NamedTuple):
    """A crop that is nearly another one, which comes before it and is kept: both rows, and their cosine."""

    row: int
    of: int
    score: float


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
    store: ImageStore, rows: Rows, embed: Embed, outlier: float = OUTLIER, near_copy: float = NEAR_COPY
) -> Faces:
    """Embeds a training set once; only one identity's embeddings are in memory at a time, besides the means.

    Args:
        store: The set.
        rows: Which of its images; see `usable_rows`.
        embed: The network.
        outlier: See `find_outliers`.
        near_copy: See `find_near_copies`.

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
        copies += [
            NearCopy(int(inner[at]), int(inner[of]), score)
            for at, of, score in find_near_copies(embeddings[~is_outlier], near_copy)
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

    def read(row: int) -> Crop:
        return decode_crop(store.encoded(row), lambda: store.place(row))

    with ThreadPoolExecutor(default_jobs()) as threads:
        batches = [rows[start : start + _BATCH].tolist() for start in range(0, len(rows), _BATCH)]
        ahead = [threads.submit(read, row) for row in batches[0]] if batches else []
        for number in range(len(batches)):
            waiting, ahead = (
                ahead,
                [threads.submit(read, row) for batch in batches[number + 1 : number + 2] for row in batch],
            )
            yield np.stack([future.result() for future in waiting])


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


def find_near_copies(embeddings: Embeddings, near_copy: float = NEAR_COPY) -> list[tuple[int, int, float]]:
    """Crops of an identity that are nearly one picture with one before them that is kept.

    Returns:
        For each its number, that of the most alike kept one, and their cosine; the first of several alike is kept.
    """
    is_kept = np.ones(len(embeddings), np.bool_)
    found: list[tuple[int, int, float]] = []
    for start in range(0, len(embeddings), _BLOCK):
        block = embeddings[start : start + _BLOCK]
        scores = block @ embeddings[: start + len(block)].T
        own = np.arange(start, start + len(block))
        scores[np.arange(scores.shape[1]) >= own[:, None]] = -1  # itself, and those that come later
        for at in np.flatnonzero((scores > near_copy).any(1)).tolist():
            candidates = np.where(is_kept[: start + at], scores[at, : start + at], -1)
            best = int(candidates.argmax())
            if candidates[best] > near_copy:
                is_kept[start + at] = False
                found.append((start + at, best, float(candidates[best])))
    return found
