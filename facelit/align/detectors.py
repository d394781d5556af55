"""Opening a face detector by its name."""

from __future__ import annotations

from facelit.align.detection import MIN_FACE, Detector, Device
from facelit.errors import FacelitError

DETECTORS = ("mtcnn",)
"""Names that `open_detector` takes."""


def open_detector(name: str = "mtcnn", min_face: int = MIN_FACE, device: Device = "cpu") -> Detector:
    """Opens a face detector.

    Args:
        name: One of `DETECTORS`.
        min_face: Side of the smallest face that is looked for, in pixels of the picture that is searched.
        device: "cpu" (one thread), or "cuda" for onnxruntime's CUDAExecutionProvider.

    Raises:
        FacelitError: There is no such detector, its package or the device is absent, or `min_face` is below 12.
    """
    if name not in DETECTORS:
        raise FacelitError(f"option detector: there is no detector {name}. There are: {', '.join(DETECTORS)}.")
    if min_face < 12:  # the first network's window
        raise FacelitError(f"option min_face: at least 12 pixels, not {min_face}.")
    from facelit.align.mtcnn import MtcnnDetector

    return MtcnnDetector(min_face, device)
