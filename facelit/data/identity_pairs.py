"""Verification pairs over one's own people: a folder of identities instead of a pairs file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import numpy as np

from facelit.data.sources import VerificationSource
from facelit.errors import FacelitError
from facelit.storage.images import Crop, decode_crop
from facelit.storage.open import open_store
from facelit.verification.pair_drawing import MOST_PAIRS, draw_pairs, most_folds, name_keys


class IdentityPairs(VerificationSource):
    """Pairs over a folder of identities, `root/<identity>/<image>`, a pack of it, or an InsightFace set.

    Folds have no identity in common, so impostor pairs are of two identities of one fold. Which pairs are drawn depends on the
    names of identities and images and on the seed alone: the same folder gives the same pairs on every machine, and so does
    a pack of it. A sample is balanced: each identity of a fold gives one genuine pair before any gives a second, and
    each two identities one impostor pair.

    Args:
        root: The folder.
        genuine: How many genuine pairs at most, shared out evenly over the folds; or "all".
        impostors: How many impostor pairs at most; "equal" for as many as there are genuine ones; "all" for all within each fold.
        folds: How many folds.
        seed: Draws other pairs, and other folds.
        resize: Resize images of another size to 112x112 instead of refusing them.

    Raises:
        FacelitError: The folder is missing or damaged, or has too few identities, or too few images of them, for the folds; or
            the numbers leave a fold without pairs, or make more than 50 million.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        genuine: int | Literal["all"] = "all",
        impostors: int | Literal["all", "equal"] = "equal",
        folds: int = 10,
        seed: int = 0,
        resize: bool = False,
    ) -> None:
        self.root = Path(root)
        self.resize = resize
        if not self.root.is_dir():
            raise FacelitError(
                f"verification folder not found: {self.root} (option root of data.verification). Point it at"
                " root/<identity>/<image>, or train without verification: --data.verification null"
            )
        self._store = open_store(self.root)
        counts = np.bincount(self._store.labels, minlength=len(self._store.identities))
        _check_options(genuine, impostors, folds)
        _check_people(self.root, counts, folds)
        image_names = (self._store.name(row) for row in range(len(self._store)))
        try:
            pairs = draw_pairs(
                self._store.labels,
                name_keys(self._store.identities, seed),
                name_keys(image_names, seed),
                genuine,
                impostors,
                folds,
            )
        except ValueError:
            raise FacelitError(
                f"{self.root}: genuine={genuine} and impostors={impostors} make more than {MOST_PAIRS:,} pairs. Ask for a number of"
                " them; `facelit evaluate` compares all."
            ) from None
        self._rows, numbers = np.unique(np.concatenate([pairs.first, pairs.second]), return_inverse=True)
        first, second = numbers.astype(np.int64).reshape(2, -1)
        names = [self._store.place(int(row)) for row in self._rows]
        super().__init__(names, first, second, pairs.is_same, pairs.folds)

    def image(self, number: int) -> Crop:
        """Reads crop `number`, uint8 RGB (112, 112, 3)."""
        row = int(self._rows[number])
        return decode_crop(self._store.encoded(row), lambda: self._store.place(row), self.resize)


def _check_options(genuine: Any, impostors: Any, folds: int) -> None:
    if folds < 2:
        raise FacelitError(
            f"folds={folds}: verification needs at least two, as each one's threshold is chosen on the others (option folds of"
            " data.verification)."
        )
    for name, value, words in (("genuine", genuine, ("all",)), ("impostors", impostors, ("all", "equal"))):
        if isinstance(value, str) and value not in words:
            raise FacelitError(f"{name}={value}: a number of pairs, or {' or '.join(words)}.")
        if not isinstance(value, str) and value < folds:
            raise FacelitError(f"{name}={value}: each of the {folds} folds needs a pair at least. Ask for more pairs.")


def _check_people(root: Path, counts: np.ndarray[Any, np.dtype[np.int64]], folds: int) -> None:
    """Each fold needs a genuine and an impostor pair."""
    people, several = int((counts >= 1).sum()), int((counts >= 2).sum())
    if people < 2:
        raise FacelitError(
            f"{root}: found {people or 'no'} identit{'y' if people == 1 else 'ies'} with images; pairs need several. The layout"
            " is root/<identity>/<image> with .jpg, .png, .webp or other images."
        )
    if not several:
        raise FacelitError(
            f"{root}: each of its {people:,} identities has one image, and a genuine pair takes two. Add images of the same"
            " people."
        )
    if folds > most_folds(counts):
        most = most_folds(counts)
        way_out = f"Ask for at most {most} (option folds), or add people." if most >= 2 else "Add people."
        raise FacelitError(
            f"{root}: {people:,} identities, {several:,} of them with two images or more, are too few for {folds} folds: each"
            f" takes two identities of its own, one of them with two images. {way_out}"
        )
