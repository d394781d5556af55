"""The photos of a folder, and what their crops are called."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from facelit.errors import FacelitError
from facelit.storage.open import why_no_files
from facelit.storage.photo_files import find_photos, why_unreadable


class PhotoTree(NamedTuple):
    """The photos below a folder.

    Attributes:
        root: The folder.
        stems: For each photo, by its path relative to `root`, in sorted order: the path of its crop relative to the folder of
            crops, without a suffix.
        unreadable: Photos of kinds that cannot be read here, and why.
        others: Files that are not photos, neither by name nor by content.
    """

    root: Path
    stems: dict[str, str]
    unreadable: dict[str, str]
    others: Sequence[str] = ()


def list_photos(root: Path, several_crops: bool = False) -> PhotoTree:
    """Lists the photos below a folder, hidden files and folders left out.

    A crop keeps its photo's name. Where two photos in a folder differ only in their suffix, the suffix stays part of the name:
    a.jpg and a.png give a.jpg.jpg and a.png.jpg.

    Args:
        root: The folder.
        several_crops: Whether a photo may have crops called `..._face2` and so on.

    Raises:
        FacelitError: The folder, or one below it, cannot be read; it has no photos that can be read; or two crops would have the
            same name.
    """
    if not root.is_dir():
        raise FacelitError(f"folder not found: {root}. SRC is a folder of photos, in any depth of subfolders.")
    found, others = ([path.relative_to(root).as_posix() for path in paths] for paths in find_photos(root))
    reasons = {photo: why_unreadable(photo) for photo in found}
    unreadable = {photo: reason for photo, reason in reasons.items() if reason}
    photos = [photo for photo, reason in reasons.items() if not reason]
    if not photos and unreadable:
        photo, reason = next(iter(unreadable.items()))
        raise FacelitError(f"{root}: no photos here that can be read, for example {photo}: {reason}.")
    if not photos:
        kinds = "Photos end in .jpg, .png, .webp, .heic and the like."
        raise FacelitError(f"{root}: no photos here. {why_no_files(root) or kinds}")
    count = Counter(os.path.splitext(photo)[0] for photo in photos)
    stems = {}
    for photo in photos:
        stem = os.path.splitext(photo)[0]
        stems[photo] = photo if count[stem] > 1 else stem
    _check_unique(root, stems, several_crops)
    return PhotoTree(root, stems, unreadable, others)


def _check_unique(root: Path, stems: dict[str, str], several_crops: bool) -> None:
    taken: dict[str, str] = {}
    for photo, stem in stems.items():
        other = taken.setdefault(stem, photo)
        base = re.sub(r"_face\d+$", "", stem)
        if other == photo and several_crops and base != stem and base in taken:
            other = taken[base]
        if other != photo:
            raise FacelitError(
                f"{root / photo}: its crop could have the name of a crop of {other}. Rename one of them."
            )
