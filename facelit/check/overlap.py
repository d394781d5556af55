"""People of a verification set who are in a training set too, found by their faces."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from facelit.check.faces import Embed, Faces, embed_groups, mean_of, usable_rows
from facelit.check.near_copies import Embeddings, Rows
from facelit.check.verification_set import VerificationSet
from facelit.pictures.findings import Finding, Item, Picture
from facelit.storage.base import ImageStore

THRESHOLD = 0.5
"""Cosine of two people's means from which they count as one, where a set has too few people to measure it on."""
STRANGERS = 0.99
"""The share of a set's people that its own threshold takes for nobody else of the set."""

_ENOUGH_PEOPLE = 100
_BLOCK = 2_048
"""So many means are compared with as many others at a time: 16 MB of scores."""


class Overlap(NamedTuple):
    """A training set's identities beside the people of a verification set whom they look most like.

    Attributes:
        path: The verification set, as the user named it.
        store: Its images.
        names: Its people; of a `.bin`, its images.
        pictures: A row of `store` for each of them, int64.
        threshold: The score from which two count as one person.
        measured: Whether `threshold` comes from the set's own people.
        person: For each identity the most similar one, int64, shape (num_identities,).
        scores: And their cosine, float32; -inf where the identity has no crop to compare.
    """

    path: str
    store: ImageStore
    names: Sequence[str]
    pictures: Rows
    threshold: float
    measured: bool
    person: Rows
    scores: npt.NDArray[np.float32]

    @property
    def found(self) -> npt.NDArray[np.bool_]:
        """The identities that count as people of the set."""
        return np.asarray(self.scores >= self.threshold)


def find_overlap(faces: Faces, one: VerificationSet, embed: Embed, threshold: float | None) -> Overlap | None:
    """Compares the mean embedding of each identity with that of each person of a verification set.

    The threshold, where none is given, is measured on the set: 99 % of its people have a lower score with everybody else in it, so
    that about one stranger in a hundred is mistaken for somebody in the set. Sets of fewer than 100 people, and a `.bin`, which has
    none, get 0.5.

    Args:
        faces: Of the training set.
        one: The verification set.
        embed: The same network.
        threshold: From which score two count as one person.

    Returns:
        None where the set has no crops to embed.
    """
    if one.store is None or one.scan is None:
        return None
    rows = usable_rows(one.scan, one.rows)
    if not len(rows):
        return None
    has_people = len(one.people) > 0
    names, pictures, means = [], [], []
    groups = one.store.labels[rows] if has_people else np.arange(len(rows))
    for group, own, embeddings in embed_groups(one.store, rows, groups, embed):
        mean, scores = mean_of(embeddings)
        means.append(mean)
        pictures.append(int(own[scores.argmax()]))
        names.append(one.store.identities[group] if has_people else one.store.name(int(own[0])))
    people = np.stack(means)
    measured = threshold is None and has_people and len(people) >= _ENOUGH_PEOPLE
    if threshold is None:
        threshold = strangers_threshold(people) if measured else THRESHOLD
    person = np.zeros(len(faces.means), np.int64)
    scores = np.full(len(faces.means), -np.inf, np.float32)
    known = np.flatnonzero(faces.central >= 0)
    person[known], scores[known] = nearest(faces.means[known], people)
    return Overlap(one.path, one.store, names, np.array(pictures), threshold, measured, person, scores)


def strangers_threshold(people: Embeddings) -> float:
    """The score that 99 % of people stay below with everybody else among them.

    Some may be one person under two names (LFW has some thirty such pairs, which lift this score from 0.53 to 0.64): it is not taken to
    be higher than where a Gumbel distribution, that of the highest of many scores, through the scores' median and 90th percentile has it.
    """
    _, scores = nearest(people, people, is_same_set=True)
    median, high, highest = np.quantile(scores, [0.5, 0.9, STRANGERS])
    at_median, at_high, at_highest = (-math.log(-math.log(share)) for share in (0.5, 0.9, STRANGERS))
    return float(min(highest, median + (high - median) * (at_highest - at_median) / (at_high - at_median)))


def nearest(ones: Embeddings, others: Embeddings, is_same_set: bool = False) -> tuple[Rows, npt.NDArray[np.float32]]:
    """For each embedding the most similar of others, block by block.

    Args:
        ones: (N, D), normalised.
        others: (M, D), normalised; M is at least 1, or 2 in the same set.
        is_same_set: Whether both are the same, and none may be its own nearest.

    Returns:
        Its number, int64 (N,), and the cosine, float32 (N,).
    """
    best = np.zeros(len(ones), np.int64)
    scores = np.full(len(ones), -np.inf, np.float32)
    for top in range(0, len(ones), _BLOCK):
        bottom = min(top + _BLOCK, len(ones))
        for left in range(0, len(others), _BLOCK):
            block = ones[top:bottom] @ others[left : left + _BLOCK].T
            if is_same_set and top == left:
                np.fill_diagonal(block, -np.inf)
            columns = block.argmax(1)
            values = block[np.arange(len(block)), columns]
            is_better = values > scores[top:bottom]
            best[top:bottom][is_better] = left + columns[is_better]
            scores[top:bottom][is_better] = values[is_better]
    return best, scores


class Match(NamedTuple):
    """An identity, and the person of a set whom it looks like."""

    label: int
    overlap: Overlap

    @property
    def score(self) -> float:
        """The cosine of their means."""
        return float(self.overlap.scores[self.label])

    @property
    def name(self) -> str:
        """The person's name."""
        return self.overlap.names[int(self.overlap.person[self.label])]


def matches_of(overlaps: Sequence[Overlap]) -> list[list[Match]]:
    """The matches of each identity that was found in a set, the most alike identity and match first."""
    by_label: dict[int, list[Match]] = {}
    for one in overlaps:
        for label in np.flatnonzero(one.found).tolist():
            by_label.setdefault(label, []).append(Match(label, one))
    for matches in by_label.values():
        matches.sort(key=lambda match: -match.score)
    return sorted(by_label.values(), key=lambda matches: -matches[0].score)


def overlap_finding(store: ImageStore, faces: Faces, overlaps: Sequence[Overlap]) -> Finding:
    """As the report, the table and the contact sheet have it: an identity an item."""
    found = matches_of(overlaps)
    counts = np.bincount(store.labels, minlength=len(store.identities))
    limits = ", ".join(f"{one.threshold:.2f} with {one.path}" for one in overlaps)
    explanation = (
        f"Identities whose mean embedding is as close as one person's to that of somebody in a verification set (cosine at least"
        f" {limits}). See exclude_identities."
    )

    def item(number: int) -> Item:
        matches = found[number]
        label, best = matches[0].label, matches[0]
        entry = {
            "identity": store.identities[label],
            "images": int(counts[label]),
            "verification": [
                {"set": match.overlap.path, "name": match.name, "score": round(match.score, 4)} for match in matches
            ],
        }
        text = f"{store.identities[label]} ~ {best.name}: {best.score:.2f}"
        return Item(entry, text, _pictures(store, faces, best))

    images = int(counts[[matches[0].label for matches in found]].sum())
    return Finding(
        "in_verification_by_face", "In a verification set by face", explanation, images, len(found), len(found), item
    )


def borderline_findings(store: ImageStore, faces: Faces, overlaps: Sequence[Overlap], pairs: int) -> list[Finding]:
    """The pairs nearest to the threshold, on either side of it: by these it is set by eye."""
    both = [Match(label, one) for one in overlaps for label in np.flatnonzero(np.isfinite(one.scores)).tolist()]
    both.sort(key=lambda match: abs(match.score - match.overlap.threshold))
    above = [match for match in both if match.score >= match.overlap.threshold]
    below = [match for match in both if match.score < match.overlap.threshold]
    counts = np.bincount(store.labels, minlength=len(store.identities))

    def finding(title: str, explanation: str, matches: list[Match]) -> Finding:
        labels = np.unique([match.label for match in matches]).astype(np.int64)
        images = int(counts[labels].sum())
        return Finding(
            "borderline", title, explanation, images, len(labels), len(matches),
            lambda number: Item({}, "", _pictures(store, faces, matches[number])),
        )  # fmt: skip

    return [
        finding(
            "Just above the threshold",
            "Counted as one person. Two people in a frame: raise --threshold.",
            above[:pairs],
        ),
        finding(
            "Just below the threshold",
            "Counted as two people. One person in a frame: lower --threshold.",
            below[:pairs],
        ),
    ]


def _pictures(store: ImageStore, faces: Faces, match: Match) -> list[Picture]:
    row = match.overlap.pictures[match.overlap.person[match.label]]
    return [
        Picture(store, int(faces.central[match.label]), f"{match.score:.3f}"),
        Picture(match.overlap.store, int(row), "verification set"),
    ]
