"""Verification pairs from InsightFace's `.bin` files."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from facelit.data.pairs import PairsFolder
from facelit.data.sources import VerificationSource
from facelit.errors import FacelitError
from facelit.storage.images import Crop, decode_crop, read_file
from facelit.storage.pairs_bin import read_pairs_bin, write_pairs_bin


class PairsBin(VerificationSource):
    """A verification set as InsightFace ships them: `lfw.bin`, `cfp_fp.bin`, `agedb_30.bin`, `calfw.bin`, `cplfw.bin`.

    Pair i is images 2i and 2i + 1. Such a file has no folds: as InsightFace does, the pairs are split in their order into
    consecutive folds of equal size, the first ones a pair larger where that does not come out even (scikit-learn's
    `KFold(folds, shuffle=False)`). Images whose bytes are equal are one image, which is embedded once.

    Args:
        path: The file. Nothing in it is run: see `facelit.storage.pairs_bin`.
        folds: How many folds.
        by_kind: Split the genuine and the impostor pairs each on their own, and join the parts: for files that have all genuine
            pairs first. Figures are not those of readers that know no such option.
        resize: Resize images of another size to 112x112 instead of refusing them.

    Raises:
        FacelitError: The file is missing, damaged or hostile, or a fold has no genuine or no impostor pair.
    """

    def __init__(
        self, path: str | os.PathLike[str], folds: int = 10, resize: bool = False, by_kind: bool = False
    ) -> None:
        self.path = Path(path)
        self.resize = resize
        if folds < 2:
            raise FacelitError(
                f"folds={folds}: verification needs at least two, as each one's threshold is chosen on the others (option"
                " folds of data.verification)."
            )
        images, is_same = read_pairs_bin(self.path)
        fold_of_pair = _contiguous_folds(len(is_same), folds)
        if by_kind:
            for kind in (True, False):
                fold_of_pair[is_same == kind] = _contiguous_folds(int(np.count_nonzero(is_same == kind)), folds)
        _check_folds(self.path, fold_of_pair, is_same)
        number: dict[bytes, int] = {}
        pairs = np.array([number.setdefault(image, len(number)) for image in images], np.int64).reshape(-1, 2)
        self._images = list(number)
        places = np.unique(pairs, return_index=True)[1].tolist()
        super().__init__(
            names=[f"{self.path.name}[{place}]" for place in places],
            first=pairs[:, 0].copy(),
            second=pairs[:, 1].copy(),
            is_same=is_same,
            folds=fold_of_pair,
        )
        self._places = places
        self._options = folds, resize, by_kind

    def __reduce__(self) -> tuple[type[PairsBin], tuple[Path, int, bool, bool]]:
        return type(self), (self.path, *self._options)

    def image(self, number: int) -> Crop:
        """Decodes crop `number`, uint8 RGB (112, 112, 3)."""
        return decode_crop(self._images[number], f"{self.path}, image {self._places[number]}", self.resize)


def write_bin_of(source: PairsFolder, path: str | os.PathLike[str]) -> None:
    """Writes the pairs of a folder as InsightFace's `.bin`, the files' bytes as they are.

    Args:
        source: The pairs.
        path: The file; replaced where it exists.

    Raises:
        FacelitError: The source's folds are not the ones that readers of such a file make, an image cannot be read, or the
            file cannot be written.
    """
    numbers = np.unique(source.folds, return_inverse=True)[1] + 1
    if not np.array_equal(numbers, _contiguous_folds(len(source.first), int(numbers.max()))):
        raise FacelitError(
            f"{path}: a .bin file has no folds; its readers make {numbers.max()} equal ones, in the order of the pairs,"
            " and those of this pairs file are others. Give it all of its images, or keep the pairs file."
        )
    files = [read_file(name) for name in source.names]
    both = np.stack([source.first, source.second], axis=1).ravel()
    write_pairs_bin([files[number] for number in both], source.is_same, Path(path))


def _contiguous_folds(num_pairs: int, folds: int) -> npt.NDArray[np.int64]:
    """Fold of each pair, counted from 1: consecutive ones, the first `num_pairs % folds` of them a pair larger."""
    sizes = np.full(folds, num_pairs // folds)
    sizes[: num_pairs % folds] += 1
    return np.repeat(np.arange(1, folds + 1, dtype=np.int64), sizes)


def _check_folds(path: Path, folds: npt.NDArray[np.int64], is_same: npt.NDArray[np.bool_]) -> None:
    """Figures of a fold that has pairs of one kind only, or none, would mean nothing."""
    for fold in range(1, int(folds.max()) + 1):
        kinds = is_same[folds == fold]
        if kinds.all() or not kinds.any():
            genuine = int(np.count_nonzero(is_same))
            way_out = "Try fewer folds (option folds of data.verification)"
            if min(genuine, len(is_same) - genuine) >= folds.max():
                way_out = (
                    "Its pairs are in no order that makes folds: set by_kind: true (option of data.verification), which deals out the"
                    " genuine and the impostor pairs each on their own"
                )
            raise FacelitError(
                f"{path}: fold {fold} has no genuine or no impostor pair. {way_out}; there are {genuine:,} genuine pairs among"
                f" {len(is_same):,}."
            )
