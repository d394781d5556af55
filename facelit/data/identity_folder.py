"""Training images of identities, from a folder in any of the layouts that `facelit.storage` reads."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pytorch_lightning.utilities.rank_zero import rank_zero_info, rank_zero_warn

from facelit.data.sources import IdentitySource
from facelit.errors import FacelitError
from facelit.storage.base import CropStore
from facelit.storage.exclusion import read_excluded_images, rows_named
from facelit.storage.images import Crop, decode_crop
from facelit.storage.names import Names
from facelit.storage.open import open_store
from facelit.storage.people import comparable, read_people, same_people, unmatched

_SHOWN = 5
"""So many names that match nobody are listed."""


class IdentityFolder(IdentitySource):
    """A folder of identities: image files, packed shards, or an InsightFace set.

    Three layouts are told apart by what lies in the folder: `root/<identity>/<image>` (VGGFace2 and most others; images
    `.jpg`, `.jpeg`, `.png`, `.webp` and other images, in any case), what `facelit pack` wrote, and `train.rec` with `train.idx` (MXNet
    RecordIO). Identities are numbered in the order of their sorted names (in RecordIO: of their numbers), so the same folder
    always gives the same labels, and so does a pack of it.

    Args:
        root: The folder.
        min_images_per_identity: Identities with fewer images are left out.
        exclude_identities: A text file that names identities to leave out: one name a line, or a list in the form of
            LFW's `people.txt`. Keeps the people of a verification set out of the training set. Names are compared without
            regard to case, spaces and underscores, and the way accents are stored; how many match nobody is printed.
        exclude_folds: Where `exclude_identities` has folds (LFW's `people.txt`), exclude only those, counted from 1.
        resize: Resize images of another size to 112x112 instead of refusing them.
        exclude_images: A text file that names images to leave out, one `identity/file` per line, such as `facelit check
            --checkpoint` writes. Names that match nothing exactly are compared as identities' are. An identity with no other images is left out as well.
        identity_depth: In a folder of images, how many folders lead to an identity's: 2 for `root/F0001/MID1/<image>`, whose
            identity is called `F0001/MID1`. Packs and InsightFace sets list their own identities.

    Raises:
        FacelitError: The folder is missing or damaged, has no or one identity, or has images directly in it.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        min_images_per_identity: int = 1,
        exclude_identities: str | None = None,
        exclude_folds: list[int] | None = None,
        resize: bool = False,
        exclude_images: str | None = None,
        identity_depth: int = 1,
    ) -> None:
        self.root = Path(root)
        self.resize = resize
        if exclude_folds is not None and exclude_identities is None:
            raise FacelitError("exclude_folds needs exclude_identities: the list of people that has those folds.")
        excluded = read_people(exclude_identities, exclude_folds) if exclude_identities else frozenset()
        if not self.root.is_dir():
            raise FacelitError(
                f"training folder not found: {self.root} (option data.train). Point --data.train at root/<identity>/<image>, or"
                " try the built-in faces first: add --config configs/demo.yaml"
            )
        self.store = open_store(self.root, identity_depth)
        wanted = _images_left(self.store, exclude_images) if exclude_images else None
        labels = self.store.labels if wanted is None else self.store.labels[wanted]
        counts = np.bincount(labels, minlength=len(self.store.identities))
        kept = counts >= max(1, min_images_per_identity)
        if exclude_identities:
            kept &= ~_named(self.store, excluded, exclude_identities)
        if kept.sum() < 2:
            limits = {"exclude_identities": exclude_identities, "exclude_images": exclude_images}
            raise FacelitError(_too_few(self.store, kept, min_images_per_identity, limits))
        self._rows, self._labels, self._identities = _select(self.store, kept, wanted)
        self.excludes_images = wanted is not None

    def __getstate__(self) -> dict[str, Any]:
        """Without what the store has as well, and opens anew: a worker that is not forked gets a path, not arrays."""
        state = dict(self.__dict__)
        if self._rows is None:
            del state["_labels"], state["_identities"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._rows is None:
            self._labels, self._identities = self.store.labels, self.store.identities

    def prepare(self) -> None:
        """Says where several identities have one person's name: they would be pushed apart."""
        groups = same_people(self.identities)
        if groups:
            names = [" and ".join(self.identities[label] for label in group) for group in groups]
            rank_zero_warn(
                f"{self.root}: {len(groups):,} {'person has' if len(groups) == 1 else 'people have'} several identities, by their"
                f" names{_some(names)}; `facelit check` lists them. Training pushes them apart: put their images into one folder, or"
                " rename them if they are two people."
            )

    @property
    def labels(self) -> npt.NDArray[np.int32]:
        """Identity number of each image, shape (num_images,)."""
        return self._labels

    @property
    def identities(self) -> Sequence[str]:
        """Names of the identities: subfolders, or RecordIO's numbers."""
        return self._identities

    @property
    def rows(self) -> npt.NDArray[np.integer[Any]]:
        """Which images of the store these are, shape (num_images,)."""
        return np.arange(len(self.store)) if self._rows is None else self._rows

    def image(self, index: int) -> Crop:
        """Reads crop `index`, uint8 RGB (112, 112, 3)."""
        return decode_crop(self.encoded(index), self.name(index), self.resize)

    def read_into(self, index: int, out: Crop) -> None:
        """Decodes crop `index` straight into `out`."""
        row = self._row(index)
        decode_crop(self.store.encoded(row), lambda: self.store.place(row), self.resize, out)

    def encoded(self, index: int) -> bytes | memoryview:
        """The image file's bytes of image `index`."""
        return self.store.encoded(self._row(index))

    def name(self, index: int) -> str:
        """Path of image `index`, or file and record."""
        return self.store.place(self._row(index))

    def _row(self, index: int) -> int:
        return index if self._rows is None else int(self._rows[index])


def _named(store: CropStore, excluded: frozenset[str], path: str) -> npt.NDArray[np.bool_]:
    """Which identities a list names; a list that names none of them is a mistake."""
    wanted = set(map(comparable, excluded))
    named = np.array([comparable(name) in wanted for name in store.identities], np.bool_)
    if len(named) and not named.any():
        raise FacelitError(
            f"{path}: none of its {len(excluded):,} names (such as {min(excluded)[:80]!r}) is an identity of {store.path} (which has"
            f" {', '.join(list(store.identities[:2]))}, ...): nobody would be left out. VGGFace2's folders, say, are numbers."
        )
    strangers = unmatched(excluded, store.identities)
    rank_zero_info(
        f"{path}: leaves out {int(named.sum()):,} of {len(named):,} identities; {len(strangers):,} of its {len(excluded):,} names"
        f" match nobody{_some(strangers)}."
    )
    return named


def _some(names: Sequence[str]) -> str:
    return f" ({', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''})" if names else ""


def _images_left(store: CropStore, path: str) -> npt.NDArray[np.bool_]:
    """Which images a list does not name; a list that names none of them is a mistake."""
    names = read_excluded_images(path)
    rows, respelled, absent = rows_named(store, names)
    if not len(rows):
        example = f" (which has {store.name(0)}, ...)" if len(store) else ""
        raise FacelitError(
            f"{path}: no line of {len(names):,} (such as {min(names)[:80]!r}) names an image of {store.path}{example}. A line is identity/file."
        )
    spelling = [f"{listed} for {own}" for listed, own in respelled]
    rank_zero_info(
        f"{path}: leaves out {len(rows):,} of {len(store):,} images; {len(absent):,} of its {len(names):,} names match"
        f" no image{_some(absent)}"
        + (f", {len(spelling):,} match in another spelling{_some(spelling)}." if spelling else ".")
    )
    left = np.ones(len(store), np.bool_)
    left[rows] = False
    return left


def _select(
    store: CropStore, kept: npt.NDArray[np.bool_], wanted: npt.NDArray[np.bool_] | None
) -> tuple[npt.NDArray[np.integer[Any]] | None, npt.NDArray[np.int32], Sequence[str]]:
    """Rows of the store (None for all), labels from 0, and names of the identities that are kept."""
    if kept.all() and wanted is None:
        return None, store.labels, store.identities
    is_kept = kept[store.labels] if wanted is None else kept[store.labels] & wanted
    rows: npt.NDArray[np.integer[Any]] = np.flatnonzero(is_kept)
    if len(store) < 2**31:
        rows = rows.astype(np.int32)
    numbers = (np.cumsum(kept) - 1).astype(np.int32)
    names = Names.of(store.identities[int(number)] for number in np.flatnonzero(kept))
    return rows, numbers[store.labels[rows]], names


def _too_few(store: CropStore, kept: npt.NDArray[np.bool_], minimum: int, lists: dict[str, str | None]) -> str:
    """The message for a training set in which nobody can be told apart."""
    found = len(np.unique(store.labels))
    if found < 2:
        return (
            f"{store.path}: found {found or 'no'} identit{'y' if found == 1 else 'ies'} with images; training needs"
            " at least two. The layout is root/<identity>/<image> with .jpg, .png, .webp or other images."
        )
    limits = [f"min_images_per_identity={minimum}", *(f"{name}={path}" for name, path in lists.items() if path)]
    return (
        f"{store.path}: {int(kept.sum())} of {found} identities are left by {' and '.join(limits)}; training needs at least two."
        " Loosen the limits."
    )
