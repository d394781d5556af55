"""Finds what a training folder contains besides the training set."""

from __future__ import annotations

import os
from array import array
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from facelit.errors import FacelitError
from facelit.pictures.findings import Finding, Item
from facelit.storage.images import IMAGE_SUFFIXES, is_image, list_images
from facelit.storage.names import Names
from facelit.storage.packed import MANIFEST
from facelit.storage.photo_files import is_photo
from facelit.storage.progress import progress_bar
from facelit.storage.walking import is_folder, is_hidden

_WORTH_A_BAR = 2_000
"""Fewer folders than this are walked without a progress bar."""
_SETS_NAMED = 3
"""The number of folders suggested if DATA is not the training set itself."""


class Ignored(NamedTuple):
    """Everything that `FolderStore` ignores, except hidden files and folders. Paths are relative to the training folder.

    Attributes:
        files: Files of other kinds, in the training folder or in an identity.
        endings: The number of them by suffix in lower case; "" for names without one.
        subfolders: Folders inside identities that hold images, at any depth, and the number of images.
        empty: Identities without an image of their own.
        num_identities: The number of identities that are empty or in which anything is ignored.
    """

    files: Names
    endings: Counter[str]
    subfolders: list[tuple[str, int]]
    empty: list[str]
    num_identities: int

    @property
    def num_images(self) -> int:
        """The number of images in subfolders, and of files that other programs regard as images."""
        others = sum(count for ending, count in self.endings.items() if is_photo(f"_{ending}"))
        return sum(count for _, count in self.subfolders) + others

    def __str__(self) -> str:
        """A summary in a few words; "" if nothing is ignored."""
        endings = [f"{count:,} {ending or 'without a suffix'}" for ending, count in self.endings.most_common(5)]
        more = ["others"] if len(self.endings) > len(endings) else []
        parts = [f"{len(self.files):,} file(s) of other kinds ({', '.join(endings + more)})"] if endings else []
        if self.subfolders:
            images = sum(count for _, count in self.subfolders)
            parts.append(f"{images:,} image(s) in {len(self.subfolders):,} subfolder(s) of identities")
        if self.empty:
            parts.append(f"{len(self.empty):,} identit{'y' if len(self.empty) == 1 else 'ies'} without an image")
        return ", ".join(parts)


def find_ignored(root: Path, identity_depth: int = 1) -> Ignored:
    """Walks a folder root/<identity>/<image> for anything that is not an image of an identity.

    Args:
        root: The folder.
        identity_depth: See `FolderStore`.

    Raises:
        FacelitError: A folder cannot be listed.
    """
    walk = _Walk(root)
    try:
        folders = walk.folder("")[0]
        for _ in range(identity_depth - 1):
            folders = [inner for folder in folders for inner in walk.group(folder)]
        with progress_bar(f"Looking for ignored files in {root}", len(folders), _WORTH_A_BAR) as show:
            for number, folder in enumerate(folders):
                walk.identity(folder)
                show(number + 1)
    except OSError as error:
        raise _cannot_list(root, error) from None
    return Ignored(walk.names(), walk.endings, walk.subfolders, walk.empty, walk.num_identities)


class _Walk:
    """The findings so far; file names are stored end to end, as there may be millions."""

    def __init__(self, root: Path) -> None:
        self.endings: Counter[str] = Counter()
        self.subfolders: list[tuple[str, int]] = []
        self.empty: list[str] = []
        self.num_identities = 0
        self._root = root
        self._blob, self._offsets = bytearray(), array("q", [0])

    def names(self) -> Names:
        return Names(np.frombuffer(self._offsets, np.int64), np.frombuffer(self._blob, np.uint8))

    def folder(self, name: str) -> tuple[list[str], int]:
        """Records a folder's files of other kinds; returns its subfolders' paths, sorted, and its number of images."""
        folders: list[str] = []
        others: list[str] = []
        num_images = 0
        with os.scandir(os.path.join(self._root, name)) as entries:
            for entry in entries:
                if is_hidden(entry.name):
                    continue
                if name and is_image(entry.name):  # even a folder of such a name, as in `FolderStore`
                    num_images += 1
                else:
                    (folders if is_folder(entry) else others).append(os.path.join(name, entry.name))
        for path in sorted(others):
            self.endings[os.path.splitext(path)[1].lower()] += 1
            self._blob += os.fsencode(path)
            self._offsets.append(len(self._blob))
        return sorted(folders), num_images

    def group(self, name: str) -> list[str]:
        """The identities' folders, or further groups, in a group's folder; without any it counts as an empty identity."""
        before = len(self._offsets)
        folders = self.folder(name)[0]
        self.empty += [] if folders else [name]
        self.num_identities += not folders or before != len(self._offsets)
        return folders

    def identity(self, name: str) -> None:
        before = len(self._offsets), len(self.subfolders), len(self.empty)
        folders, num_images = self.folder(name)
        counted = [(folder, len(list_images(self._root / folder))) for folder in folders]
        self.subfolders += [(folder, count) for folder, count in counted if count]
        if not num_images:
            self.empty.append(name)
        self.num_identities += before != (len(self._offsets), len(self.subfolders), len(self.empty))


def _cannot_list(root: Path, error: OSError) -> FacelitError:
    return FacelitError(f"{error.filename or root}: cannot list this folder ({error.strerror}).")


def ignored_finding(ignored: Ignored) -> Finding:
    """The finding for report and table: first the subfolders, then the empty identities, then the files."""
    explanation = (
        f"Not in the set: files that do not end in {', '.join(sorted(IMAGE_SUFFIXES))}; images below root/<identity>/; identities"
        " without an image."
    )
    num_folders, num_empty = len(ignored.subfolders), len(ignored.empty)

    def item(number: int) -> Item:
        if number < num_folders:
            path, images = ignored.subfolders[number]
            return Item({"folder": path, "images": images}, f"{path}/: {images:,} image{'s' * (images != 1)}", [])
        if number < num_folders + num_empty:
            path = ignored.empty[number - num_folders]
            return Item({"identity": path, "images": 0}, f"{path}/: no image", [])
        path = ignored.files[number - num_folders - num_empty]
        return Item({"file": path}, path, [])

    count = num_folders + num_empty + len(ignored.files)
    return Finding("ignored", "Ignored", explanation, ignored.num_images, ignored.num_identities, count, item)


def why_empty(root: Path) -> str:
    """Says what a folder without a single identity's image holds instead; "" if there is nothing to say."""
    try:
        sets = list(islice(_sets_below(root), _SETS_NAMED + 1))
    except OSError as error:
        raise _cannot_list(root, error) from None
    if len(sets) > _SETS_NAMED:
        return f"Images are one folder too deep, such as {sets[0][1]}. If that is how identities are grouped here: --identity_depth 2."
    if sets:
        deeper = "" if len(sets) == 1 else " If these are groups of identities: --identity_depth 2."
        return f"Did you mean {' or '.join(folder for folder, _ in sets)}?{deeper}"
    ignored = find_ignored(root)
    return f"Ignored there: {ignored}." if ignored.files or ignored.subfolders else ""


def _sets_below(root: Path) -> Iterator[tuple[str, str]]:
    """Folders in `root` that are training sets, sorted by name, each with a file that shows it."""
    for folder in sorted(_folders_in(root)):
        shown = next(
            (path for name in (MANIFEST, "train.rec") if os.path.isfile(path := os.path.join(folder, name))), None
        )
        shown = shown or next((image for inner in _folders_in(folder) for image in _images_in(inner)), None)
        if shown:
            yield folder, shown


def _folders_in(folder: str | Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.path for entry in entries if is_folder(entry) and not is_hidden(entry.name))


def _images_in(folder: str) -> list[str]:
    return [os.path.join(folder, name) for name in sorted(filter(is_image, os.listdir(folder)))]
