"""Opening a face detector by its name."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from facelit.align.detection import MIN_FACE, Detector, Device
from facelit.errors import FacelitError

DetectorName = Literal["mtcnn", "yunet", "scrfd"]
"""Names that `open_detector` takes: MTCNN, whose weights come with the extra `align`; YuNet and SCRFD, with a model file that
the user has."""

_NEEDS_A_MODEL = {"yunet": "face_detection_yunet_2023mar.onnx", "scrfd": "det_10g.onnx"}


def open_detector(
    name: str = "mtcnn", min_face: int = MIN_FACE, device: Device = "cpu", model: Path | str | None = None
) -> Detector:
    """Opens a face detector.

    Args:
        name: See `DetectorName`.
        min_face: Side of the smallest face to look for, in pixels of the picture that is searched.
        device: "cpu" (one thread), or "cuda" for onnxruntime's CUDAExecutionProvider.
        model: The ONNX file of YuNet (OpenCV's model zoo) or SCRFD (InsightFace's `det_*.onnx`).

    Raises:
        FacelitError: See `check_detector`; a package or the device is missing, the file holds another network, or `min_face` is
            below 12.
    """
    check_detector(name, model)
    if min_face < 12:  # the first network's window
        raise FacelitError(f"option min_face: at least 12 pixels, not {min_face}.")
    if name == "yunet":
        from facelit.align.yunet import YuNetDetector

        return YuNetDetector(str(model), min_face, device)
    if name == "scrfd":
        from facelit.align.scrfd import ScrfdDetector

        return ScrfdDetector(str(model), min_face, device)
    from facelit.align.mtcnn import MtcnnDetector

    return MtcnnDetector(min_face, device)


def check_detector(name: str, model: Path | str | None) -> None:
    """Makes sure that a detector and its model file go together, without opening either.

    Raises:
        FacelitError: There is no such detector; it needs a file and there is none; or it takes none.
    """
    if name != "mtcnn" and name not in _NEEDS_A_MODEL:
        raise FacelitError(
            f"option detector: there is no detector {name}. There are: mtcnn, {', '.join(_NEEDS_A_MODEL)}."
        )
    if name == "mtcnn" and model is not None:
        raise FacelitError(
            "option detector_model: mtcnn brings its own weights. Name the detector too: --detector yunet or scrfd."
        )
    if name in _NEEDS_A_MODEL and model is None:
        raise FacelitError(
            f"the detector {name} needs a model file, which facelit does not come with: --detector_model {_NEEDS_A_MODEL[name]}"
        )
    if model is not None and not Path(model).is_file():
        raise FacelitError(f"file not found: {model} (option detector_model).")
