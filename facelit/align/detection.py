"""What a face detector is, and what it returns."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from facelit.align.photos import Photo

MIN_FACE = 40
"""Side of the smallest face to look for, in pixels, unless told otherwise."""

_SEEN_FACE, _SEEN_PICTURE = 16, 640

Device = Literal["cpu", "cuda"]


class Faces(NamedTuple):
    """The faces in one picture, in no particular order.

    Attributes:
        boxes: x1, y1, x2, y2 in pixels, float32 (n, 4); a box may reach beyond the picture.
        scores: How sure the detector is, from 0 to 1, float32 (n,).
        landmarks: x and y in pixels, float32 (n, 5, 2): left eye, right eye, nose, left mouth corner, right mouth corner,
            left and right as the viewer sees them; whole numbers are centres of pixels.
    """

    boxes: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    landmarks: npt.NDArray[np.float32]

    @classmethod
    def none(cls) -> Faces:
        """No face."""
        return cls(np.empty((0, 4), np.float32), np.empty(0, np.float32), np.empty((0, 5, 2), np.float32))

    def of(self, rows: npt.NDArray[Any]) -> Faces:
        """Some of them, by number or by a mask."""
        return Faces(self.boxes[rows], self.scores[rows], self.landmarks[rows])

    def resized(self, seen: Photo, photo: Photo) -> Faces:
        """The faces that were found in a resized picture, in the pixels of the photo itself."""
        if seen.shape == photo.shape:
            return self
        zoom = np.array(photo.shape[1::-1]) / np.array(seen.shape[1::-1])
        # Edges of pixels scale; centres lie half a pixel further in either.
        landmarks = (self.landmarks + 0.5) * zoom - 0.5
        boxes = self.boxes * np.tile(zoom, 2)
        return Faces(boxes.astype(np.float32), self.scores, landmarks.astype(np.float32))


class Detector(Protocol):
    """Finds faces: one method, so that another detector is one class."""

    def detect(self, image: Photo) -> Faces:
        """Finds the faces in a picture, uint8 RGB, shape (height, width, 3)."""
        ...


@runtime_checkable
class BatchDetector(Protocol):
    """A detector that is faster on several pictures at once."""

    def detect_many(self, images: list[Photo]) -> list[Faces]:
        """The faces in each picture."""
        ...


def search_side(image: Photo, min_face: int) -> int:
    """The longer side, in pixels, to which detectors that search a picture in one size should have it shrunk.

    In it the smallest face wanted still has 16 pixels; but nothing is shrunk below 640 pixels, the size such networks are trained for.
    """
    height, width = image.shape[:2]
    return max(_SEEN_PICTURE, int(max(height, width)) * _SEEN_FACE // min_face)
