"""FAR and FRR within groups: a case by hand, and Wilson's interval as he wrote it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from facelit.verification.groups import group_rates
from facelit.verification.intervals import rate_of_trials

# score, genuine, first, second; the threshold is 0.5
PAIRS = [
    (0.9, True, "f", "f"),
    (0.5, True, "f", "f"),  # at the threshold: accepted
    (0.4, True, "f", "f"),  # a false reject
    (0.6, False, "f", "f"),  # a false accept
    (0.1, False, "f", "f"),
    (0.2, False, "f", "f"),
    (0.3, False, "f", "f"),
    (0.8, True, "m", "m"),
    (0.2, True, "m", "m"),  # a false reject
    (0.9, False, "f", "m"),  # a false accept across
    (0.1, False, "m", "f"),
    (0.3, True, "m", "f"),  # a false reject across
    (0.9, False, "", "f"),  # unknown
    (0.1, True, "m", ""),
]


def test_by_hand() -> None:
    scores, genuine, first, second = zip(*PAIRS, strict=True)
    found = group_rates("sex", scores, genuine, first, second, 0.5)
    female, male = found.groups
    assert (female.group, female.genuine, female.rejected, female.impostor, female.accepted) == ("f", 3, 1, 4, 1)
    assert female.frr is not None
    assert female.frr.value == pytest.approx(1 / 3)
    assert female.far is not None
    assert female.far.value == 0.25
    assert (male.group, male.genuine, male.rejected, male.impostor, male.accepted) == ("m", 2, 1, 0, 0)
    assert male.far is None
    across = found.across
    assert (across.genuine, across.rejected, across.impostor, across.accepted) == (1, 1, 2, 1)
    assert found.unknown == 2
    plain = found.as_dict()
    assert plain["groups"][1] == {
        "group": "m",
        "genuine": 2,
        "rejected": 1,
        "frr": list(rate_of_trials(1, 2)),
        "impostor": 0,
        "accepted": 0,
        "far": None,
    }
    assert plain["across"]["far"][0] == 0.5


def test_each_pair_counts_once() -> None:
    rng = np.random.default_rng(0)
    scores, genuine = rng.random(500), rng.random(500) < 0.5
    first, second = (rng.choice(["", "10", "9", "x"], 500).tolist() for _ in range(2))
    found = group_rates("band", scores, genuine, first, second, 0.7)
    rows = [*found.groups, found.across]
    assert [rates.group for rates in found.groups] == ["9", "10", "x"]
    assert sum(rates.genuine + rates.impostor for rates in rows) + found.unknown == 500


def test_wilsons_interval_solves_his_equation() -> None:
    """Its ends are the p with |k/n - p| = z sqrt(p (1 - p) / n); 1.96 is the normal distribution's 97.5 % point."""
    rate = rate_of_trials(3, 40)
    for end in (rate.low, rate.high):
        assert abs(3 / 40 - end) / math.sqrt(end * (1 - end) / 40) == pytest.approx(1.96, abs=1e-4)
    assert rate.low < rate.value < rate.high
    assert rate_of_trials(0, 40).low == pytest.approx(0, abs=1e-12)
    assert rate_of_trials(0, 40).high == pytest.approx(1.96**2 / (40 + 1.96**2), abs=1e-4)
