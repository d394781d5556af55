"""FAR and FRR by group for a set's scores, at one threshold for all groups."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from facelit.errors import FacelitError
from facelit.suites.groups_file import GroupsFile, ImageGroups
from facelit.suites.sets import SuiteSet
from facelit.verification.groups import Breakdown, GroupRates, group_rates
from facelit.verification.intervals import Rate
from facelit.verification.protocol import MIN_IMPOSTORS, VerificationResult, tar_at_far
from facelit.verification.scored_pairs import ScoredPairs

_NAMED = 3


class ThresholdRule(NamedTuple):
    """Where the threshold comes from.

    Attributes:
        threshold: The threshold itself, for all sets and networks; or None.
        far: Of the whole set, the highest FAR that it may have; or None. With neither it is the one of the set's best accuracy.
    """

    threshold: float | None = None
    far: float | None = None

    def check(self, suite_set: SuiteSet) -> None:
        """Whether the set has impostor pairs enough; asked before the work.

        Raises:
            FacelitError: It has too few.
        """
        impostors = int((~suite_set.source.is_same).sum())
        if self.far is not None and math.floor(self.far * impostors + 1e-9) < MIN_IMPOSTORS:
            raise FacelitError(
                f"--far {self.far:g}: fewer than {MIN_IMPOSTORS} of the {impostors:,} impostor pairs of {suite_set.name} would be accepted,"
                f" so the threshold would rest on nothing. Ask for {math.ceil(MIN_IMPOSTORS / impostors * 1e4) / 1e4:g} or more."
            )

    def of(self, result: VerificationResult) -> tuple[float, str]:
        """The threshold for a network's scores on a set, and where it comes from."""
        if self.threshold is not None:
            return self.threshold, "--threshold"
        if self.far is not None and (point := tar_at_far(result.roc, result.num_impostor, self.far)):
            return point.threshold, f"FAR <= {self.far:g} on the whole set"
        return result.best_threshold, "best accuracy on the whole set"


class SetBreakdowns(NamedTuple):
    """A set's rates by group, for one network.

    Attributes:
        threshold: The same for all groups; infinite where nothing beats rejecting every pair.
        origin: Where it comes from, in words.
        columns: The rates, for each column of the file.
        missing: Images of the set that are not in the file.
        images: Images of the set.
    """

    threshold: float
    origin: str
    columns: list[Breakdown]
    missing: list[str]
    images: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a JSON file: "threshold" (None if infinite), "origin", "columns" (`Breakdown.as_dict`), "images", "missing_images"."""
        return {
            "threshold": self.threshold if math.isfinite(self.threshold) else None,
            "origin": self.origin,
            "columns": [column.as_dict() for column in self.columns],
            "images": self.images,
            "missing_images": self.missing,
        }


def break_down(
    suite_set: SuiteSet, groups: ImageGroups, pairs: ScoredPairs, result: VerificationResult, rule: ThresholdRule
) -> SetBreakdowns:
    """Rates by group, for each column of a groups file."""
    threshold, origin = rule.of(result)
    first, second = suite_set.source.first.tolist(), suite_set.source.second.tolist()
    columns = [
        group_rates(
            column,
            pairs.similarities,
            pairs.genuine,
            [values[number] for number in first],
            [values[number] for number in second],
            threshold,
        )
        for column, values in groups.values.items()
    ]
    return SetBreakdowns(threshold, origin, columns, groups.missing, len(suite_set.names))


def match_groups(file: GroupsFile, sets: Sequence[SuiteSet]) -> dict[str, ImageGroups]:
    """The groups of each set's images; sets of which the file has no image are left out.

    Raises:
        FacelitError: It has no image of any set.
    """
    matched = {one.name: file.of_images(one.names) for one in sets}
    found = {one.name: matched[one.name] for one in sets if len(matched[one.name].missing) < len(one.names)}
    if not found:
        names = ", ".join(sets[0].names[:_NAMED])
        raise FacelitError(
            f"{file.path}: none of the sets' images is there (they are named like {names}; option --groups)."
        )
    return found


def breakdown_lines(label: str, found: SetBreakdowns) -> list[str]:
    """A table for each column.

    Args:
        label: The set and the network.
        found: The rates.
    """
    lines = []
    for column in found.columns:
        width = max(14, *(len(rates.group) for rates in column.groups)) if column.groups else 14
        lines += [
            f"{label}: by {column.column}, threshold {found.threshold:.4f} ({found.origin})",
            f"  {'group':<{width}}  {'genuine':>9}  {'FRR':<26}{'impostor':>9}  FAR",
            *(_line(rates.group, rates, width) for rates in column.groups),
            _line("of two groups", column.across, width),
        ]
        if column.unknown:
            lines.append(f"  {column.unknown:,} pairs of images whose group is not known are in no row.")
        lines.append("")
    return lines


def missing_line(label: str, groups: ImageGroups, images: int, file: GroupsFile) -> str | None:
    """How many of a set's images the file does not have, and the first of them."""
    if not groups.missing:
        return None
    more = ", ..." if len(groups.missing) > _NAMED else ""
    return f"{label}: {len(groups.missing):,} of {images:,} images are not in {file.path}: {', '.join(groups.missing[:_NAMED])}{more}"


def _line(name: str, rates: GroupRates, width: int) -> str:
    return (
        f"  {name:<{width}}  {rates.genuine:>9,}  {_rate(rates.frr):<26}{rates.impostor:>9,}  {_rate(rates.far)}"
    ).rstrip()


def _rate(rate: Rate | None) -> str:
    return "-" if rate is None else str(rate)
