"""Figures of a set: against literal counts, and the thinning of curves."""

from __future__ import annotations

import numpy as np
import pytest

from facelit.report.charts import thinned
from facelit.report.set_figures import STEPS_PER_UNIT, SetFigures, accepted_counts
from simulated_scores import simulated


def test_counts_at_every_step_are_those_of_comparing() -> None:
    """Scores on, just below and just above multiples of 1e-4, negative ones too, as float32 and as float64."""
    rng = np.random.default_rng(0)
    steps = rng.integers(-300, 300, 400) / STEPS_PER_UNIT
    scores = np.concatenate(
        [steps, np.nextafter(steps, -1), np.nextafter(steps, 1), steps.astype(np.float32), rng.uniform(-0.03, 0.03, 99)]
    )
    genuine = rng.random(len(scores)) < 0.3
    also = [0.012345678, float(scores[5])]
    counts = accepted_counts(scores, genuine, also)
    for threshold in [*(np.arange(-320, 320) / STEPS_PER_UNIT), *also]:
        place = int(np.searchsorted(counts.thresholds, threshold))  # the next higher one in the list
        found = [int(kind[place]) if place < len(kind) else 0 for kind in (counts.genuine, counts.impostor)]
        assert found == [int((scores[genuine] >= threshold).sum()), int((scores[~genuine] >= threshold).sum())]


def test_tar_at_far_and_its_spread_against_a_loop() -> None:
    pairs = simulated("lfw", 3)
    figures = SetFigures(pairs)
    scores, genuine = pairs.similarities.astype(np.float64), pairs.genuine

    def best_tar(chosen: np.ndarray, far: float) -> float:
        ok = [t for t in (*np.unique(scores), np.inf) if (scores[chosen & ~genuine] >= t).mean() <= far + 1e-12]
        return max(float((scores[chosen & genuine] >= t).mean()) for t in ok)

    assert [point.target for point in figures.tar_points] == [1e-1]  # a FAR of 1e-2 allows 2 of 200 impostor pairs
    point = figures.tar_points[0]
    assert point.tar.value == best_tar(np.ones(len(scores), bool), 0.1)
    assert (scores[~genuine] >= point.threshold).sum() == point.accepted <= 20
    without = np.array([best_tar(pairs.folds != fold, 0.1) for fold in range(10)])
    error = np.sqrt(0.9 * ((without - without.mean()) ** 2).sum())
    # Student's quantile at 9 degrees of freedom; Wilson's interval is not symmetric, so only its width is near that.
    assert point.tar.high - point.tar.low == pytest.approx(2 * 2.262 * error, rel=0.25)
    assert point.tar.low < point.tar.value < point.tar.high


def test_presets_are_short_and_accept_the_same_pairs() -> None:
    figures = SetFigures(simulated("lfw", 4))
    exact = {"best accuracy": figures.result.best_threshold, "EER": figures.result.eer_threshold}
    for name, threshold in exact.items():
        short = figures.presets[name]
        assert short <= threshold
        assert ((figures.scores >= short) == (figures.scores >= threshold)).all()
        assert len(repr(short)) < len(repr(threshold))


def test_thinned_curves_leave_no_gap() -> None:
    """Every point left out lies within a cell of a point that is kept, and far fewer are."""
    rng = np.random.default_rng(0)
    x, y = np.sort(rng.random(50_000)) - 1, np.sort(rng.random(50_000))
    kept = thinned(x, y)
    assert kept[0] == 0
    assert kept[-1] == len(x) - 1
    assert len(kept) < 7000
    before = kept[np.searchsorted(kept, np.arange(len(x)), side="right") - 1]
    assert np.abs(x - x[before]).max() <= 1 / 1500
    assert np.abs(y - y[before]).max() <= 1 / 1500
