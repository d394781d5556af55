"""From what the user has, photos or aligned crops, to the crops that the network takes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from facelit.align.detectors import check_detector
from facelit.errors import FacelitError
from facelit.storage.images import CROP_SIZE, BadImageError, Crop, read_crop

if TYPE_CHECKING:
    from facelit.align import Detector

Crops = npt.NDArray[np.uint8]
"""Crops: uint8, RGB, shape (N, 112, 112, 3)."""

Photo = str | Path | npt.NDArray[np.uint8]
"""A path; or pixels, uint8 RGB (H, W, 3)."""

Which = Literal["largest", "central", "all"]


class NoFaceError(BadImageError):
    """A photo in which no face was found."""


class FoundFaces(NamedTuple):
    """The crops of a photo (those asked for), and how many faces there were in it."""

    crops: list[Crop]
    in_photo: int


class FaceFinder:
    """Photos to crops. The detector is opened when the first photo needs it: aligned crops do without.

    Args:
        detector: Finds the faces; by default `facelit.align.open_detector(name, model=model)`.
        name: See `open_detector`.
        model: See `open_detector`.

    Raises:
        FacelitError: The name and the model do not go together.
    """

    def __init__(self, detector: Detector | None = None, name: str = "mtcnn", model: str | None = None) -> None:
        check_detector(name, model)
        self.detector = detector
        self._name, self._model = name, model

    def find(self, photo: Photo, aligned: bool, which: Which = "largest") -> FoundFaces:
        """The faces of a photo.

        Args:
            photo: Where `aligned`, a crop of 112x112 pixels, taken as it is.
            aligned: Whether it is a crop already.
            which: Which face, where there are several.

        Raises:
            BadImageError: It cannot be read, or is no crop.
            NoFaceError: There is no face in it.
            FacelitError: The detector is not installed.
        """
        if aligned:
            return FoundFaces([_read_aligned(photo)], 1)
        from facelit.align import align_photo, open_detector

        if self.detector is None:
            self.detector = open_detector(self._name, model=self._model)
        counting = _Counting(self.detector)
        faces = align_photo(photo, counting, which)
        if not faces:
            raise NoFaceError(
                place_of(photo), "no face was found", "If it is an aligned crop already, say so (option aligned)."
            )
        return FoundFaces([face.crop for face in faces], max(counting.count, len(faces)))


class _Counting:
    """A detector that remembers how many faces it found in the last image."""

    def __init__(self, detector: Detector) -> None:
        self.detector = detector
        self.count = 0

    def detect(self, image: npt.NDArray[np.uint8]) -> Any:
        faces = self.detector.detect(image)
        self.count = len(faces.scores)
        return faces


def as_photos(images: Photo | Sequence[Photo]) -> Sequence[Photo]:
    """One photo, or several, as a sequence. An array of four dimensions is several."""
    if isinstance(images, str | Path) or (isinstance(images, np.ndarray) and images.ndim == 3):
        return [images]
    return list(images) if isinstance(images, np.ndarray) else images


def check_crops(crops: Any) -> Crops:
    """An array of crops as it is.

    Raises:
        FacelitError: It is of another type or shape.
    """
    if not isinstance(crops, np.ndarray) or crops.dtype != np.uint8 or crops.shape[1:] != (CROP_SIZE, CROP_SIZE, 3):
        what = f"{crops.dtype} {crops.shape}" if isinstance(crops, np.ndarray) else type(crops).__name__
        raise FacelitError(f"crops are uint8 RGB of shape (N, {CROP_SIZE}, {CROP_SIZE}, 3), not {what}.")
    return crops


def _read_aligned(photo: Photo) -> Crop:
    if isinstance(photo, np.ndarray):
        crop: Crop = check_crops(photo[None])[0]
        return crop
    try:
        return read_crop(photo)
    except BadImageError as error:
        if f"not {CROP_SIZE}x{CROP_SIZE}" not in error.reason:
            raise
        way_out = "It is no aligned crop: leave out --aligned (in Python: aligned=False), so that its face is found."
        raise BadImageError(error.place, error.reason, way_out) from None


def place_of(photo: Photo) -> str:
    """What a message calls a photo."""
    return f"an image of {photo.shape[1]}x{photo.shape[0]}" if isinstance(photo, np.ndarray) else str(photo)
