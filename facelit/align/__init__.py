"""From photos to crops: faces and five landmarks, a similarity transform, the 112x112 template. No torch here."""

from facelit.align.aligning import AlignedFace, Which, align_photo
from facelit.align.detection import Detector, Faces
from facelit.align.detectors import open_detector
from facelit.align.photos import Photo, read_photo
from facelit.align.template import TEMPLATE, estimate_similarity, warp

__all__ = [
    "TEMPLATE",
    "AlignedFace",
    "Detector",
    "Faces",
    "Photo",
    "Which",
    "align_photo",
    "estimate_similarity",
    "open_detector",
    "read_photo",
    "warp",
]
