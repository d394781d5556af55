"""Opens any supported crop store."""

from __future__ import annotations

import os
from pathlib import Path

from facelit.errors import FacelitError
from facelit.storage.base import CropStore
from facelit.storage.folder import FolderStore
from facelit.storage.packed import MANIFEST, PackedStore


def why_no_files(path: Path) -> str:
    """Why a folder of images has no image files although it is full of images, for messages; empty for other folders."""
    if (path / MANIFEST).is_file():
        return "It is a folder that `facelit pack` wrote, with its images in shards: name the folder of image files that it was packed from."
    if (path / "train.rec").is_file():
        return (
            "It is an InsightFace set, with its images in train.rec, and image files are wanted: `facelit.storage.open.open_store` gives"
            " their bytes in Python, `check` and training read it as it is."
        )
    return ""


def open_store(path: str | os.PathLike[str], identity_depth: int = 1) -> CropStore:
    """Opens a training set, whatever it is kept in.

    Args:
        path: `root/<identity>/<image>`; or a folder that `facelit pack` wrote; or an InsightFace set (a folder with
            `train.rec` and `train.idx`).
        identity_depth: How many folders lead to an identity's images, where they are plain files; the others list their
            identities themselves. See `FolderStore`.

    Raises:
        FacelitError: There is no such folder, or it is damaged.
    """
    path = Path(path)
    try:
        if (path / MANIFEST).is_file():
            return PackedStore(path)
        if (path / "train.rec").is_file():
            from facelit.storage.recordio import RecordStore

            return RecordStore(path)
        return FolderStore(path, identity_depth)
    except OSError as error:  # a folder that may not be looked into
        raise FacelitError(f"{error.filename or path}: cannot be read ({error.strerror or error}).") from None
