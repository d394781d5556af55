"""Verification pairs from a pairs file in LFW's format, over a folder of crops."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from facelit.data.sources import VerificationSource
from facelit.errors import FacelitError
from facelit.storage.images import Crop, read_crop
from facelit.storage.open import why_no_files
from facelit.storage.pairs_file import Pair, PairImages, read_pairs

__all__ = ["Pair", "PairsFolder", "read_pairs"]


class PairsFolder(VerificationSource):
    """LFW, or anything laid out like it: `root/<name>/<name>_0001.jpg` and a pairs file.

    Args:
        root: Folder of crops. `.jpg`, `.jpeg`, `.png` and `.webp` are looked for, in this order, then other images. Names are compared without regard
            to case, spaces and underscores, and the way accents are stored; `Ann_1.jpg` is as good as `Ann_0001.jpg`.
        pairs: The pairs file; see `read_pairs`.
        folds: Only the pairs of these folds, counted from 1; all where not given.
        allow_missing: Leave out pairs whose images are absent (their count is logged) instead of stopping.
        resize: Resize images of another size to 112x112 instead of refusing them.

    Raises:
        FacelitError: The folder or the pairs file is missing or malformed, or images are absent.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        pairs: str | os.PathLike[str],
        folds: list[int] | None = None,
        allow_missing: bool = False,
        resize: bool = False,
    ) -> None:
        self.root = Path(root)
        self.resize = resize
        if not self.root.is_dir():
            raise FacelitError(
                f"verification folder not found: {self.root} (option root of data.verification). Point it at the aligned"
                " crops, or train without verification: --data.verification null"
            )
        listed = read_pairs(pairs, folds)
        images = PairImages(self.root)
        keys_of_pairs = dict.fromkeys(key for pair in listed for key in (pair.first, pair.second))
        paths = {key: images.find(key) for key in keys_of_pairs}
        missing = sorted(key for key, path in paths.items() if path is None)
        if missing and not allow_missing:
            first_names = ", ".join(f"{name}_{number:04d}" for name, number in missing[:3])
            beside = images.nearest(missing[0])
            way_out = (
                why_no_files(self.root) or "Check the folder, or leave those pairs out with `allow_missing: true`."
            )
            raise FacelitError(
                f"{pairs}: {len(missing)} of its {len(paths)} images are absent below {self.root} ({first_names}...)."
                f"{f' (That folder has {beside}.)' if beside else ''} {way_out}"
            )
        if len({pair.fold for pair in listed}) < 2:
            raise FacelitError(
                f"{pairs}: verification needs at least two folds, as each one's threshold is chosen on the others; only one"
                " is listed or asked for (option folds of data.verification)."
            )
        usable = [pair for pair in listed if paths[pair.first] and paths[pair.second]]
        _check_folds(Path(pairs), listed, usable)
        keys = sorted({key for pair in usable for key in (pair.first, pair.second)})
        number = {key: position for position, key in enumerate(keys)}
        super().__init__(
            names=[os.fspath(paths[key]) for key in keys],  # type: ignore[arg-type]  # usable ones have a path
            first=np.array([number[pair.first] for pair in usable], dtype=np.int64),
            second=np.array([number[pair.second] for pair in usable], dtype=np.int64),
            is_same=np.array([pair.is_same for pair in usable], dtype=np.bool_),
            folds=np.array([pair.fold for pair in usable], dtype=np.int64),
            num_missing_pairs=len(listed) - len(usable),
        )

    def image(self, number: int) -> Crop:
        """Reads crop `number`, uint8 RGB (112, 112, 3)."""
        return read_crop(self.names[number], self.resize)


def _check_folds(path: Path, listed: list[Pair], usable: list[Pair]) -> None:
    """Leaving pairs out must not leave a fold empty or one-sided: its figures would mean nothing."""
    kinds = {(pair.fold, pair.is_same) for pair in usable}
    for fold in sorted({pair.fold for pair in listed}):
        if (fold, True) not in kinds or (fold, False) not in kinds:
            raise FacelitError(
                f"{path}: with the absent images left out, fold {fold} has no genuine or no impostor pair."
                " Check the folder of crops (option root)."
            )
