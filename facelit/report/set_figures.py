"""What a page says about one checkpoint on one verification set: figures with intervals, and counts at every threshold."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from facelit.verification.all_pairs import Curve, carried
from facelit.verification.intervals import Rate, rate_with_interval
from facelit.verification.protocol import Booleans, Counts, Floats, VerificationResult
from facelit.verification.scored_pairs import ScoredPairs

TARGET_FARS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
STEPS_PER_UNIT = 10_000
"""Thresholds on the page move in steps of 1e-4."""


class TarPoint(NamedTuple):
    """The largest TAR whose FAR is at most the target, by threshold; `accepted` impostor pairs stand behind it."""

    target: float
    threshold: float
    tar: Rate
    accepted: int


class AcceptedCounts(NamedTuple):
    """Pairs with `score >= threshold`: float64 (M,) rising, int64 (M,), int64 (M,).

    At any other multiple of 1e-4 the counts are those of the next higher threshold in the list, or 0 above the last.
    """

    thresholds: Floats
    genuine: Counts
    impostor: Counts


@dataclass(frozen=True)
class SetFigures:
    """One checkpoint's figures on one set.

    The intervals are `rate_with_interval`'s over the folds, each of which is left out once: folds share no people, pairs inside one may.

    Args:
        pairs: The scores.
    """

    pairs: ScoredPairs

    @cached_property
    def scores(self) -> Floats:
        """Cosine similarity of each pair, float64 (N,)."""
        return self.pairs.similarities.astype(np.float64)

    @cached_property
    def result(self) -> VerificationResult:
        """The figures of `evaluate_pairs`."""
        return self.pairs.evaluate()

    @cached_property
    def accuracy(self) -> Rate:
        """Mean of the folds' accuracies."""
        folds = self.result.fold_accuracies
        without = (folds.sum() - folds) / (len(folds) - 1)
        return self._rate(self.result.accuracy, without.tolist(), len(self.scores))

    @cached_property
    def eer(self) -> Rate:
        """Equal error rate."""
        without = [curve.equal_error_rate() for curve in self._without]
        return self._rate(self.result.eer, without, self.result.num_genuine)

    @cached_property
    def tar_points(self) -> list[TarPoint]:
        """TAR at FARs from 1e-1 down to the last that at least three impostor pairs stand behind."""
        curve, points = self._curve, []
        for target in TARGET_FARS:
            if carried(target, curve.num_impostor):
                edge = curve.edge_at(target)
                without = [one.tar(one.edge_at(target)) for one in self._without]
                threshold = float(self._distinct[edge]) if edge < len(self._distinct) else float("inf")
                tar = self._rate(curve.tar(edge), without, curve.num_genuine)
                points.append(TarPoint(target, threshold, tar, int(curve.accepted_impostor[edge])))
        return points

    @cached_property
    def presets(self) -> dict[str, float]:
        """Thresholds worth a button, by name, with no more decimals than they need; infinite ones, which accept nothing, are left out."""
        found = {"best accuracy": self.result.best_threshold, "EER": self.result.eer_threshold}
        found |= {f"FAR ≤ {far_text(point.target)}": point.threshold for point in self.tar_points}
        return {name: self._short(threshold) for name, threshold in found.items() if np.isfinite(threshold)}

    def _short(self, threshold: float) -> float:
        """The shortest decimal fraction that accepts the same pairs."""
        place = np.searchsorted(self._distinct, threshold)
        for digits in range(4, 10):
            shorter = float(np.floor(threshold * 10**digits) / 10**digits)
            if shorter <= threshold and np.searchsorted(self._distinct, shorter) == place:
                return shorter
        return threshold

    @cached_property
    def accepted(self) -> AcceptedCounts:
        """Counts from which the page's figures come: exact at multiples of 1e-4 and at the presets."""
        return accepted_counts(self.scores, self.pairs.genuine, list(self.presets.values()))

    @cached_property
    def _places(self) -> tuple[Floats, npt.NDArray[np.intp]]:
        return np.unique(self.scores, return_inverse=True)

    @property
    def _distinct(self) -> Floats:
        return self._places[0]

    @cached_property
    def _curve(self) -> Curve:
        return self._curve_of(np.ones(len(self.scores), np.bool_))

    @cached_property
    def _without(self) -> list[Curve]:
        """The curves without each fold that leaves both kinds of pairs."""
        folds = self.pairs.folds
        curves = [self._curve_of(folds != fold) for fold in np.unique(folds)]
        return [curve for curve in curves if curve.num_genuine and curve.num_impostor]

    def _curve_of(self, chosen: Booleans) -> Curve:
        place, width = self._places[1], len(self._distinct)
        genuine, impostor = chosen & self.pairs.genuine, chosen & ~self.pairs.genuine
        return Curve(np.bincount(place[genuine], minlength=width), np.bincount(place[impostor], minlength=width))

    def _rate(self, value: float, without: list[float], trials: int) -> Rate:
        return rate_with_interval(value, without, trials, trials)


def accepted_counts(scores: Floats, genuine: Booleans, also: list[float]) -> AcceptedCounts:
    """Counts accepted pairs at every multiple of 1e-4 where they change, and at further thresholds.

    Args:
        scores: float64 (N,), finite.
        genuine: bool (N,).
        also: Thresholds that are not multiples.
    """
    steps = np.floor(scores * STEPS_PER_UNIT)
    # A product is rounded: the highest multiple that is not above the score, as comparing says.
    steps += (steps + 1) / STEPS_PER_UNIT <= scores
    steps -= steps / STEPS_PER_UNIT > scores
    thresholds = np.union1d(steps / STEPS_PER_UNIT, also)
    rising = [np.sort(scores[kind]) for kind in (genuine, ~genuine)]
    counts = [len(one) - np.searchsorted(one, thresholds, side="left") for one in rising]
    return AcceptedCounts(thresholds, counts[0].astype(np.int64), counts[1].astype(np.int64))


def far_text(far: float) -> str:
    """0.001 as 1e-3."""
    return f"1e{round(np.log10(far))}"
