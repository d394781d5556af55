"""The people and images that a training set should not share with a verification set."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from facelit.check.scan import Scan, scan_images
from facelit.errors import FacelitError
from facelit.storage.base import ImageStore
from facelit.storage.open import open_store
from facelit.storage.pairs_file import read_pairs
from facelit.storage.people import comparable, read_people

NO_PAIRS = "none"
"""Stands for the pairs file of a set that has none."""


class VerificationSet(NamedTuple):
    """One verification set, or a list of its people.

    Attributes:
        path: The path as the user gave it.
        people: The people's names; empty for a `.bin`, which has none.
        store: Its images; None for a list of names.
        rows: The images of `store` that belong to it, int64.
        scan: The facts about these images, in the order of `rows`.
    """

    path: str
    people: Sequence[str]
    store: ImageStore | None = None
    rows: npt.NDArray[np.int64] = np.empty(0, np.int64)
    scan: Scan | None = None


class BinStore(ImageStore):
    """The images of an InsightFace `.bin`, without names of people.

    Args:
        path: The file.

    Raises:
        FacelitError: The file does not exist or is damaged.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        from facelit.storage.pairs_bin import read_pairs_bin

        self.path = Path(path)
        self._images, _ = read_pairs_bin(self.path)
        self.identities: Sequence[str] = ["unknown"]
        self.labels = np.zeros(len(self._images), np.int32)

    def __reduce__(self) -> tuple[type[BinStore], tuple[Path]]:
        return BinStore, (self.path,)

    def encoded(self, row: int) -> bytes:
        """The encoded image's bytes."""
        return self._images[row]

    def name(self, row: int) -> str:
        """The image's number, counted from 0."""
        return f"{self.path.name}/{row}"


def read_verification_sets(against: Sequence[str], pairs: Sequence[str], jobs: int | None) -> list[VerificationSet]:
    """Reads verification sets, and the images of those that have any.

    Args:
        against: For each set a folder `root/<name>/<image>` (or a pack), an InsightFace `.bin`, or a `.txt` with names.
        pairs: Pairs files: of a folder only the people named in its pairs file count. Either a single file, for all folders (without
            a folder its names themselves count); or one per set, in the order of `against`, with "none" for a set without.
        jobs: The number of processes; by default one per core.

    Raises:
        FacelitError: One is missing or malformed, a folder has none of the people that its pairs file names, or there are more or
            fewer pairs files than sets.
    """
    if len(pairs) > 1 and len(pairs) != len(against):
        raise FacelitError(
            f"option pairs: {len(pairs)} pairs files for {len(against)} set(s) (option against). Name one for each set, in their"
            " order, and none for a set without: --against A B --pairs A/pairs.txt none"
        )
    named = {path: _people_of(path) for path in pairs if path != NO_PAIRS}
    of_each = list(pairs) if len(pairs) == len(against) else list(pairs) * len(against)
    if len(pairs) > 1:
        _refuse_pairs_of_lists(against, of_each)
    sets = [
        _read(path, named.get(own), own, jobs)
        for path, own in zip(against, of_each or [NO_PAIRS] * len(against), strict=True)
    ]
    if len(pairs) == 1 and named and not any(len(one.people) and one.store for one in sets):
        sets.append(VerificationSet(pairs[0], sorted(named[pairs[0]])))
    return sets


def _refuse_pairs_of_lists(against: Sequence[str], pairs: Sequence[str]) -> None:
    for path, own in zip(against, pairs, strict=True):
        if own != NO_PAIRS and Path(path).suffix.lower() in (".txt", ".bin"):
            raise FacelitError(f"{own} (option pairs): {path} is not a folder of people. Write none in its place.")


def _people_of(pairs: str) -> frozenset[str]:
    return frozenset(name for pair in read_pairs(pairs, option="pairs") for name, _ in (pair.first, pair.second))


def _read(path: str, named: frozenset[str] | None, pairs: str, jobs: int | None) -> VerificationSet:
    suffix = Path(path).suffix.lower()
    if suffix == ".txt":
        return VerificationSet(path, sorted(read_people(path, option="against")))
    if suffix == ".bin":
        images = BinStore(path)
        return VerificationSet(path, [], images, np.arange(len(images)), scan_images(images, jobs=jobs))
    if not Path(path).is_dir():
        raise FacelitError(
            f"verification set not found: {path} (option against). Name a folder root/<name>/<image>, an InsightFace .bin,"
            " or a .txt with one name per line."
        )
    store = open_store(path)
    wanted = None if named is None else set(map(comparable, named))
    is_of_set = np.array([wanted is None or comparable(name) in wanted for name in store.identities], np.bool_)
    people = [name for name, is_one in zip(store.identities, is_of_set.tolist(), strict=True) if is_one]
    if not len(store.identities):
        raise FacelitError(f"{path} (option against) has no image as root/<name>/<image>.")
    if not people:
        whose = f"in {pairs} (with several sets, --pairs takes a file for each, or none)"
        raise FacelitError(f"{path} (option against) has none of the people {whose}.")
    rows = np.flatnonzero(is_of_set[store.labels])
    return VerificationSet(path, people, store, rows, scan_images(store, rows, jobs))
