"""McNemar's test, against figures by hand and the binomial sum written out."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import product

import numpy as np
import pytest

from facelit.errors import FacelitError
from facelit.verification.paired_test import EXACT_BELOW, compare, correct_decisions, mcnemar
from facelit.verification.scored_pairs import ScoredPairs


def decisions(both: int, only_a: int, only_b: int, neither: int) -> tuple[list[bool], list[bool]]:
    a = [True] * both + [True] * only_a + [False] * only_b + [False] * neither
    b = [True] * both + [False] * only_a + [True] * only_b + [False] * neither
    return a, b


def test_five_against_one_by_hand() -> None:
    """Six fair coins: at most one head in 1 + 6 of 64 outcomes, and as many on the other side."""
    found = mcnemar(*decisions(both=10, only_a=5, only_b=1, neither=2))
    assert found == (5, 1, 18, 14 / 64, True)
    assert not found.significant
    assert found.difference == pytest.approx(4 / 18)
    sentence = found.sentence("new", "old")
    assert sentence == "new is better than old, which may be chance (alone right: new 5, old 1 of 18 pairs; p = 0.22)"


def test_against_all_outcomes_of_the_coins() -> None:
    """The two-sided p-value: the share of outcomes that are as far from half, or farther."""
    for only_a in range(9):
        found = mcnemar(*decisions(3, only_a, 8 - only_a, 1))
        heads = [sum(outcome) for outcome in product((0, 1), repeat=8)]
        extreme = sum(abs(count - 4) >= abs(only_a - 4) for count in heads)
        assert found.p_value == Fraction(extreme, 2**8)


def test_nothing_to_tell_them_apart() -> None:
    found = mcnemar(*decisions(7, 0, 0, 2))
    assert found.p_value == 1
    assert "equally good" in found.sentence("a", "b")


def test_many_discordant_pairs() -> None:
    """Chi-square with one degree of freedom is a squared normal: (|b - c| - 1)^2 / (b + c), by hand 39^2 / 2000."""
    found = mcnemar(*decisions(0, 1020, 980, 0))
    assert not found.exact
    assert found.p_value == pytest.approx(math.erfc(39 / math.sqrt(2000) / math.sqrt(2)))
    assert mcnemar(*decisions(0, 1001, 1000, 0)).p_value == 1
    at_limit = mcnemar(*decisions(0, EXACT_BELOW // 2 + 40, EXACT_BELOW // 2 - 40, 0))
    beyond = mcnemar(*decisions(0, EXACT_BELOW // 2 + 41, EXACT_BELOW // 2 - 40, 0))
    assert at_limit.exact
    assert at_limit.p_value == pytest.approx(beyond.p_value, rel=0.1)
    assert "is better than" in beyond.sentence("a", "b")
    assert "more than chance" in beyond.sentence("a", "b")


def test_shapes() -> None:
    with pytest.raises(ValueError, match="same shape"):
        mcnemar([True], [True, False])
    with pytest.raises(ValueError, match="N > 0"):
        mcnemar([], [])


def scored(similarities: list[float], second: str = "b") -> ScoredPairs:
    genuine = np.array([True, False, True, False, True, False])
    return ScoredPairs(
        "lfw", np.array(similarities, np.float32), genuine, np.repeat([3, 7, 9], 2), ["a"] * 6, [second] * 6, None
    )


def test_each_fold_is_judged_by_the_others() -> None:
    """By hand: the best thresholds on two of three folds are 0.5, 0.5 and 0.6 (the highest of equals); fold 9 then loses its 0.5."""
    pairs = scored([0.7, 0.1, 0.6, 0.2, 0.5, 0.3])
    assert correct_decisions(pairs).tolist() == [True, True, True, True, False, True]
    better = scored([0.7, 0.1, 0.6, 0.2, 0.6, 0.3])
    found = compare(pairs, better)
    assert (found.only_a, found.only_b, found.pairs) == (0, 1, 6)
    assert found.p_value == 1


def test_other_pairs_cannot_be_compared() -> None:
    with pytest.raises(FacelitError, match="not measured on the same pairs"):
        compare(scored([0.7, 0.1, 0.6, 0.2, 0.5, 0.3]), scored([0.7, 0.1, 0.6, 0.2, 0.5, 0.3], second="c"))
