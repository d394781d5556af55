"""Boxes that overlap: several finds of one face."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]


def suppress(boxes: Floats, scores: Floats, most: float, of_smaller: bool = False) -> npt.NDArray[np.int64]:
    """Non-maximum suppression: the rows whose boxes overlap no better one by more than `most`, the best one first.

    Args:
        boxes: x1, y1, x2, y2, shape (n, 4).
        scores: Shape (n,).
        most: See `overlaps`.
        of_smaller: See `overlaps`.
    """
    order = np.argsort(-scores, kind="stable")
    kept = []
    while len(order):
        best, rest = order[0], order[1:]
        kept.append(best)
        order = rest[overlaps(boxes[best], boxes[rest], of_smaller) <= most]
    return np.array(kept, np.int64)


def overlaps(box: Floats, others: Floats, of_smaller: bool = False) -> Floats:
    """Intersection over union (or over the smaller area) of one box, (4,), with others, (n, 4): shape (n,)."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    shared = np.maximum(sides, 0).prod(axis=1)
    area, areas = (box[2:] - box[:2]).prod(), (others[:, 2:] - others[:, :2]).prod(axis=1)
    whole = np.minimum(area, areas) if of_smaller else area + areas - shared
    shares: Floats = shared / np.maximum(whole, 1e-9)
    return shares
