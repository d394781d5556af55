"""YuNet, run by OpenCV's `FaceDetectorYN`, with a model file that the user has.

Wu et al., "YuNet: A Tiny Millisecond-level Face Detector", Machine Intelligence Research 2023. OpenCV's model zoo has the file
(face_detection_yunet_2023mar.onnx).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from facelit.align.detection import MIN_FACE, Device, Faces, search_side
from facelit.align.photos import Photo, shrink
from facelit.align.runtime import load_package
from facelit.errors import FacelitError

_SCORE, _SAME_FACE, _MOST = 0.7, 0.3, 5000
"""The least score, the overlap from which two boxes are one face, and how many boxes are compared."""
_PROBE = 64
"""Side of the blank picture that a new model is tried on."""
_SILENT = 0
"""OpenCV's LOG_LEVEL_SILENT."""


class YuNetDetector:
    """YuNet on one thread of a CPU.

    Args:
        model: YuNet's ONNX file.
        min_face: Side of the smallest face to look for, in pixels.
        device: "cpu".

    Raises:
        FacelitError: OpenCV is not installed or too old, the file holds another network, or another device is asked for.
    """

    def __init__(self, model: Path | str, min_face: int = MIN_FACE, device: Device = "cpu") -> None:
        if device != "cpu":
            raise FacelitError(f"option device: the detector yunet runs on the CPU only, not on {device}.")
        self._min_face = min_face
        self._cv2 = load_package("cv2")
        if not hasattr(self._cv2, "FaceDetectorYN"):
            raise FacelitError("the detector yunet needs OpenCV 4.5.4 or later: pip install --upgrade opencv-python")
        self._cv2.setNumThreads(1)  # processes share the cores better than threads do
        self._detector = self._open(str(model))

    def detect(self, image: Photo) -> Faces:
        """Finds the faces in a picture, uint8 RGB, shape (height, width, 3)."""
        seen = shrink(image, search_side(image, self._min_face))
        faces = self._search(seen).resized(seen, image)
        return faces.of((faces.boxes[:, 2:] - faces.boxes[:, :2]).max(axis=1) >= self._min_face)

    def _open(self, model: str) -> Any:
        # OpenCV 5 moved it.
        set_level = getattr(self._cv2, "setLogLevel", None) or self._cv2.utils.logging.setLogLevel
        level = set_level(_SILENT)  # it would warn about itself
        try:
            detector = self._cv2.FaceDetectorYN.create(model, "", (_PROBE, _PROBE), _SCORE, _SAME_FACE, _MOST)
            detector.detect(np.zeros((_PROBE, _PROBE, 3), np.uint8))
        except self._cv2.error:
            raise FacelitError(
                f"{model} (option detector_model): not a YuNet model that OpenCV {self._cv2.__version__} can run."
            ) from None
        finally:
            set_level(level)
        return detector

    def _search(self, image: Photo) -> Faces:
        self._detector.setInputSize(image.shape[1::-1])
        _, rows = self._detector.detect(np.ascontiguousarray(image[..., ::-1]))
        if rows is None:
            return Faces.none()
        # Left and right are the person's own in OpenCV's description: the first eye is the left one for the viewer.
        boxes = np.hstack([rows[:, :2], rows[:, :2] + rows[:, 2:4]])
        return Faces(boxes, rows[:, 14], rows[:, 4:14].reshape(-1, 5, 2))
