"""Everything that a folder of people says of a network: verification over all pairs, and identification."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from facelit.errors import FacelitError
from facelit.verification.all_pairs import NUM_GROUPS, AllPairs, Curve, OperatingPoint, carried, count_pairs
from facelit.verification.calibration import BEST_ACCURACY
from facelit.verification.intervals import Rate
from facelit.verification.pair_drawing import deal_people, draw_pairs, most_folds, name_keys
from facelit.verification.protocol import MIN_IMPOSTORS, VerificationResult, evaluate_pairs
from facelit.verification.search import (
    FEWEST_PEOPLE,
    NUM_PARTS,
    Identification,
    OpenSetPoint,
    choose_enrolled,
    search_people,
)

FARS = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
FPIRS = (1e-2, 1e-1)
RANKS = (1, 5, 10)
_FOLDS, _MOST_GENUINE = 10, 100_000

Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""Opens a progress bar: what is done, and how much there is to do."""


@dataclass(frozen=True, eq=False)
class PeopleEvaluation:
    """What `evaluate_people` found.

    Attributes:
        num_images: Images.
        num_people: People, with one image or more.
        curve: Over all pairs.
        accuracy: On balanced pairs in folds without common people; see `facelit.data.IdentityPairs`.
        eer: Equal error rate.
        auc: Area under the ROC curve.
        at_far: By target FAR, those that the pairs carry.
        ranks: Closed-set identification rate by rank.
        at_fpir: By target FPIR, those that the strangers carry.
        num_searches: For people who are enrolled.
        num_strangers: Searches for people who are not.
        enrolled: Images of each person in the gallery.
    """

    num_images: int
    num_people: int
    curve: Curve
    accuracy: VerificationResult
    eer: Rate
    auc: float
    at_far: dict[float, OperatingPoint]
    ranks: dict[int, Rate]
    at_fpir: dict[float, OpenSetPoint]
    num_searches: int
    num_strangers: int
    enrolled: int

    def as_dict(self) -> dict[str, Any]:
        """All figures as plain values; rates as [value, low, high] of their 95 % intervals."""
        folds = self.accuracy
        return {
            "images": self.num_images,
            "people": self.num_people,
            "genuine_pairs": self.curve.num_genuine,
            "impostor_pairs": self.curve.num_impostor,
            "accuracy": {
                "mean": folds.accuracy,
                "standard_error": folds.accuracy_se,
                "folds": folds.num_folds,
                "pairs": folds.num_genuine + folds.num_impostor,
            },
            "auc": self.auc,
            "eer": list(self.eer),
            "far": [figures_of(point) for point in self.at_far.values()],
            "enrolled_images": self.enrolled,
            "searches": self.num_searches,
            "rank": {str(k): list(rate) for k, rate in self.ranks.items()},
            "stranger_searches": self.num_strangers,
            "fpir": [figures_of(point) for point in self.at_fpir.values()],
        }

    def calibration_entry(self, step: int, flip_average: bool) -> dict[str, Any]:
        """What a checkpoint keeps: see `facelit.verification.calibration`."""
        best = self.accuracy.best_threshold
        # At the lower edge of its bin, 7.6e-6 below at most.
        edge = int((best + 1) / 2 * (len(self.curve.accepted_genuine) - 1)) if math.isfinite(best) else 0
        thresholds = {BEST_ACCURACY: (best, self.curve.far(edge), self.curve.tar(edge))} if math.isfinite(best) else {}
        for far, point in self.at_far.items():
            thresholds[far_name(far)] = (point.threshold, point.far.value, point.tar.value)
        return {
            "pairs": self.curve.num_genuine + self.curve.num_impostor,
            "images": self.num_images,
            "accuracy": self.accuracy.accuracy,
            "accuracy_se": self.accuracy.accuracy_se,
            "auc": self.auc,
            "eer": self.eer.value,
            "step": step,
            "flip_average": flip_average,
            "thresholds": {
                name: {"threshold": value, "far": far, "tar": tar} for name, (value, far, tar) in thresholds.items()
            },
        }


def check_people(root: object, counts: Sequence[int], far: float | None) -> None:
    """Whether the images of people can be evaluated at all; asked before the work.

    Args:
        root: The folder, for messages.
        counts: Images of each person.
        far: The FAR that a threshold is wanted for.

    Raises:
        FacelitError: They are too few.
    """
    images = np.array([count for count in counts if count])
    several = int((images >= 2).sum())
    if len(images) < 2:
        raise FacelitError(
            f"{root}: found {len(images) or 'no'} {'person' if len(images) == 1 else 'people'} with photos; an evaluation compares"
            " several. The layout is root/<person>/<photo>."
        )
    if not several:
        raise FacelitError(
            f"{root}: each of its {len(images):,} people has one photo, and a genuine pair takes two. Add photos of the same people."
        )
    if most_folds(images) < 2:
        raise FacelitError(
            f"{root}: {len(images):,} people, {several:,} of them with two photos or more, are too few: an accuracy takes four, two of"
            " them with two photos. Add people."
        )
    impostors = int(images.sum() ** 2 - (images**2).sum()) // 2
    if far is not None and not carried(far, impostors):
        raise FacelitError(
            f"{root}: {impostors:,} impostor pairs say nothing of a FAR of {far:g}: fewer than {MIN_IMPOSTORS} of them would be"
            f" accepted. Ask for {_round_up(MIN_IMPOSTORS / impostors):g} or more (--far), or add people."
        )


def evaluate_people(
    embeddings: npt.NDArray[np.float32],
    people: npt.NDArray[np.int64],
    person_names: Sequence[str],
    image_names: Sequence[str],
    fars: Sequence[float] = FARS,
    enrolled: int = 1,
    seed: int = 0,
    progress: Progress = lambda text, total: nullcontext(lambda done: None),
) -> PeopleEvaluation:
    """Verifies all pairs, and identifies every image.

    Memory is bounded: scores are counted block by block. What is drawn (folds, the enrolled images, the strangers' turns) depends
    on the names and the seed alone.

    Args:
        embeddings: float32 (N, D), L2-normalised.
        people: Person of each image, from 0, without gaps, (N,).
        person_names: (num_people,).
        image_names: (N,).
        fars: Targets; those that the pairs do not carry are left out.
        enrolled: Images of each person in the gallery; the others search.
        seed: See above.
        progress: Shows how far it is.

    Raises:
        FacelitError: People or images are too few; see `check_people`.
    """
    counts = np.bincount(people, minlength=len(person_names))
    person_keys, image_keys = name_keys(person_names, seed), name_keys(image_names, seed)
    folds = min(_FOLDS, most_folds(counts))
    few = int((counts * (counts - 1) // 2).sum()) <= _MOST_GENUINE
    pairs = draw_pairs(people, person_keys, image_keys, "all" if few else _MOST_GENUINE, "equal", folds)
    scores = (embeddings[pairs.first].astype(np.float64) * embeddings[pairs.second]).sum(axis=1)
    group_of = deal_people(counts, person_keys, min(NUM_GROUPS, len(counts)))
    with progress("Comparing", len(people) ** 2 // 2) as show:
        all_pairs = AllPairs(count_pairs(embeddings, people, group_of, show), int((counts > 1).sum()))
    part_of = deal_people(counts, person_keys, NUM_PARTS) if len(counts) >= FEWEST_PEOPLE else np.zeros_like(counts)
    with progress("Searching", len(people)) as show:
        searches = search_people(embeddings, people, choose_enrolled(people, image_keys, enrolled), part_of, show)
    found = Identification(searches, people, part_of, group_of)
    points = ((fpir, found.at_fpir(fpir)) for fpir in FPIRS)
    impostors = all_pairs.curve.num_impostor
    return PeopleEvaluation(
        len(people),
        len(counts),
        all_pairs.curve,
        evaluate_pairs(scores, pairs.is_same, pairs.folds),
        all_pairs.equal_error_rate(),
        all_pairs.curve.auc(),
        {far: all_pairs.at_far(far) for far in sorted(set(fars), reverse=True) if carried(far, impostors)},
        {k: found.rank(k) for k in RANKS},
        {fpir: point for fpir, point in points if point is not None},
        found.num_mated,
        found.num_strangers if len(counts) >= FEWEST_PEOPLE else 0,
        enrolled,
    )


def far_name(far: float) -> str:
    """The name of a threshold: 0.001 as far_1e-3, 0.0005 as far_5e-4."""
    digits, _, exponent = f"{far:e}".partition("e")
    return f"far_{float(digits):g}e{int(exponent)}"


def figures_of(point: OperatingPoint | OpenSetPoint) -> dict[str, Any]:
    """An operating point as plain values; rates as [value, low, high]."""
    return {name: list(value) if isinstance(value, Rate) else value for name, value in point._asdict().items()}


def _round_up(far: float) -> float:
    """To one digit."""
    scale = 10.0 ** math.floor(math.log10(far))
    return float(f"{math.ceil(far / scale - 1e-9) * scale:.1g}")
