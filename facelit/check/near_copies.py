"""Crops of an identity that are nearly one picture: re-encoded, recoloured, shifted, mirrored."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]
Embeddings = npt.NDArray[np.float32]
"""One a row, L2-normalised, shape (N, D)."""
Crops = npt.NDArray[np.uint8]

SAME_FACE = 0.985
"""Cosine above which two crops of one identity count as one picture, whatever they look like."""
SAME_PICTURE = ((0.95, 0.90), (0.85, 0.97))
"""Pairs of limits, of the cosine of the embeddings and of the pictures' correlation; above both of a pair two crops count as one, too.
Compression alone lowers the cosine to 0.9, where other photos of the same day are; it does not change what the picture shows."""

_SIDE, _BLOCK = 28, 1_024


class NearCopy(NamedTuple):
    """A crop that is nearly another one, which comes before it and is kept.

    Attributes:
        row: Of the crop.
        of: Of the other one.
        score: Their cosine.
        correlation: Of the two pictures, or of one with the other's mirror image; 0 where it was not looked at.
    """

    row: int
    of: int
    score: float
    correlation: float


def find_near_copies(
    embeddings: Embeddings, read: Callable[[Rows], Crops], near_copy: float | None = None
) -> list[NearCopy]:
    """Crops of an identity that are nearly one picture with one before them that is kept.

    Args:
        embeddings: L2-normalised, shape (N, D).
        read: Reads crops by their numbers, uint8 RGB (n, 112, 112, 3). Called only for those with another one that is like enough.
        near_copy: Compare cosines alone, with this limit, instead of `SAME_FACE` and `SAME_PICTURE`.

    Returns:
        The crop's number, that of the most alike kept one, and how alike they are; the first of several alike is kept.
    """
    pictures = None if near_copy is not None else _pictures_of(embeddings, read)
    is_kept = np.ones(len(embeddings), np.bool_)
    found: list[NearCopy] = []
    for start in range(0, len(embeddings), _BLOCK):
        scores = _earlier(embeddings, start)
        shown = np.zeros_like(scores)
        is_copy = scores > (SAME_FACE if near_copy is None else near_copy)
        if pictures is not None:
            shown = np.maximum(_earlier(pictures, start), _earlier(pictures, start, _mirrored(pictures)))
            for cosine, correlation in SAME_PICTURE:
                is_copy |= (scores > cosine) & (shown > correlation)
        for at in np.flatnonzero(is_copy.any(1)).tolist():
            likeness = np.where(is_copy[at] & is_kept[: scores.shape[1]], scores[at], -1)
            best = int(likeness.argmax())
            if likeness[best] > -1:
                is_kept[start + at] = False
                found.append(NearCopy(start + at, best, float(likeness[best]), float(shown[at, best])))
    return found


def thumbnails(crops: Crops) -> Embeddings:
    """Small grey pictures, of which a product is the correlation: float32 (N, 784) of mean 0 and length 1, or zeros for a blank one."""
    grey = crops.astype(np.float32).mean(3).reshape(len(crops), _SIDE, crops.shape[1] // _SIDE, _SIDE, -1)
    flat = grey.mean((2, 4)).reshape(len(crops), -1)
    flat -= flat.mean(1, keepdims=True)
    lengths = np.linalg.norm(flat, axis=1, keepdims=True)
    made: Embeddings = np.where(lengths > 1e-3, flat / np.maximum(lengths, 1e-3), 0).astype(np.float32)
    return made


def _pictures_of(embeddings: Embeddings, read: Callable[[Rows], Crops]) -> Embeddings:
    """Thumbnails of the crops that are like another one; zeros for the others."""
    least = min(cosine for cosine, _ in SAME_PICTURE)
    is_alike = np.zeros(len(embeddings), np.bool_)
    for start in range(0, len(embeddings), _BLOCK):
        rows, columns = np.nonzero(_earlier(embeddings, start) > least)
        is_alike[start + rows] = is_alike[columns] = True
    alike = np.flatnonzero(is_alike)
    pictures = np.zeros((len(embeddings), _SIDE * _SIDE), np.float32)
    for start in range(0, len(alike), _BLOCK):
        some = alike[start : start + _BLOCK]
        pictures[some] = thumbnails(read(some))
    return pictures


def _mirrored(pictures: Embeddings) -> Embeddings:
    return pictures.reshape(-1, _SIDE, _SIDE)[:, :, ::-1].reshape(pictures.shape)


def _earlier(ones: Embeddings, start: int, others: Embeddings | None = None) -> npt.NDArray[np.float32]:
    """Products of a block of rows with all up to its end; -1 with itself and those that come later."""
    block = ones[start : start + _BLOCK]
    products: npt.NDArray[np.float32] = block @ (ones if others is None else others)[: start + len(block)].T
    products[np.arange(products.shape[1]) >= np.arange(start, start + len(block))[:, None]] = -1
    return products
