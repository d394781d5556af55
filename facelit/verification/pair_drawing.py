"""Pairs over labelled images, drawn by hashes of their names: the same on every machine, in whatever order a folder is listed."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]
Keys = npt.NDArray[np.uint64]

MOST_PAIRS = 50_000_000
"""A list of pairs is 25 bytes a pair; `facelit evaluate` compares more without listing them."""

_ROUNDS = 4


class Pairs(NamedTuple):
    """Pairs of images.

    `first` and `second` are image numbers, int64 (num_pairs,); `is_same` is True for genuine pairs, bool (num_pairs,); `folds`
    counts from 1, int64 (num_pairs,), rising. In each fold the genuine pairs come first.
    """

    first: Counts
    second: Counts
    is_same: npt.NDArray[np.bool_]
    folds: Counts


def name_keys(names: Iterable[str], seed: int) -> Keys:
    """A number for each name, uint64: a hash of the name in Unicode's composed form (NFC) and the seed."""
    hashed = [
        hashlib.blake2b(
            unicodedata.normalize("NFC", name).encode("utf-8", "surrogateescape"),
            digest_size=8,
            salt=(seed % 2**64).to_bytes(8, "little"),
        ).digest()
        for name in names
    ]
    return np.frombuffer(b"".join(hashed), "<u8").astype(np.uint64)


def most_folds(counts: Counts) -> int:
    """How many folds the people can fill: each fold takes two people, one of whom has two images.

    Args:
        counts: Images of each person, (num_people,).
    """
    return int(min((counts >= 2).sum(), (counts >= 1).sum() // 2))


def deal_people(counts: Counts, keys: Keys, folds: int) -> Counts:
    """The fold of each person, counted from 0: dealt in the order of their keys, those with two images or more first.

    Args:
        counts: Images of each person, (num_people,).
        keys: Of the people, see `name_keys`.
        folds: How many, at most `most_folds(counts)`.

    Returns:
        int64 (num_people,).
    """
    order = np.lexsort((keys, counts < 2))
    fold_of = np.empty(len(counts), np.int64)
    fold_of[order] = np.arange(len(counts)) % folds
    return fold_of


def draw_pairs(
    people: npt.NDArray[np.integer[Any]],
    person_keys: Keys,
    image_keys: Keys,
    genuine: int | Literal["all"] = "all",
    impostors: int | Literal["all", "equal"] = "equal",
    folds: int = 10,
) -> Pairs:
    """Draws genuine and impostor pairs in folds that have no person in common.

    A sample is balanced: no person gives another genuine pair before everybody in the fold has given as many as they have,
    and likewise for the two people of an impostor pair. Numbers are shared out evenly over the folds, and are upper limits: a fold
    whose people have fewer pairs gives all of them.

    Args:
        people: Person of each image, integers from 0, (num_images,).
        person_keys: See `name_keys`, (num_people,).
        image_keys: Likewise, (num_images,).
        genuine: How many genuine pairs, or "all".
        impostors: How many impostor pairs; "equal" for as many as there are genuine ones in each fold; or "all" within each fold.
        folds: How many, at most `most_folds`.

    Raises:
        ValueError: There would be more than `MOST_PAIRS`.
    """
    counts = np.bincount(people, minlength=len(person_keys)).astype(np.int64)
    fold_of = deal_people(counts, person_keys, folds)
    order = np.lexsort((image_keys, person_keys[people], fold_of[people]))  # fold by fold, person by person
    by_person = np.lexsort((person_keys, fold_of))
    by_person = by_person[counts[by_person] > 0]
    starts = np.cumsum(counts[by_person]) - counts[by_person]
    parts: list[tuple[npt.NDArray[Any], ...]] = []
    total = 0
    for fold in range(folds):
        members = np.flatnonzero(fold_of[by_person] == fold)
        images = _Members(starts[members], counts[by_person[members]])
        for is_same in (True, False):
            wanted = genuine if is_same else len(parts[-1][0]) if impostors == "equal" else impostors
            if isinstance(wanted, int) and (is_same or impostors != "equal"):
                wanted = wanted // folds + (fold < wanted % folds)
            most = images.num_genuine() if is_same else images.num_impostor()
            total += most if wanted == "all" else min(most, int(wanted))
            if total > MOST_PAIRS:
                raise ValueError(f"more than {MOST_PAIRS:,} pairs")
            number = None if wanted == "all" else int(wanted)
            key = np.uint64(2 * fold + is_same)
            first, second = images.genuine(number, key) if is_same else images.impostors(number, key)
            kind, place = np.full(len(first), is_same), np.full(len(first), fold + 1, np.int64)
            parts.append((order[first], order[second], kind, place))
    return Pairs(*(np.concatenate(column) for column in zip(*parts, strict=True)))


class _Members(NamedTuple):
    """The people of one fold: where each one's images start, and how many there are."""

    starts: Counts
    counts: Counts

    def num_genuine(self) -> int:
        return int((self.counts * (self.counts - 1) // 2).sum())

    def num_impostor(self) -> int:
        return int(self.counts.sum() ** 2 - (self.counts**2).sum()) // 2

    def genuine(self, wanted: int | None, key: np.uint64) -> tuple[Counts, Counts]:
        able = np.flatnonzero(self.counts >= 2)
        sizes = self.counts[able] * (self.counts[able] - 1) // 2
        person, place = _draw_evenly(len(able), lambda rows: sizes[rows], wanted, key)
        low, high = _unrank(place)
        return self.starts[able[person]] + low, self.starts[able[person]] + high

    def impostors(self, wanted: int | None, key: np.uint64) -> tuple[Counts, Counts]:
        def sizes(couples: Counts) -> Counts:
            a, b = _unrank(couples)
            return self.counts[a] * self.counts[b]

        number = len(self.counts)
        couple, place = _draw_evenly(number * (number - 1) // 2, sizes, wanted, key)
        a, b = _unrank(couple)
        return self.starts[a] + place // self.counts[b], self.starts[b] + place % self.counts[b]


def _draw_evenly(
    groups: int, sizes_of: Callable[[Counts], Counts], wanted: int | None, key: np.uint64
) -> tuple[Counts, Counts]:
    """Members of groups, one of each group before a second of any: group numbers and places in them; all for None."""
    if wanted is not None and wanted <= groups:
        chosen = _permute(np.arange(wanted), np.full(wanted, groups), np.full(wanted, key))
        sizes = sizes_of(chosen)
        return chosen, _permute(np.zeros(wanted, np.int64), sizes, _mix(chosen.astype(np.uint64) + key))
    every = np.arange(groups)
    sizes = sizes_of(every)
    quota, spare = _quota(sizes, wanted)
    taken = np.minimum(sizes, quota)
    more = np.flatnonzero(sizes > quota)
    more = np.sort(more[_permute(np.arange(spare), np.full(spare, len(more)), np.full(spare, key))])
    taken[more] += 1
    chosen = np.repeat(every, taken)
    places = np.arange(len(chosen)) - np.repeat(np.cumsum(taken) - taken, taken)
    if wanted is None:
        return chosen, places
    return chosen, _permute(places, sizes[chosen], _mix(chosen.astype(np.uint64) + key))


def _quota(sizes: Counts, wanted: int | None) -> tuple[int, int]:
    """How many each group gives as far as it has them, and how many groups give one more."""
    if wanted is None or wanted >= sizes.sum():
        return int(sizes.max(initial=0)), 0
    low, high = 0, int(sizes.max())
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if np.minimum(sizes, middle).sum() <= wanted else (low, middle)
    return low, wanted - int(np.minimum(sizes, low).sum())


def _permute(values: Counts, sizes: Counts, keys: Keys) -> Counts:
    """Each value in [0, size) moved by a pseudorandom permutation of that range, which depends on the key.

    A Feistel network over the next even power of two, walked until the value is in range again.
    Black & Rogaway: Ciphers with Arbitrary Finite Domains, CT-RSA 2002, section 3 (cycle walking) and 4.
    """
    half = np.maximum(1, (np.ceil(np.log2(np.maximum(sizes, 2))).astype(np.uint64) + np.uint64(1)) // np.uint64(2))
    mask = (np.uint64(1) << half) - np.uint64(1)
    moved = values.astype(np.uint64)
    out = np.arange(len(values))
    while len(out):
        left, right = moved[out] >> half[out], moved[out] & mask[out]
        for number in range(_ROUNDS):
            mixed = _mix(right + _mix(keys[out] + np.uint64(number)))
            left, right = right, left ^ (mixed & mask[out])
        moved[out] = (left << half[out]) | right
        out = out[moved[out] >= sizes[out].astype(np.uint64)]
    return moved.astype(np.int64)


def _unrank(numbers: Counts) -> tuple[Counts, Counts]:
    """The pair (low, high), low < high, that stands at each place of (0, 1), (0, 2), (1, 2), (0, 3), ..."""
    high = ((1 + np.sqrt(1 + 8 * numbers.astype(np.float64))) / 2).astype(np.int64)
    high -= high * (high - 1) // 2 > numbers  # the root may be rounded either way
    high += (high + 1) * high // 2 <= numbers
    return numbers - high * (high - 1) // 2, high


def _mix(state: Keys) -> Keys:
    """SplitMix64's finaliser (Steele, Lea & Flood, OOPSLA 2014): each bit of the result depends on each bit of the state."""
    z = state + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
