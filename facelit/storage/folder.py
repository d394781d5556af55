"""Crops in `root/<identity>/<image>`, or in identities of several folders (`root/<family>/<member>/<image>`), listed once."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from facelit.errors import FacelitError
from facelit.storage.base import CropStore
from facelit.storage.folder_index import UNREADABLE, FolderIndex, read_index
from facelit.storage.folder_listing import index_folder
from facelit.storage.images import BadImageError, read_file
from facelit.storage.names import Names


class FolderStore(CropStore):
    """A folder with one subfolder of image files per identity.

    Identities are numbered in the order of their sorted names, images within them likewise: the same folder always gives
    the same numbers. Subfolders without images, and hidden ones, are no identities.

    Args:
        root: The folder.
        identity_depth: How many folders lead to an identity's images: 1 for `root/<identity>/<image>`; 2 for
            `root/F0001/MID1/<image>`, whose identity is called `F0001/MID1`.

    Raises:
        FacelitError: The folder is missing, has images above the identities' folders, or the depth is below 1.
    """

    def __init__(self, root: str | os.PathLike[str], identity_depth: int = 1) -> None:
        if identity_depth < 1:
            raise FacelitError(f"option identity_depth: at least 1 folder leads to an image, not {identity_depth}.")
        self._set_up(Path(root), identity_depth, *index_folder(Path(root), identity_depth))

    def _set_up(self, root: Path, depth: int, index: FolderIndex, kept: Path | None) -> None:
        self.path, self.identity_depth, self._index, self._kept = root, depth, index, kept
        counts = np.diff(self._index.starts)
        filled = np.flatnonzero(counts)
        names = self._index.identities
        all_filled = len(filled) == len(counts)
        self.identities: Sequence[str] = names if all_filled else Names.of(names[row] for row in filled.tolist())
        self.labels = np.repeat(np.arange(len(filled), dtype=np.int32), counts[filled])

    def __reduce__(self) -> tuple[Callable[..., FolderStore], tuple[Path, int, Path | None, str]]:
        return _reopen, (self.path, self.identity_depth, self._kept, self.fingerprint())

    def encoded(self, row: int) -> bytes:
        """The bytes of the file."""
        place = self.place(row)
        try:
            return read_file(place)
        except BadImageError as error:
            if self._kept is None or os.path.lexists(place):
                raise
            way_out = f"The list that was kept of its folder still has it: remove {self._kept}, and the folder is listed anew."
            raise BadImageError(place, error.reason, way_out) from None

    def name(self, row: int) -> str:
        """`identity/file`."""
        return f"{self.identities[int(self.labels[row])]}/{self._index.images[row]}"

    def place(self, row: int) -> str:
        """The file's path."""
        return os.path.join(self.path, self.identities[int(self.labels[row])], self._index.images[row])

    def fingerprint(self) -> str:
        """A hash over all names, in their order."""
        digest = hashlib.blake2b(digest_size=16)
        index = self._index
        for array in (
            index.identities.offsets,
            index.identities.blob,
            index.starts,
            index.images.offsets,
            index.images.blob,
        ):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def _reopen(root: Path, depth: int, kept: Path | None, fingerprint: str) -> FolderStore:
    """The store as another process listed it, not as the folder is by now."""
    store = FolderStore.__new__(FolderStore)
    try:
        if kept is None:
            raise OSError
        store._set_up(root, depth, read_index(kept, depth), kept)
    except UNREADABLE:
        store = FolderStore(root, depth)
    if store.fingerprint() != fingerprint:
        raise FacelitError(f"{root}: its list of images has changed since this program listed it. Start it again.")
    return store
