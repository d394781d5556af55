"""What a face detector is, and what it gives."""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from facelit.align.photos import Photo

MIN_FACE = 40
"""Faces of fewer pixels are not looked for, unless told otherwise."""

Device = Literal["cpu", "cuda"]


class Faces(NamedTuple):
    """The faces of one picture, in no particular order.

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


class Detector(Protocol):
    """Finds faces: one method, so that another detector is one class."""

    def detect(self, image: Photo) -> Faces:
        """Finds the faces of a picture, uint8 RGB, shape (height, width, 3)."""
        ...


@runtime_checkable
class BatchDetector(Protocol):
    """A detector that is faster on several pictures at once."""

    def detect_many(self, images: list[Photo]) -> list[Faces]:
        """The faces of each picture."""
        ...
