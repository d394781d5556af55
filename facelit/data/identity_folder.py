"""Training images from `root/<identity>/<image>`, the layout of VGGFace2 and of most training sets."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from facelit.data.people import read_people
from facelit.data.sources import IdentitySource
from facelit.errors import FacelitError
from facelit.storage.images import Crop, is_image, read_crop


class IdentityFolder(IdentitySource):
    """A folder with one subfolder per identity.

    Identities are numbered in the order of their sorted names, so the same folder always gives the same labels.

    Args:
        root: The folder; `root/<identity>/<image>`, images `.jpg`, `.jpeg`, `.png` or `.webp` in any case.
        min_images_per_identity: Identities with fewer images are left out.
        exclude_identities: A text file that names identities to leave out: one name a line, or a list in the form of
            LFW's `people.txt`. Keeps the people of a verification set out of the training set.
        exclude_folds: Where `exclude_identities` has folds (LFW's `people.txt`), exclude only those, counted from 1.
        resize: Resize images of another size to 112x112 instead of refusing them.

    Raises:
        FacelitError: The folder is missing, has no or one identity, or has images directly in it.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        min_images_per_identity: int = 1,
        exclude_identities: str | None = None,
        exclude_folds: list[int] | None = None,
        resize: bool = False,
    ) -> None:
        self.root = Path(root)
        self.resize = resize
        if exclude_folds is not None and exclude_identities is None:
            raise FacelitError("exclude_folds needs exclude_identities: the list of people that has those folds.")
        excluded = read_people(exclude_identities, exclude_folds) if exclude_identities else frozenset()
        files = _list_identities(self.root)
        if files and exclude_identities and excluded.isdisjoint(files):
            raise FacelitError(
                f"{exclude_identities}: none of its {len(excluded):,} names is an identity of {self.root} (which has"
                f" {', '.join(list(files)[:2])}, ...): nobody would be left out. VGGFace2's folders, say, are numbers."
            )
        kept = {name: images for name, images in files.items() if name not in excluded}
        kept = {name: images for name, images in kept.items() if len(images) >= max(1, min_images_per_identity)}
        if len(kept) < 2:
            raise FacelitError(_too_few(self.root, files, kept, min_images_per_identity, exclude_identities))
        self._identities = list(kept)
        self._files = [os.path.join(name, image) for name, images in kept.items() for image in images]
        self._labels = np.repeat(np.arange(len(kept)), [len(images) for images in kept.values()]).astype(np.int64)

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """Identity number of each image, shape (num_images,)."""
        return self._labels

    @property
    def identities(self) -> Sequence[str]:
        """Subfolder names, sorted."""
        return self._identities

    def image(self, index: int) -> Crop:
        """Reads crop `index`, uint8 RGB (112, 112, 3)."""
        return read_crop(self.name(index), self.resize)

    def name(self, index: int) -> str:
        """Path of image `index`."""
        return os.path.join(self.root, self._files[index])


def _list_identities(root: Path) -> dict[str, list[str]]:
    """Sorted image names of each sorted subfolder."""
    if not root.is_dir():
        raise FacelitError(
            f"training folder not found: {root} (option data.train). Point --data.train at root/<identity>/<image>, or"
            " try the built-in faces first: add --config configs/demo.yaml"
        )
    with os.scandir(root) as entries:
        folders: list[str] = []
        files: list[str] = []
        for entry in entries:
            (folders if entry.is_dir() else files).append(entry.name)
    loose = sorted(filter(is_image, files))
    if loose:
        raise FacelitError(
            f"{root}: {len(loose)} image(s) lie directly in the training folder ({', '.join(loose[:3])}...). Each image"
            " belongs in its identity's subfolder: root/<identity>/<image>."
        )
    listed = {}
    for folder in sorted(name for name in folders if not name.startswith(".")):
        images = sorted(filter(is_image, os.listdir(root / folder)))
        if images:
            listed[folder] = images
    return listed


def _too_few(
    root: Path, files: dict[str, list[str]], kept: dict[str, list[str]], minimum: int, excluded: str | None
) -> str:
    """The message for a training set in which nobody can be told apart."""
    if len(files) < 2:
        return (
            f"{root}: found {len(files) or 'no'} identit{'y' if len(files) == 1 else 'ies'} with images; training needs"
            " at least two. The layout is root/<identity>/<image> with .jpg, .png or .webp images."
        )
    limits = [f"min_images_per_identity={minimum}"] + ([f"exclude_identities={excluded}"] if excluded else [])
    return (
        f"{root}: {len(kept)} of {len(files)} identities are left by {' and '.join(limits)}; training needs at least two."
        " Loosen the limits."
    )
