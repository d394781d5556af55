"""The thresholds that travel, against a loop over every candidate."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facelit.verification import evaluate_pairs
from facelit.verification.calibration import calibration_entry, operating_points


def accepted_shares(scores: list[float], is_same: list[bool], threshold: float) -> tuple[float, float]:
    """FAR and TAR, counted pair by pair."""
    impostors = [score for score, same in zip(scores, is_same, strict=True) if not same]
    genuine = [score for score, same in zip(scores, is_same, strict=True) if same]
    far = sum(score >= threshold for score in impostors) / len(impostors)
    return far, sum(score >= threshold for score in genuine) / len(genuine)


def looped_points(scores: list[float], is_same: list[bool]) -> dict[str, dict[str, float]]:
    """Every distinct score from the highest down, and infinity before them; the first of equally good ones stays."""
    candidates = [math.inf, *sorted(set(scores), reverse=True)]
    impostors = is_same.count(False)
    best, most = math.inf, -1
    for candidate in candidates:
        right = sum((score >= candidate) == same for score, same in zip(scores, is_same, strict=True))
        if right > most:
            best, most = candidate, right
    chosen = {"best_accuracy": best}
    for name, allowed in (("far_1e-2", impostors // 100), ("far_1e-3", impostors // 1000)):
        if allowed >= 3:
            # The largest TAR is the lowest threshold's; of several with the same accepted pairs there is but one candidate.
            chosen[name] = [
                candidate
                for candidate in candidates
                if sum(s >= candidate for s, same in zip(scores, is_same, strict=True) if not same) <= allowed
            ][-1]
    points = {}
    for name, threshold in chosen.items():
        if threshold < math.inf:
            far, tar = accepted_shares(scores, is_same, threshold)
            points[name] = {"threshold": threshold, "far": far, "tar": tar}
    return points


def same_points(found: dict[str, dict[str, float]], expected: dict[str, dict[str, float]]) -> bool:
    return list(found) == list(expected) and all(found[name] == pytest.approx(expected[name]) for name in expected)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_points_are_a_literal_loops(data: Any) -> None:
    """Few distinct scores, so that ties are everywhere."""
    is_same = [True, False, True, False, *data.draw(st.lists(st.booleans(), max_size=26))]
    if len(is_same) % 2:
        is_same.append(True)
    scores = [data.draw(st.integers(-4, 4)) / 4 for _ in is_same]
    assert same_points(operating_points(evaluate_pairs(scores, is_same, 2)), looped_points(scores, is_same))


@pytest.mark.parametrize(
    ("impostors", "names"),
    [
        (299, ["best_accuracy"]),
        (300, ["best_accuracy", "far_1e-2"]),
        (2999, ["best_accuracy", "far_1e-2"]),
        (3000, ["best_accuracy", "far_1e-2", "far_1e-3"]),
    ],
)
def test_a_far_needs_three_impostor_pairs(impostors: int, names: list[str]) -> None:
    rng = np.random.default_rng(0)
    is_same = [True] * 100 + [False] * impostors
    scores = np.round(np.tanh(rng.normal(0, 0.3, len(is_same)) + 0.6 * np.array(is_same)), 3).tolist()
    folds = np.arange(len(scores)) % 2
    points = operating_points(evaluate_pairs(scores, is_same, folds))
    assert list(points) == names
    assert same_points(points, looped_points(scores, is_same))
    for name, limit in (("far_1e-2", 1e-2), ("far_1e-3", 1e-3)):
        assert name not in points or points[name]["far"] <= limit


def test_a_threshold_of_infinity_is_left_out() -> None:
    """Where every genuine pair scores lowest nothing beats accepting nobody: no number could say so."""
    scores, is_same = [0.9, 0.8, 0.1, 0.2], [False, False, True, True]
    assert operating_points(evaluate_pairs(scores, is_same, [0, 1, 0, 1])) == {}


def test_an_entry_holds_plain_values() -> None:
    scores, is_same = [0.9, 0.2, 0.7, 0.1], [True, False, True, False]
    # Each fold's threshold is its other fold's genuine score: 0.7 accepts 0.9, and 0.9 rejects 0.7.
    entry = calibration_entry(evaluate_pairs(scores, is_same, 2), images=5, step=7, flip_average=True)
    assert entry["thresholds"] == {"best_accuracy": {"threshold": 0.7, "far": 0.0, "tar": 1.0}}
    del entry["thresholds"]
    assert entry == {
        "pairs": 4,
        "images": 5,
        "accuracy": 0.75,
        "accuracy_se": 0.25,
        "auc": 1.0,
        "eer": 0.0,
        "step": 7,
        "flip_average": True,
    }
    assert {type(value) for value in entry.values()} == {int, float, bool}
