"""Identification: each photo searched for in a gallery of people, with and without its own person in it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from facelit.verification.intervals import Rate, rate_with_interval
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


class Identification:
    """Closed-set and open-set figures, with intervals.

    Args:
        searches: What `search_people` found.
        people: Person of each image, (N,).
        part_of: Part of each person, (num_people,).
        group_of: Group of each person, each of which is left out for the intervals, (num_people,).
    """

    def __init__(self, searches: Searches, people: Integers, part_of: Integers, group_of: Integers) -> None:
        self.searches = searches
        self.num_mated = int(searches.mated.sum())
        self._groups = group_of[people]
        self._people = people
        self._rank = 1 + searches.above.sum(axis=1)
        parts = searches.best.shape[1]
        genuine, strangers = [], []
        for part in range(parts):
            others = np.arange(parts) != part
            is_stranger = part_of[people] == part
            rows = np.flatnonzero(searches.mated & ~is_stranger)
            first = searches.above[np.ix_(rows, others)].sum(axis=1) == 0
            genuine.append((np.where(first, searches.own[rows], -np.inf), rows))
            rows = np.flatnonzero(is_stranger)
            strangers.append((searches.best[np.ix_(rows, others)].max(axis=1, initial=-np.inf), rows))
        self._genuine, self._genuine_rows = (np.concatenate(column) for column in zip(*genuine, strict=True))
        self._strangers, self._stranger_rows = (np.concatenate(column) for column in zip(*strangers, strict=True))

    @property
    def num_strangers(self) -> int:
        """Searches for somebody who is not enrolled."""
        return len(self._strangers)

    def rank(self, k: int) -> Rate:
        """Share of searches whose person is among the first `k`; equal scores count against them."""
        rows = np.flatnonzero(self.searches.mated)
        found, groups = self._rank[rows] <= k, self._groups[rows]
        without = [float(found[groups != group].mean()) for group in self._kept_groups(groups)]
        return rate_with_interval(float(found.mean()), without, len(rows), len(np.unique(self._people[rows])))

    def at_fpir(self, target: float) -> OpenSetPoint | None:
        """The operating point of a FPIR; None where fewer than `MIN_IMPOSTORS` strangers found would stand behind it."""
        allowed = math.floor(target * self.num_strangers + 1e-9)
        if self.searches.best.shape[1] < NUM_PARTS or allowed < MIN_IMPOSTORS:
            return None
        threshold = _lowest(self._strangers, target)
        groups, strangers = self._groups[self._genuine_rows], self._groups[self._stranger_rows]
        without = []
        for group in self._kept_groups(groups):
            limit = _lowest(self._strangers[strangers != group], target)
            without.append(float((self._genuine[groups != group] >= limit).mean()))
        tpir = float((self._genuine >= threshold).mean())
        behind = len(np.unique(self._people[self._genuine_rows]))
        accepted = int((self._strangers >= threshold).sum())
        return OpenSetPoint(target, threshold, rate_with_interval(tpir, without, self.num_mated, behind), accepted)

    @staticmethod
    def _kept_groups(groups: Integers) -> list[int]:
        """Groups without which there is something left."""
        present = np.unique(groups).tolist()
        return present if len(present) > 1 else []


def _lowest(strangers: Embeddings, target: float) -> float:
    """The lowest threshold at which at most that share is accepted."""
    allowed = math.floor(target * len(strangers) + 1e-9)
    falling = np.sort(strangers)[::-1]
    return float(np.nextafter(falling[allowed], np.float32(np.inf))) if allowed < len(falling) else -1.0
