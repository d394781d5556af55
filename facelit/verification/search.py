"""Identification: each photo searched for in a gallery of people, with and without its own person in it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from facelit.verification.intervals import Estimate, Rate
from facelit.verification.protocol import MIN_IMPOSTORS

Embeddings = npt.NDArray[np.float32]
Integers = npt.NDArray[np.integer[Any]]
Booleans = npt.NDArray[np.bool_]

NUM_PARTS = 5
"""Parts of the people, each of which is held out as strangers once."""

FEWEST_PEOPLE = 10
"""Fewer cannot be held out in parts of two."""

_SCORES = 1 << 22
"""Held at a time."""

_NEVER = 1 << 40
"""Rank of what is not found at all."""


class Searches(NamedTuple):
    """What each image found among the others' templates, part by part of the people.

    Attributes:
        own: Cosine similarity to the own person's template, float32 (N,).
        best: The best one to anybody else's of each part, float32 (N, parts); minus infinity where there is nobody.
        above: How many others of each part score at least `own`, int64 (N, parts).
        mated: Whether the image is a search for its own person: it is not in the template. bool (N,).
    """

    own: Embeddings
    best: Embeddings
    above: npt.NDArray[np.int64]
    mated: Booleans


class OpenSetPoint(NamedTuple):
    """TPIR at a FPIR: the share of searches for somebody enrolled that find them, first and at or above the threshold.

    The threshold is the lowest at which at most `target` of the searches for strangers find anybody; `accepted` of them do.
    ISO/IEC 19795-1:2021; Grother, Ngan & Hanaoka: FRVT Part 2, NISTIR 8271 (1 - FNIR at rank 1).
    """

    target: float
    threshold: float
    tpir: Rate
    accepted: int


def choose_enrolled(people: Integers, image_keys: npt.NDArray[np.uint64], enrolled: int) -> Booleans:
    """Which images make up the templates: of each person the first ones by their keys; all but one where there are too few.

    Args:
        people: Person of each image, (N,).
        image_keys: (N,).
        enrolled: Images of each person, at least 1.
    """
    order = np.lexsort((image_keys, people))
    _, starts, counts = np.unique(people[order], return_index=True, return_counts=True)
    place = np.arange(len(people)) - np.repeat(starts, counts)
    chosen = np.zeros(len(people), np.bool_)
    chosen[order] = place < np.repeat(np.maximum(1, np.minimum(enrolled, counts - 1)), counts)
    return chosen


def search_people(
    embeddings: Embeddings,
    people: Integers,
    enrolled: Booleans,
    part_of: Integers,
    show: Callable[[int], None] = lambda images: None,
) -> Searches:
    """Searches for every image among the templates, the normalised means of the enrolled images.

    Args:
        embeddings: float32 (N, D), L2-normalised.
        people: Person of each image, integers from 0 without gaps, (N,).
        enrolled: See `choose_enrolled`.
        part_of: Part of each person, from 0, (num_people,); see `NUM_PARTS`.
        show: Told how many images are done.
    """
    num_people, parts = len(part_of), int(part_of.max()) + 1
    templates = np.zeros((num_people, embeddings.shape[1]))
    np.add.at(templates, people[enrolled], embeddings[enrolled])
    templates /= np.linalg.norm(templates, axis=1, keepdims=True)
    order = np.argsort(part_of, kind="stable")
    place = np.empty(num_people, np.int64)
    place[order] = np.arange(num_people)
    gallery = templates[order].astype(np.float32)
    edges = np.searchsorted(part_of[order], np.arange(parts))
    count = len(embeddings)
    own, best = np.empty(count, np.float32), np.empty((count, parts), np.float32)
    above = np.empty((count, parts), np.int64)
    step = max(1, _SCORES // num_people)
    for start in range(0, count, step):
        block = slice(start, min(start + step, count))
        scores = embeddings[block] @ gallery.T
        rows, columns = np.arange(len(scores)), place[people[block]]
        own[block] = scores[rows, columns]
        scores[rows, columns] = -np.inf
        best[block] = np.maximum.reduceat(scores, edges, axis=1)
        above[block] = np.add.reduceat(scores >= own[block, None], edges, axis=1, dtype=np.int64)
        show(block.stop)
    counts = np.bincount(people, minlength=num_people)
    return Searches(own, best, above, ~enrolled & (counts[people] > 1))


class Outcomes(NamedTuple):
    """What searches came to: arrays of one entry for each search.

    Attributes:
        rank: Of their own person, counted from 1, for searches for somebody enrolled; equal scores count against them. int64 (M,).
        ranked_person: Whom these search for, (M,).
        found: The score of the own person where that is first, minus infinity elsewhere, (K,): M, or several times where the gallery
            varies.
        found_person: (K,).
        strangers: The best score of each search for somebody who is not enrolled, (S,).
        stranger_person: (S,).
    """

    rank: npt.NDArray[np.int64]
    ranked_person: Integers
    found: Embeddings
    found_person: Integers
    strangers: Embeddings
    stranger_person: Integers


class SearchFigures:
    """Closed-set and open-set figures, with intervals.

    Args:
        outcomes: What the searches came to.
        group_of: Group of each person, each of which is left out for the intervals, (num_people,).
    """

    def __init__(self, outcomes: Outcomes, group_of: Integers) -> None:
        self.outcomes = outcomes
        self._ranked_group = group_of[outcomes.ranked_person]
        self._found_group = group_of[outcomes.found_person]
        self._stranger_group = group_of[outcomes.stranger_person]

    @property
    def num_mated(self) -> int:
        """Searches for somebody who is enrolled."""
        return len(self.outcomes.rank)

    @property
    def num_strangers(self) -> int:
        """Searches for somebody who is not enrolled."""
        return len(self.outcomes.strangers)

    def rank_estimate(self, k: int) -> Estimate:
        """Share of searches whose person is among the first `k`."""
        found, groups = self.outcomes.rank <= k, self._ranked_group
        without = {group: float(found[groups != group].mean()) for group in _kept_groups(groups)}
        people = len(np.unique(self.outcomes.ranked_person))
        return Estimate(float(found.mean()), without, self.num_mated, people)

    def rank(self, k: int) -> Rate:
        """`rank_estimate` with its interval."""
        return self.rank_estimate(k).rate()

    def tpir_estimate(self, target: float) -> tuple[float, Estimate] | None:
        """The threshold of a FPIR, and TPIR there; None where fewer than `MIN_IMPOSTORS` strangers found would stand behind it."""
        found, strangers = self.outcomes.found, self.outcomes.strangers
        if math.floor(target * self.num_strangers + 1e-9) < MIN_IMPOSTORS:
            return None
        threshold = _lowest(strangers, target)
        without = {}
        for group in _kept_groups(self._found_group):
            limit = _lowest(strangers[self._stranger_group != group], target)
            without[group] = float((found[self._found_group != group] >= limit).mean())
        people = len(np.unique(self.outcomes.found_person))
        return threshold, Estimate(float((found >= threshold).mean()), without, self.num_mated, people)

    def at_fpir(self, target: float) -> OpenSetPoint | None:
        """The operating point of a FPIR; None as for `tpir_estimate`."""
        point = self.tpir_estimate(target)
        if point is None:
            return None
        threshold, estimate = point
        accepted = int((self.outcomes.strangers >= threshold).sum())
        return OpenSetPoint(target, threshold, estimate.rate(), accepted)

    def open_set_curve(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """FPIR, rising from 0, and the highest TPIR at each, float64 (n,) both: thresholds lie just above a stranger's score."""
        found, strangers = np.sort(self.outcomes.found), np.sort(self.outcomes.strangers)
        limits = np.append(np.unique(strangers[np.isfinite(strangers)])[::-1], -np.inf)
        fpir = 1 - np.searchsorted(strangers, limits, side="right") / max(1, len(strangers))
        return fpir, 1 - np.searchsorted(found, limits, side="right") / len(found)


class Identification(SearchFigures):
    """Figures of `search_people`, each part of whose people is held out as strangers once.

    Args:
        searches: What `search_people` found.
        people: Person of each image, (N,).
        part_of: Part of each person, (num_people,).
        group_of: Group of each person, each of which is left out for the intervals, (num_people,).
    """

    def __init__(self, searches: Searches, people: Integers, part_of: Integers, group_of: Integers) -> None:
        self._parts = parts = searches.best.shape[1]
        found, strangers = [], []
        for part in range(parts):
            others = np.arange(parts) != part
            is_stranger = part_of[people] == part
            rows = np.flatnonzero(searches.mated & ~is_stranger)
            first = searches.above[np.ix_(rows, others)].sum(axis=1) == 0
            found.append((np.where(first, searches.own[rows], -np.inf), people[rows]))
            rows = np.flatnonzero(is_stranger)
            strangers.append((searches.best[np.ix_(rows, others)].max(axis=1, initial=-np.inf), people[rows]))
        mated = np.flatnonzero(searches.mated)
        columns = [np.concatenate(column) for kind in (found, strangers) for column in zip(*kind, strict=True)]
        super().__init__(Outcomes(1 + searches.above[mated].sum(axis=1), people[mated], *columns), group_of)

    def tpir_estimate(self, target: float) -> tuple[float, Estimate] | None:
        """None, too, where people are too few to hold parts of them out."""
        return None if self._parts < NUM_PARTS else super().tpir_estimate(target)


def search_gallery(
    probes: Embeddings,
    probe_people: Integers,
    gallery: Embeddings,
    gallery_people: Integers,
    show: Callable[[int], None] = lambda probes: None,
) -> Outcomes:
    """Searches for each probe in a gallery with one template for each person; whose person is not in it is a stranger.

    A template or probe of zeros, of which no image is left, is never found, and finds nobody.

    Args:
        probes: float32 (N, D), L2-normalised or zeros.
        probe_people: (N,).
        gallery: float32 (G, D), L2-normalised or zeros, at least 1.
        gallery_people: (G,), each of them once.
        show: Told how many probes are done.
    """
    order = np.argsort(gallery_people)
    gallery, listed = gallery[order], gallery_people[order]
    place = np.minimum(np.searchsorted(listed, probe_people), len(listed) - 1)
    mated = listed[place] == probe_people
    nobody, blank = (~np.asarray(rows.any(axis=1)) for rows in (gallery, probes))
    count = len(probes)
    own, best = np.full(count, -np.inf, np.float32), np.empty(count, np.float32)
    above = np.zeros(count, np.int64)
    step = max(1, _SCORES // len(gallery))
    for start in range(0, count, step):
        block = slice(start, min(start + step, count))
        scores = probes[block] @ gallery.T
        scores[:, nobody] = scores[blank[block]] = -np.inf
        rows = np.flatnonzero(mated[block])
        columns = place[block][rows]
        own[block][rows] = scores[rows, columns]
        scores[rows, columns] = -np.inf
        best[block] = scores.max(axis=1)
        above[block] = (scores >= own[block, None]).sum(axis=1)
        show(block.stop)
    above[np.isneginf(own)] = _NEVER  # and not last of few
    found = np.where(above == 0, own, -np.inf).astype(np.float32)
    return Outcomes(
        1 + above[mated], probe_people[mated], found[mated], probe_people[mated], best[~mated], probe_people[~mated]
    )


def _kept_groups(groups: Integers) -> list[int]:
    """Groups without which there is something left."""
    present = np.unique(groups).tolist()
    return present if len(present) > 1 else []


def _lowest(strangers: Embeddings, target: float) -> float:
    """The lowest threshold at which at most that share is accepted."""
    allowed = math.floor(target * len(strangers) + 1e-9)
    falling = np.sort(strangers)[::-1]
    return float(np.nextafter(falling[allowed], np.float32(np.inf))) if allowed < len(falling) else -1.0
