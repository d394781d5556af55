"""Verification and identification of templates, as on IJB-B and IJB-C."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from facelit.errors import FacelitError
from facelit.verification.all_pairs import NUM_GROUPS, AllPairs, Curve, OperatingPoint, carried
from facelit.verification.evaluation import Progress, figures_of
from facelit.verification.intervals import Rate, mean_rate
from facelit.verification.pair_drawing import deal_people, name_keys
from facelit.verification.search import Embeddings, Integers, OpenSetPoint, SearchFigures, search_gallery
from facelit.verification.templates import ListedPairs, count_listed_pairs

FARS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
FPIRS = (1e-2, 1e-1)
RANKS = (1, 5, 10)


class ListedTemplates(NamedTuple):
    """Templates with their subjects: a gallery, or probes.

    `templates` are numbers of templates, int64 (K,); `subjects` any integers, (K,).
    """

    templates: Integers
    subjects: Integers


@dataclass(frozen=True, eq=False)
class TemplateVerification:
    """What `verify_templates` found.

    Attributes:
        curve: Over all pairs.
        auc: Area under the ROC curve.
        eer: Equal error rate.
        at_far: By target FAR, those that the pairs carry.
        num_templates: In the pairs.
        num_people: That genuine pairs make of them.
    """

    curve: Curve
    auc: float
    eer: Rate
    at_far: dict[float, OperatingPoint]
    num_templates: int
    num_people: int

    def as_dict(self) -> dict[str, Any]:
        """All figures as plain values; rates as [value, low, high] of their 95 % intervals."""
        return {
            "genuine_pairs": self.curve.num_genuine,
            "impostor_pairs": self.curve.num_impostor,
            "templates": self.num_templates,
            "people": self.num_people,
            "auc": self.auc,
            "eer": list(self.eer),
            "far": [figures_of(point) for point in self.at_far.values()],
        }


@dataclass(frozen=True, eq=False)
class GalleryFigures:
    """Searches in one gallery.

    Attributes:
        num_enrolled: Templates in it.
        num_mated: Searches for somebody in it.
        num_strangers: Searches for others.
        ranks: Identification rate by rank.
        at_fpir: By target FPIR, those that the strangers carry.
        fpir: Of each threshold at which it changes, rising, float64 (n,).
        tpir: Likewise.
    """

    num_enrolled: int
    num_mated: int
    num_strangers: int
    ranks: dict[int, Rate]
    at_fpir: dict[float, OpenSetPoint]
    fpir: npt.NDArray[np.float64]
    tpir: npt.NDArray[np.float64]

    def as_dict(self) -> dict[str, Any]:
        """All figures as plain values."""
        return {
            "enrolled": self.num_enrolled,
            "searches": self.num_mated,
            "stranger_searches": self.num_strangers,
            "rank": {str(k): list(rate) for k, rate in self.ranks.items()},
            "fpir": [figures_of(point) for point in self.at_fpir.values()],
        }


@dataclass(frozen=True, eq=False)
class TemplateIdentification:
    """What `identify_templates` found.

    Attributes:
        galleries: By name.
        ranks: The galleries' mean by rank.
        tpir: The galleries' mean by target FPIR, those that the strangers of all galleries carry.
    """

    galleries: dict[str, GalleryFigures]
    ranks: dict[int, Rate]
    tpir: dict[float, Rate]

    def as_dict(self) -> dict[str, Any]:
        """All figures as plain values."""
        return {
            "rank": {str(k): list(rate) for k, rate in self.ranks.items()},
            "tpir_at_fpir": {f"{target:g}": list(rate) for target, rate in self.tpir.items()},
            "galleries": {name: gallery.as_dict() for name, gallery in self.galleries.items()},
        }


def verify_templates(
    templates: Embeddings,
    template_ids: npt.NDArray[np.int64],
    pairs: ListedPairs,
    progress: Progress = lambda text, total: nullcontext(lambda done: None),
) -> TemplateVerification:
    """1:1: scores listed pairs.

    Who is who, which the intervals depend on, follows from the genuine pairs: templates that a chain of them joins are of one person.

    Args:
        templates: float32 (T, D), L2-normalised, or zeros for templates that are never accepted.
        template_ids: Any numbers, from which groups of people are drawn, (T,).
        pairs: Genuine and impostor pairs.
        progress: Shows how far it is.
    """
    people = _joined(pairs, len(templates))
    listed = np.zeros(len(templates), np.bool_)
    listed[pairs.first] = listed[pairs.second] = True
    counts = np.bincount(people[listed], minlength=int(people.max()) + 1)
    # Named after their lowest number: the same in whatever order templates and pairs are listed.
    lowest = np.full(len(counts), np.iinfo(np.int64).max)
    np.minimum.at(lowest, people, template_ids)
    group_of = deal_people(counts, name_keys(map(str, lowest.tolist()), 0), min(NUM_GROUPS, int((counts > 0).sum())))
    with progress("Comparing", len(pairs.first)) as show:
        counted = count_listed_pairs(templates, pairs, group_of[people], show)
    all_pairs = AllPairs(counted, int((counts > 1).sum()))
    impostors = all_pairs.curve.num_impostor
    return TemplateVerification(
        all_pairs.curve,
        all_pairs.curve.auc(),
        all_pairs.equal_error_rate(),
        {far: all_pairs.at_far(far) for far in FARS if carried(far, impostors)},
        int(listed.sum()),
        int((counts > 0).sum()),
    )


def _joined(pairs: ListedPairs, num_templates: int) -> npt.NDArray[np.int64]:
    """The person of each template, from 0."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    edges = (pairs.first[pairs.is_same], pairs.second[pairs.is_same])
    graph = coo_matrix((np.ones(len(edges[0]), np.int8), edges), (num_templates, num_templates))
    return np.asarray(connected_components(graph, directed=False)[1], np.int64)


def identify_templates(
    templates: Embeddings,
    galleries: Mapping[str, ListedTemplates],
    probes: ListedTemplates,
    progress: Progress = lambda text, total: nullcontext(lambda done: None),
) -> TemplateIdentification:
    """1:N: searches for every probe in every gallery; whose subject is not in it is a stranger there.

    Args:
        templates: float32 (T, D), L2-normalised, or zeros for templates that are never found.
        galleries: By name, at least one; each with one template for each subject.
        probes: What is searched for.
        progress: Shows how far it is.

    Raises:
        FacelitError: No probe's subject is in a gallery.
    """
    subjects = np.unique(np.concatenate([probes.subjects, *(gallery.subjects for gallery in galleries.values())]))
    people = np.searchsorted(subjects, probes.subjects)
    counts = np.bincount(people, minlength=len(subjects))
    group_of = deal_people(counts, name_keys(map(str, subjects.tolist()), 0), min(NUM_GROUPS, len(subjects)))
    found: dict[str, SearchFigures] = {}
    figures: dict[str, GalleryFigures] = {}
    for name, gallery in galleries.items():
        with progress(f"Searching {name}", len(people)) as show:
            enrolled = np.searchsorted(subjects, gallery.subjects)
            outcomes = search_gallery(templates[probes.templates], people, templates[gallery.templates], enrolled, show)
        if not len(outcomes.rank):
            raise FacelitError(
                f"gallery {name}: none of the {len(people):,} probes is of a subject in it. Do the files belong together?"
            )
        found[name] = one = SearchFigures(outcomes, group_of)
        points = ((fpir, one.at_fpir(fpir)) for fpir in FPIRS)
        figures[name] = GalleryFigures(
            len(gallery.templates),
            one.num_mated,
            one.num_strangers,
            {k: one.rank(k) for k in RANKS},
            {fpir: point for fpir, point in points if point is not None},
            *one.open_set_curve(),
        )
    tpir = {}
    for fpir in FPIRS:
        estimates = [point[1] for one in found.values() if (point := one.tpir_estimate(fpir)) is not None]
        if len(estimates) == len(found):
            tpir[fpir] = mean_rate(estimates)
    ranks = {k: mean_rate([one.rank_estimate(k) for one in found.values()]) for k in RANKS}
    return TemplateIdentification(figures, ranks, tpir)
