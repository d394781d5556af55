"""Deals images to batches: permutations, counts and swaps, in plain numpy, for a whole epoch at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]
Integers = npt.NDArray[np.integer[Any]]


def images_per_identity(labels: Integers) -> Indices:
    """The number of images of each identity, int64 (largest label + 1,)."""
    # In chunks, as bincount makes an int64 copy of its input.
    counts = np.zeros(int(labels.max()) + 1 if len(labels) else 0, np.int64)
    for start in range(0, len(labels), 2**20):
        counts += np.bincount(labels[start : start + 2**20].astype(np.int64, copy=False), minlength=len(counts))
    return counts


def shuffled(count: int, rng: np.random.Generator) -> Integers:
    """A random permutation of 0, ..., count - 1, the same in either dtype."""
    order: Integers = np.arange(count).astype(np.int32 if count < 2**31 else np.int64, copy=False)
    rng.shuffle(order)
    return order


def shuffled_by_identity(labels: Integers, rng: np.random.Generator) -> Integers:
    """Image numbers grouped by identity, those of each identity in random order."""
    order = shuffled(len(labels), rng)
    # Label and position in one number: numpy sorts such keys several times faster than it argsorts labels.
    keys = labels[order].astype(np.int64)
    keys <<= 32
    keys |= np.arange(len(order), dtype=order.dtype)
    keys.sort()
    keys &= 2**32 - 1
    return order[keys]


def pick(amounts: Indices, count: int, rng: np.random.Generator) -> Indices:
    """Draws `count` items without replacement from `amounts` of each kind; returns the number drawn of each, (kinds,)."""
    ends = np.cumsum(amounts)
    chosen = rng.choice(ends[-1], size=count, replace=False, shuffle=False)
    return np.bincount(np.searchsorted(ends, chosen, side="right"), minlength=len(amounts))


def _duplicates(identities: Integers) -> npt.NDArray[np.bool_]:
    """Whether an identity has occurred earlier in its row, bool (num_batches, per_batch)."""
    order = np.argsort(identities, axis=1, kind="stable")
    ordered = np.take_along_axis(identities, order, axis=1)
    found = np.zeros(identities.shape, np.bool_)
    np.put_along_axis(found, order[:, 1:], ordered[:, 1:] == ordered[:, :-1], axis=1)
    return found


def separate_duplicates(groups: Indices, identities: Integers, rng: np.random.Generator) -> None:
    """Swaps groups between batches until no batch holds an identity twice.

    A duplicate moves to a random batch without its identity (there is one, as no identity has more groups than there are
    batches), in exchange for a group of an identity that its own batch lacks. If there is no such group, the other batch must
    itself have duplicates, and gives up one of them: every swap leaves fewer duplicates.

    Args:
        groups: Group numbers, a permutation, (num_batches, per_batch); changed in place.
        identities: The identity of each group, ascending, (num_batches * per_batch,).
        rng: The random generator.
    """
    waiting = np.argwhere(_duplicates(identities[groups])).tolist()
    batch_of = np.empty(len(identities), np.int64)
    batch_of[groups] = np.arange(len(groups))[:, None]
    while waiting:
        batch, column = waiting[-1]
        mine = identities[groups[batch]]
        if np.count_nonzero(mine == mine[column]) == 1:
            waiting.pop()
            continue
        first, end = (np.searchsorted(identities, mine[column], side=side) for side in ("left", "right"))
        free = np.ones(len(groups), np.bool_)
        free[batch_of[first:end]] = False
        other = rng.choice(np.flatnonzero(free))
        theirs = identities[groups[other]]
        welcome = ~np.isin(theirs, mine)
        there = rng.choice(np.flatnonzero(welcome if welcome.any() else _duplicates(theirs[None])[0]))
        groups[batch, column], groups[other, there] = groups[other, there], groups[batch, column]
        batch_of[groups[batch, column]], batch_of[groups[other, there]] = batch, other
