"""The pairs that a checkpoint is most wrong about, with their pictures as small JPEGs inside the page."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import NamedTuple

import numpy as np
import simplejpeg

from facelit.report.set_figures import SetFigures
from facelit.storage.decoding import Pixels
from facelit.storage.images import BadImageError, read_file, read_image

_SIDE, _QUALITY = 112, 82


class HardPair(NamedTuple):
    """A pair near or beyond its threshold.

    Attributes:
        score: Cosine similarity.
        threshold: The one it was decided at, chosen on the other folds.
        wrong: Whether it was decided wrongly.
        names: Of both images; "" where unknown.
        pictures: Of both images as `data:` addresses; None where there is none.
    """

    score: float
    threshold: float
    wrong: bool
    names: tuple[str, str]
    pictures: tuple[str | None, str | None]


class HardPairs(NamedTuple):
    """The hardest pairs of both kinds, and how many wrong ones there are."""

    accepts: list[HardPair]
    num_accepts: int
    rejects: list[HardPair]
    num_rejects: int


def hard_pairs(one: SetFigures, count: int, pictures: Pictures) -> HardPairs:
    """The most confident false accepts and false rejects; the nearest misses where there are fewer.

    Args:
        one: A checkpoint's figures.
        count: Pairs of each kind.
        pictures: Where their images come from.
    """
    from facelit.verification.figures import hardest_pairs

    pairs, scores = one.pairs, one.scores
    fold_of = np.unique(pairs.folds, return_inverse=True)[1]
    thresholds = one.result.fold_thresholds[fold_of]
    wrong = (scores >= thresholds) != pairs.genuine
    # Where a fold's threshold accepts nothing, all its pairs are equally far from it.
    limits = np.where(np.isfinite(thresholds), thresholds, scores.max())
    found = []
    for chosen in hardest_pairs(scores, pairs.genuine, limits, count):
        found.append(
            [
                HardPair(
                    float(scores[number]),
                    float(thresholds[number]),
                    bool(wrong[number]),
                    (names := (pairs.first[number], pairs.second[number])),
                    (pictures.data(pairs.root, names[0]), pictures.data(pairs.root, names[1])),
                )
                for number in chosen
            ]
        )
    accepts, rejects = found
    return HardPairs(accepts, int((wrong & ~pairs.genuine).sum()), rejects, int((wrong & pairs.genuine).sum()))


@dataclass
class Pictures:
    """Images of pairs as `data:` addresses.

    Attributes:
        wanted: Whether there are to be any.
        missing: Images that could not be read, with the reasons.
    """

    wanted: bool

    def __post_init__(self) -> None:
        self.missing: dict[str, str] = {}
        self._done: dict[Path, str | None] = {}

    def data(self, root: str | None, name: str) -> str | None:
        """An image at 112 pixels; None where none is wanted, or none is there."""
        if not self.wanted or root is None or not name:
            return None
        path = Path(root, name)
        if ".." in path.parts or PurePath(name).is_absolute():
            self.missing[name] = "its name leads out of the set's folder"
            return None
        if path not in self._done:
            try:
                self._done[path] = _encoded(read_image(read_file(path), str(path)))
            except BadImageError as error:
                self.missing[error.place] = error.reason
                self._done[path] = None
        return self._done[path]


def _encoded(pixels: Pixels) -> str:
    """Decoded and encoded anew: whatever else the file held stays outside the page."""
    if max(pixels.shape[:2]) > _SIDE:
        from PIL import Image

        image = Image.fromarray(pixels)
        image.thumbnail((_SIDE, _SIDE))
        pixels = np.asarray(image)
    jpeg = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=_QUALITY, colorsubsampling="420")
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")
