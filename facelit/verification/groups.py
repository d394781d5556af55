"""FAR and FRR within groups of people at one threshold, as NIST's FRVT reports them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from facelit.verification.intervals import Rate, rate_of_trials

Booleans = npt.NDArray[np.bool_]


class GroupRates(NamedTuple):
    """What a threshold does to the pairs of a group.

    Attributes:
        group: The group's value, such as "female"; empty for pairs of two groups.
        genuine: Genuine pairs.
        rejected: Those of them below the threshold.
        frr: Their share, the false reject rate, with Wilson's interval; None without genuine pairs.
        impostor: Impostor pairs.
        accepted: Those of them at or above the threshold.
        far: Their share, the false accept rate, with Wilson's interval; None without impostor pairs.
    """

    group: str
    genuine: int
    rejected: int
    frr: Rate | None
    impostor: int
    accepted: int
    far: Rate | None


class Breakdown(NamedTuple):
    """A set's pairs by the groups of one column.

    Attributes:
        column: What the images are grouped by, such as "sex".
        groups: By group, in the order of their names (of numbers, by value). A pair is in a group if both of its images are.
        across: Pairs of images of two groups, which are in no group.
        unknown: Pairs with an image whose group is not known, which are counted nowhere else.
    """

    column: str
    groups: list[GroupRates]
    across: GroupRates
    unknown: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values: {"column", "groups": [...], "across": {...}, "unknown"}; rates as [value, low, high], or None."""
        return {
            "column": self.column,
            "groups": [_listed(rates) for rates in self.groups],
            "across": _listed(self.across),
            "unknown": self.unknown,
        }


def group_rates(
    column: str, scores: Any, genuine: Any, first: Sequence[str], second: Sequence[str], threshold: float
) -> Breakdown:
    """FRR over the genuine pairs, and FAR over the impostor pairs, within each group. A pair is accepted where `score >= threshold`.

    The intervals are of independent pairs.

    Grother, Ngan, Hanaoka: Face Recognition Vendor Test, Part 3: Demographic Effects, NISTIR 8280, 2019.

    Args:
        column: What the images are grouped by.
        scores: Of each pair, float (N,).
        genuine: True for genuine pairs, bool (N,).
        first: Group of each pair's first image, length N; empty where it is not known.
        second: Likewise, of the second image.
        threshold: The lowest accepted score, the same for all groups.
    """
    accepted = np.asarray(scores, np.float64) >= threshold
    genuine = np.asarray(genuine, np.bool_)
    one, other = np.array(first, np.str_), np.array(second, np.str_)
    known = (one != "") & (other != "")
    names = sorted({*one[known].tolist(), *other[known].tolist()}, key=_order)
    return Breakdown(
        column,
        [_rates(name, (one == name) & (other == name), genuine, accepted) for name in names],
        _rates("", known & (one != other), genuine, accepted),
        int((~known).sum()),
    )


def _rates(group: str, chosen: Booleans, genuine: Booleans, accepted: Booleans) -> GroupRates:
    genuine_pairs, impostor_pairs = int((chosen & genuine).sum()), int((chosen & ~genuine).sum())
    rejected, false_accepts = int((chosen & genuine & ~accepted).sum()), int((chosen & ~genuine & accepted).sum())
    return GroupRates(
        group,
        genuine_pairs,
        rejected,
        rate_of_trials(rejected, genuine_pairs) if genuine_pairs else None,
        impostor_pairs,
        false_accepts,
        rate_of_trials(false_accepts, impostor_pairs) if impostor_pairs else None,
    )


def _order(name: str) -> tuple[bool, float, str]:
    try:
        value = float(name)
    except ValueError:
        value = math.nan
    return (True, 0.0, name) if math.isnan(value) else (False, value, name)


def _listed(rates: GroupRates) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, Rate) else value for name, value in rates._asdict().items()}
