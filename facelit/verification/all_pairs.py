"""All pairs of a set of people: millions of scores in blocks, kept as counts, with intervals from leaving people out.

Scores are counted in bins of 2^-17 (7.6e-6): thresholds are edges of bins, and what is accepted at an edge is counted, not estimated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from facelit.verification.intervals import Rate, rate_with_interval
from facelit.verification.protocol import MIN_IMPOSTORS

Counts = npt.NDArray[np.int64]
Embeddings = npt.NDArray[np.float32]

BINS = 2**18
"""Of cosine similarity from -1 to 1."""

NUM_GROUPS = 20
"""Of people, each of which is left out once."""

_TILE = 2048
"""Rows and columns of a block of scores: 16 MB of them, 32 MB of their bins."""


class PairCounts(NamedTuple):
    """How many pairs have a score in each bin, int64.

    `genuine` and `impostor` have shape (BINS,); `genuine_of` and `impostor_of` (groups, BINS) count the pairs that somebody of a group
    is in.
    """

    genuine: Counts
    impostor: Counts
    genuine_of: Counts
    impostor_of: Counts


class OperatingPoint(NamedTuple):
    """The lowest threshold whose FAR is at most the target. A pair is accepted where `score >= threshold`.

    `accepted` impostor pairs stand behind it. TAR's interval includes that the threshold was chosen on the same pairs; FAR's is of
    this threshold.
    """

    target: float
    threshold: float
    tar: Rate
    far: Rate
    accepted: int


def count_pairs(
    embeddings: Embeddings,
    people: npt.NDArray[np.integer[Any]],
    group_of: npt.NDArray[np.integer[Any]],
    show: Callable[[int], None] = lambda pairs: None,
) -> PairCounts:
    """Scores every pair of images.

    Args:
        embeddings: float32 (N, D), L2-normalised.
        people: Person of each image, integers from 0, (N,).
        group_of: Group of each person, integers from 0, (num_people,).
        show: Told how many pairs are done.
    """
    order = np.lexsort((people, group_of[people]))
    rows, groups = np.ascontiguousarray(embeddings[order]), group_of[people[order]]
    owner = np.cumsum(np.diff(people[order], prepend=people[order[0]]) != 0)  # rising: nobody is in two stretches
    num_groups = int(groups[-1]) + 1
    kinds = np.zeros((2, num_groups + 1, BINS), np.int64)  # impostor and genuine; the last row counts all
    done = 0
    blocks = list(_blocks(groups))
    for number, (top, bottom) in enumerate(blocks):
        for left, right in blocks[number:]:
            bins = bins_of(rows[top:bottom] @ rows[left:right].T)
            done += bins.size
            added = {num_groups, int(groups[top]), int(groups[left])}
            for kind, chosen in enumerate(_split(bins, owner[top:bottom], owner[left:right], top == left)):
                counts = np.bincount(chosen, minlength=BINS)
                for group in added:
                    kinds[kind, group] += counts
            show(done)
    return PairCounts(kinds[1, -1], kinds[0, -1], kinds[1, :-1], kinds[0, :-1])


def _blocks(groups: npt.NDArray[np.integer[Any]]) -> Iterator[tuple[int, int]]:
    """Stretches of rows within one group each."""
    edges = [0, *(np.flatnonzero(np.diff(groups)) + 1).tolist(), len(groups)]
    for start, stop in pairwise(edges):
        for top in range(start, stop, _TILE):
            yield top, min(top + _TILE, stop)


def bins_of(scores: Embeddings) -> Counts:
    """The bin of each cosine similarity, int64, of the same shape; `scores` is overwritten."""
    scores *= BINS / 2
    scores += BINS / 2
    bins = scores.astype(np.int64)
    return np.clip(bins, 0, BINS - 1, out=bins)


def _split(bins: Counts, above: Any, across: Any, diagonal: bool) -> tuple[Counts, Counts]:
    """Bins of impostor and of genuine pairs; on the diagonal each pair once, and no image with itself."""
    if across[0] > above[-1] or across[-1] < above[0]:  # nobody is in both
        return bins.ravel(), bins[:0, 0]
    same = above[:, None] == across
    if diagonal:
        once = np.triu(np.ones(bins.shape, np.bool_), 1)
        return bins[once & ~same], bins[once & same]
    return bins[~same], bins[same]


def threshold_of(edge: int) -> float:
    """The cosine similarity at the lower edge of a bin; just above 1 for the edge that accepts nothing."""
    return (2 * edge + 2 * (edge == BINS)) / BINS - 1


class Curve:
    """What is accepted at each edge of a bin.

    Args:
        genuine: Pairs by bin, int64 (BINS,).
        impostor: Likewise.
    """

    def __init__(self, genuine: Counts, impostor: Counts) -> None:
        self.accepted_genuine = _accepted(genuine)
        self.accepted_impostor = _accepted(impostor)

    @property
    def num_genuine(self) -> int:
        """Genuine pairs."""
        return int(self.accepted_genuine[0])

    @property
    def num_impostor(self) -> int:
        """Impostor pairs."""
        return int(self.accepted_impostor[0])

    def edge_at(self, far: float) -> int:
        """The lowest edge at which at most `far` of the impostor pairs are accepted."""
        allowed = math.floor(far * self.num_impostor + 1e-9)
        # Accepted counts fall from edge to edge.
        return int(np.searchsorted(-self.accepted_impostor, -allowed, side="left"))

    def tar(self, edge: int) -> float:
        """Share of genuine pairs that are accepted."""
        return float(self.accepted_genuine[edge] / self.num_genuine)

    def far(self, edge: int) -> float:
        """Share of impostor pairs that are accepted."""
        return float(self.accepted_impostor[edge] / self.num_impostor)

    def auc(self) -> float:
        """Area under the ROC curve; a genuine and an impostor pair in one bin count half."""
        far, tar = self.accepted_impostor / self.num_impostor, self.accepted_genuine / self.num_genuine
        return float(((far[:-1] - far[1:]) * (tar[:-1] + tar[1:])).sum() / 2)

    def equal_error_rate(self) -> float:
        """Where FAR and 1 - TAR meet, linear between edges."""
        far, frr = self.accepted_impostor / self.num_impostor, 1 - self.accepted_genuine / self.num_genuine
        after = int(np.flatnonzero(far >= frr)[-1])
        gap, next_gap = far[after] - frr[after], far[after + 1] - frr[after + 1]
        share = gap / (gap - next_gap)
        return float(far[after] + share * (far[after + 1] - far[after]))


def _accepted(counts: Counts) -> Counts:
    """At or above each edge, (BINS + 1,)."""
    return np.concatenate([np.cumsum(counts[::-1])[::-1], [0]])


def carried(far: float, num_impostor: int) -> bool:
    """Whether at least `MIN_IMPOSTORS` accepted pairs would stand behind a FAR."""
    return math.floor(far * num_impostor + 1e-9) >= MIN_IMPOSTORS


class AllPairs:
    """Figures over all pairs, with intervals.

    Args:
        counts: What `count_pairs` found.
        num_people: With a genuine pair: behind a rate of 0 or 1 there are as many independent trials, and no more.
    """

    def __init__(self, counts: PairCounts, num_people: int) -> None:
        self.curve = Curve(counts.genuine, counts.impostor)
        self.num_people = num_people
        self._without = [
            Curve(counts.genuine - genuine, counts.impostor - impostor)
            for genuine, impostor in zip(counts.genuine_of, counts.impostor_of, strict=True)
        ]
        # A group without which there is nothing left to compare says nothing of the spread.
        self._without = [one for one in self._without if one.num_genuine and one.num_impostor]

    def at_far(self, target: float) -> OperatingPoint:
        """The operating point of a FAR."""
        curve = self.curve
        edge = curve.edge_at(target)
        tars = [one.tar(one.edge_at(target)) for one in self._without]
        fars = [one.far(edge) for one in self._without]
        return OperatingPoint(
            target,
            threshold_of(edge),
            rate_with_interval(curve.tar(edge), tars, curve.num_genuine, self.num_people),
            rate_with_interval(curve.far(edge), fars, curve.num_impostor, self.num_people),
            int(curve.accepted_impostor[edge]),
        )

    def equal_error_rate(self) -> Rate:
        """EER."""
        rates = [one.equal_error_rate() for one in self._without]
        return rate_with_interval(self.curve.equal_error_rate(), rates, self.curve.num_genuine, self.num_people)
