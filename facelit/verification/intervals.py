"""Confidence intervals of rates; most have trials that are not independent, as one person is in many pairs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

_CONFIDENCE = 0.95


class Rate(NamedTuple):
    """A share between 0 and 1, and the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}]"


class Estimate(NamedTuple):
    """A rate, and what it would be without each group of people; arguments of `rate_with_interval`."""

    value: float
    without: Mapping[int, float]
    trials: int
    people: int

    def rate(self) -> Rate:
        """With its interval."""
        return rate_with_interval(self.value, list(self.without.values()), self.trials, self.people)


def mean_rate(estimates: Sequence[Estimate]) -> Rate:
    """The plain mean of rates of different people, whose groups are left out of all at once."""
    groups = sorted({group for one in estimates for group in one.without})
    without = {group: float(np.mean([one.without.get(group, one.value) for one in estimates])) for group in groups}
    trials, people = sum(one.trials for one in estimates), sum(one.people for one in estimates)
    return Estimate(float(np.mean([one.value for one in estimates])), without, trials, people).rate()


def rate_with_interval(value: float, without: Sequence[float], trials: int, people: int) -> Rate:
    """A rate with Wilson's interval, for as many trials as its spread over people says it is worth.

    The standard error is the delete-a-group jackknife's: the rate is measured again without each of G groups of people. It gives the
    number of independent trials with that error, at most `trials`, which Wilson's interval takes, with Student's quantile at G - 1
    degrees of freedom. Where leaving people out changes nothing (no mistake at all, say), that number is `people`.

    Kott: The delete-a-group jackknife, Journal of Official Statistics 17(4), 2001. Wilson, JASA 22, 1927. Korn & Graubard: Confidence
    intervals for proportions with small expected number of positive counts, Survey Methodology 24, 1998 (effective trials).

    Args:
        value: The rate.
        without: The rate without each group.
        trials: How many there were.
        people: How many stand behind them.
    """
    groups = len(without)
    spread = np.asarray(without) - np.mean(without) if groups else np.zeros(0)
    variance = (groups - 1) / groups * float((spread**2).sum()) if groups else 0.0
    worth = value * (1 - value) / variance if variance > 0 and 0 < value < 1 else float(people)
    low, high = wilson(value, max(1.0, min(worth, trials)), _quantile(max(1, groups - 1)))
    return Rate(value, low, high)


def rate_of_trials(count: int, trials: int) -> Rate:
    """The share of independent trials that came out one way, with Wilson's 95 % interval.

    Args:
        count: How many came out that way.
        trials: How many there were, at least one.
    """
    return Rate(count / trials, *wilson(count / trials, trials, NormalDist().inv_cdf((1 + _CONFIDENCE) / 2)))


def wilson(value: float, trials: float, quantile: float) -> tuple[float, float]:
    """The ends of Wilson's score interval: all rates that `value` lies within `quantile` standard errors of."""
    squared = quantile**2 / trials
    centre = (value + squared / 2) / (1 + squared)
    half = quantile / (1 + squared) * math.sqrt(value * (1 - value) / trials + squared / (4 * trials))
    return max(0.0, centre - half), min(1.0, centre + half)


def _quantile(degrees: int) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(degrees, (1 + _CONFIDENCE) / 2))
