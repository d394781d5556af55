"""Turns the user's photos or aligned crops into the crops that the network takes."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence, Set, ValuesView
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import torch

from facelit.align.detectors import check_detector
from facelit.errors import FacelitError
from facelit.inference.pixels import as_array, to_pixels
from facelit.storage.images import CROP_SIZE, BadImageError, Crop, read_crop

if TYPE_CHECKING:
    from facelit.align import Detector

Crops = npt.NDArray[np.uint8]
"""Crops: uint8, RGB, shape (N, 112, 112, 3)."""

Photo = str | Path | npt.NDArray[np.uint8]
"""A path; or pixels, uint8 RGB (H, W, 3). In Python, everything that `facelit.inference.pixels.to_pixels` takes."""

Which = Literal["largest", "central", "all"]


def check_choice(option: str, value: object, choices: Any) -> None:
    """Refuses a value that a `Literal` does not list: Python does not."""
    if value not in get_args(choices):
        raise FacelitError(f"option {option}: one of {', '.join(get_args(choices))}, not {value!r}.")


class NoFaceError(BadImageError):
    """A photo in which no face was found."""


class FoundFaces(NamedTuple):
    """The requested crops of a photo, and how many faces were in it."""

    crops: list[Crop]
    in_photo: int


class FaceFinder:
    """Turns photos into crops. The detector is opened once a photo needs it: aligned crops do without.

    Args:
        detector: Finds the faces; by default `facelit.align.open_detector(name, model=model)`.
        name: See `open_detector`.
        model: See `open_detector`.

    Raises:
        FacelitError: The detector and its model file do not match.
    """

    def __init__(self, detector: Detector | None = None, name: str = "mtcnn", model: str | None = None) -> None:
        check_detector(name, model)
        self.detector = detector
        self._name, self._model = name, model

    def find(self, photo: Photo, aligned: bool, which: Which = "largest") -> FoundFaces:
        """Finds the faces in a photo.

        Args:
            photo: The photo; if `aligned`, a crop of 112x112 pixels, used unchanged.
            aligned: Whether it is a crop already.
            which: Which face to return if there are several.

        Raises:
            BadImageError: The photo cannot be read, or is not a crop.
            NoFaceError: There is no face in it.
            FacelitError: The detector is not installed, or it is nothing that `to_pixels` takes.
        """
        check_choice("which", which, Which)
        photo = to_pixels(photo)
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
    """One photo, or several, as a sequence. An array of four dimensions is several, and so is one of paths.

    Raises:
        FacelitError: It is neither.
    """
    images = as_array(images)
    if isinstance(images, np.ndarray | torch.Tensor):
        is_of_paths = isinstance(images, np.ndarray) and images.ndim == 1 and images.dtype.kind in "OU"
        return list(images) if images.ndim == 4 or is_of_paths else [images]
    if isinstance(images, (Iterator, Set, ValuesView)) and not isinstance(images, io.IOBase):
        return list(images)  # Path.glob, map, a dict's values
    # Numbers and None are not photos either: `to_pixels` says so.
    return images if isinstance(images, Sequence) and not isinstance(images, str | bytes | bytearray) else [images]


def check_crops(crops: Any) -> Crops:
    """Returns an array of crops unchanged.

    Raises:
        FacelitError: It has the wrong type or shape.
    """
    if not isinstance(crops, np.ndarray) or crops.dtype != np.uint8 or crops.shape[1:] != (CROP_SIZE, CROP_SIZE, 3):
        what = f"{crops.dtype} {crops.shape}" if isinstance(crops, np.ndarray) else type(crops).__name__
        raise FacelitError(f"crops must be uint8 RGB of shape (N, {CROP_SIZE}, {CROP_SIZE}, 3), not {what}.")
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
        advice = "It is not an aligned crop: omit --aligned (in Python: aligned=False), so that its face is found."
        raise BadImageError(error.place, error.reason, advice) from None


def place_of(photo: Photo) -> str:
    """What a message calls a photo."""
    pixels = to_pixels(photo)
    return f"an image of {pixels.shape[1]}x{pixels.shape[0]}" if isinstance(pixels, np.ndarray) else str(pixels)
