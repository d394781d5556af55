"""Whether the better of two networks is better: McNemar's test on the pairs that only one of them judges right."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from facelit.errors import FacelitError
from facelit.verification.scored_pairs import ScoredPairs

EXACT_BELOW = 1000
"""Discordant pairs up to which the binomial distribution is summed; beyond, the normal one is as good as it."""

SIGNIFICANT = 0.05


class PairedTest(NamedTuple):
    """McNemar's test of two networks, a and b.

    Attributes:
        only_a: Pairs that a alone judges right.
        only_b: Pairs that b alone judges right.
        pairs: All pairs.
        p_value: Probability of a difference at least as large, in either direction, if neither network were better.
        exact: Whether it is the binomial distribution's; otherwise the normal approximation's, with continuity correction.
    """

    only_a: int
    only_b: int
    pairs: int
    p_value: float
    exact: bool

    @property
    def difference(self) -> float:
        """Accuracy of a minus that of b, over all pairs."""
        return (self.only_a - self.only_b) / self.pairs

    @property
    def significant(self) -> bool:
        """Whether the difference is more than chance, at 5 %."""
        return self.p_value < SIGNIFICANT

    def sentence(self, a: str, b: str) -> str:
        """Which network is better, and whether that is more than chance.

        Args:
            a: Name of the first network.
            b: Name of the second.
        """
        counts = (
            f"alone right: {a} {self.only_a:,}, {b} {self.only_b:,} of {self.pairs:,} pairs; p = {self.p_value:.2g}"
        )
        if self.only_a == self.only_b:
            return f"{a} and {b} are equally good ({counts})"
        better, worse = (a, b) if self.only_a > self.only_b else (b, a)
        verdict = "more than chance" if self.significant else "which may be chance"
        return f"{better} is better than {worse}, {verdict} ({counts})"


def mcnemar(correct_a: Any, correct_b: Any) -> PairedTest:
    """McNemar's test: pairs that both networks judge right, or both wrong, say nothing; of the others, chance would give each half.

    Up to `EXACT_BELOW` such pairs, the two-sided p-value is the binomial distribution's; for more, that of the normal distribution with
    Edwards' continuity correction. Pairs count as independent. Where they share people or images, the test is too sure.

    McNemar: Note on the sampling error of the difference between correlated proportions or percentages, Psychometrika 12, 1947.
    Edwards: Note on the "correction for continuity" in testing the significance of the difference between correlated proportions,
    Psychometrika 13, 1948. Dietterich: Approximate statistical tests for comparing supervised classification learning algorithms,
    Neural Computation 10, 1998.

    Args:
        correct_a: Whether the first network judges each pair right, bool (N,).
        correct_b: Likewise, of the second network, on the same pairs.

    Raises:
        ValueError: The shapes differ, or there is no pair.
    """
    a, b = np.asarray(correct_a, np.bool_), np.asarray(correct_b, np.bool_)
    if a.ndim != 1 or a.shape != b.shape or not len(a):
        raise ValueError(f"both must have the same shape (N,), N > 0, not {a.shape} and {b.shape}")
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    exact = only_a + only_b <= EXACT_BELOW
    p_value = _binomial(only_a, only_b) if exact else _normal(only_a, only_b)
    return PairedTest(only_a, only_b, len(a), p_value, exact)


def _binomial(only_a: int, only_b: int) -> float:
    total = only_a + only_b
    tail = sum(math.comb(total, count) for count in range(min(only_a, only_b) + 1))
    return min(1.0, 2 * tail / 2**total)  # integers: one rounding


def _normal(only_a: int, only_b: int) -> float:
    deviation = max(0, abs(only_a - only_b) - 1) / math.sqrt(only_a + only_b)
    return math.erfc(deviation / math.sqrt(2))


def correct_decisions(pairs: ScoredPairs) -> npt.NDArray[np.bool_]:
    """Whether each pair is judged right with the threshold that is best on the other folds, bool (N,).

    Raises:
        FacelitError: All pairs are of one kind, or there is only one fold.
    """
    result = pairs.evaluate()
    fold = np.unique(pairs.folds, return_inverse=True)[1]
    accepted = pairs.similarities >= result.fold_thresholds[fold]
    return np.asarray(accepted == pairs.genuine, np.bool_)


def compare(a: ScoredPairs, b: ScoredPairs) -> PairedTest:
    """McNemar's test on the scores of two networks; each pair is judged with the threshold of the other folds.

    Raises:
        FacelitError: They are not scores of the same pairs.
    """
    parts = ("genuine", "folds", "first", "second")
    if any(not np.array_equal(getattr(a, part), getattr(b, part)) for part in parts):
        raise FacelitError(
            f"scores of {a.name}: the two networks were not measured on the same pairs, so they cannot be compared pair by pair."
            " Measure both again with the same sets: facelit suites A.ckpt B.ckpt ..."
        )
    return mcnemar(correct_decisions(a), correct_decisions(b))
