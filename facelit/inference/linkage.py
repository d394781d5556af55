"""Average linkage on cosine similarity, in blocks: the groups of scikit-learn's agglomerative clustering without an n x n table."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Embeddings = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]

_SCORES = 1 << 24
"""The number of similarities held in memory at a time."""


def link_faces(
    embeddings: Embeddings, cut: float, known: Indices, show: Callable[[int], None] = lambda merged: None
) -> Indices:
    """Joins faces into groups, the most similar groups first, while the mean similarity of two groups' faces is at least `cut`.

    The mean over all pairs of two groups is the dot product of their mean vectors, so groups are kept as vectors. In each round
    all pairs of groups that are nearest to each other are joined, which for average linkage yields the same groups as joining one
    pair at a time. Sumengen et al.: Scaling Hierarchical Agglomerative Clustering to Billion-sized Datasets, arXiv 2105.11653.

    Args:
        embeddings: float32 (N, D), L2-normalised.
        cut: The lowest mean cosine similarity at which groups are joined.
        known: The group of each face, from 1, or 0 for faces without one, int64 (N,). Known groups are not joined to each other.
        show: Called with the number of faces joined so far.

    Returns:
        The group of each face, int64 (N,): known groups keep their numbers; the others get the following numbers, in the order
        of their first face.
    """
    first_new = int(known.max(initial=0)) + 1
    starts = known.copy()
    starts[known == 0] = first_new + np.arange((known == 0).sum())
    names, member_of = np.unique(starts, return_inverse=True)
    sizes = np.bincount(member_of).astype(np.float64)
    sums = np.zeros((len(names), embeddings.shape[1]))
    np.add.at(sums, member_of, embeddings)
    means = (sums / sizes[:, None]).astype(np.float32)
    is_known = names < first_new
    parent = np.arange(len(names))
    active, stale = np.arange(len(names)), np.arange(len(names))
    nearest, score = np.full(len(names), -1), np.full(len(names), -np.inf, np.float32)
    while len(active) > 1:
        _find_nearest(stale, active, means, is_known, nearest, score)
        # A join never brings a third group closer: a group without a near enough neighbour is finished.
        active = active[score[active] >= cut]
        mutual = active[(nearest[nearest[active]] == active) & (active < nearest[active])]
        if not len(mutual):
            if not len(active):
                break
            mutual = active[[int(np.argmax(score[active]))]]  # rounding made a cycle of equals
        others = nearest[mutual]
        keep, drop = np.where(is_known[others], others, mutual), np.where(is_known[others], mutual, others)
        total = sizes[keep] + sizes[drop]
        shares = ((sizes[keep] / total)[:, None], (sizes[drop] / total)[:, None])
        means[keep] = (shares[0] * means[keep] + shares[1] * means[drop]).astype(np.float32)
        sizes[keep] = total
        parent[drop] = keep
        is_gone = np.zeros(len(names), np.bool_)
        is_gone[drop] = True
        active = active[~is_gone[active]]
        changed = is_gone.copy()
        changed[keep] = True
        stale = active[changed[active] | changed[nearest[active]]]
        show(len(names) - len(active))
    while (above := parent[parent]).tolist() != parent.tolist():
        parent = above
    return _numbered(names[parent][member_of], first_new)


def _find_nearest(
    stale: Indices,
    active: Indices,
    means: Embeddings,
    is_known: npt.NDArray[np.bool_],
    nearest: Indices,
    score: Embeddings,
) -> None:
    """Finds the most similar other group of each in `stale`, and its similarity; two known groups never match."""
    others, known_columns = means[active], is_known[active]
    step = max(1, _SCORES // len(active))
    for start in range(0, len(stale), step):
        rows = stale[start : start + step]
        alike = means[rows] @ others.T
        alike[rows[:, None] == active] = -np.inf
        alike[np.ix_(is_known[rows], known_columns)] = -np.inf
        best = np.argmax(alike, axis=1)
        nearest[rows], score[rows] = active[best], alike[np.arange(len(rows)), best]


def _numbered(groups: Indices, first_new: int) -> Indices:
    """Numbers new groups from `first_new`, in the order of their first face."""
    found, first, member_of = np.unique(groups, return_index=True, return_inverse=True)
    is_new = found >= first_new
    numbers = found.copy()
    numbers[np.flatnonzero(is_new)[np.argsort(first[is_new])]] = first_new + np.arange(is_new.sum())
    return numbers[member_of]
