"""From a photo to the crops of its faces."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from facelit.align.detection import BatchDetector, Detector, Faces
from facelit.align.photos import Photo, read_photo, shrink
from facelit.align.template import Border, estimate_similarity, share_beyond, warp
from facelit.storage.images import Crop

Which = Literal["largest", "central", "all"]
"""Which of a photo's faces is meant: the one whose box has the largest area; the one whose box's centre is nearest to the photo's
centre; or all of them, the largest first."""

MAX_SIDE = 1024
"""Photos with a longer side are shrunk to it before faces are looked for, unless told otherwise."""

_MARGIN = 0.5
"""Width of the padding of the second search, relative to the photo's shorter side (docs/align.md, "Faces at the edge")."""


class AlignedFace(NamedTuple):
    """A face and its crop.

    Attributes:
        crop: uint8 RGB, shape (112, 112, 3).
        box: x1, y1, x2, y2 in the photo's pixels, float32 (4,).
        score: How sure the detector is, from 0 to 1.
        landmarks: In the photo's pixels, float32 (5, 2); see `Faces`.
        beyond: The share of the crop, 0 to 1, that lies beyond the photo's edge.
    """

    crop: Crop
    box: npt.NDArray[np.float32]
    score: float
    landmarks: npt.NDArray[np.float32]
    beyond: float


def align_photo(
    photo: Path | str | Photo,
    detector: Detector,
    which: Which = "largest",
    max_side: int = MAX_SIDE,
    border: Border = "black",
) -> list[AlignedFace]:
    """Finds the faces of a photo and warps them onto the template.

    Args:
        photo: A file (see `read_photo`), or its pixels, uint8 RGB, shape (height, width, 3).
        detector: See `open_detector`.
        which: Which face is meant where there are several.
        max_side: The detector sees the photo shrunk to this longer side, in pixels; 0: as it is. Crops are always made
            from the original pixels.
        border: What a crop shows beyond the photo's edge; see `Border`.

    Returns:
        One face; all, the largest first, for "all"; none where there is no face.

    Raises:
        BadImageError: The file cannot be read.
    """
    pixels = photo if isinstance(photo, np.ndarray) else read_photo(photo)
    faces = find_faces([pixels], detector, max_side)[0]
    chosen = choose_faces(faces, which, (pixels.shape[1], pixels.shape[0]))
    return [align_face(pixels, faces, int(number), border) for number in chosen]


def find_faces(photos: list[Photo], detector: Detector, max_side: int = MAX_SIDE) -> list[Faces]:
    """Finds the faces of each photo, in the photo's own pixels.

    Detectors miss faces that touch the photo's edge. Photos without a face are therefore searched once more, with their edge
    pixels repeated around them by half the shorter side; only faces whose centre lies in the photo count. The first search
    decides wherever it finds anything, so that padding neither moves landmarks nor costs time there.

    Args:
        photos: uint8 RGB, shape (height, width, 3) each.
        detector: See `open_detector`.
        max_side: See `align_photo`.
    """
    seen = [shrink(photo, max_side) for photo in photos]
    found = _detect(detector, seen)
    missed = [number for number, faces in enumerate(found) if not len(faces.scores)]
    margins = [round(min(seen[number].shape[:2]) * _MARGIN) for number in missed]
    padded = [
        np.pad(seen[number], ((margin, margin), (margin, margin), (0, 0)), mode="edge")
        for number, margin in zip(missed, margins, strict=True)
    ]
    for number, margin, faces in zip(missed, margins, _detect(detector, padded), strict=True):
        found[number] = _without_margin(faces, margin, seen[number])
    return [faces.resized(small, photo) for faces, small, photo in zip(found, seen, photos, strict=True)]


def _detect(detector: Detector, photos: list[Photo]) -> list[Faces]:
    if photos and isinstance(detector, BatchDetector):
        return detector.detect_many(photos)
    return [detector.detect(photo) for photo in photos]


def _without_margin(faces: Faces, margin: int, photo: Photo) -> Faces:
    """Faces of a padded photo, in the photo's pixels; those whose centre lies in the padding are left out."""
    boxes, landmarks = faces.boxes - np.float32(margin), faces.landmarks - np.float32(margin)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    inside = ((centres >= 0) & (centres <= np.array(photo.shape[1::-1]))).all(axis=1)
    return Faces(boxes[inside], faces.scores[inside], landmarks[inside])


def choose_faces(faces: Faces, which: Which, size: tuple[int, int]) -> npt.NDArray[np.int64]:
    """Rows of the faces that are meant.

    Args:
        faces: Of one photo.
        which: See `Which`; the surer one wins a tie.
        size: The photo's width and height in pixels.

    Returns:
        int64, shape (k,): k is 1 (0 without faces), or all for "all".
    """
    boxes = faces.boxes.astype(np.float64)
    if which == "central":
        apart = (boxes[:, :2] + boxes[:, 2:]) / 2 - np.array(size) / 2
        worst_last = np.lexsort((-faces.scores, (apart**2).sum(axis=1)))
    else:
        worst_last = np.lexsort((-faces.scores, -(boxes[:, 2:] - boxes[:, :2]).prod(axis=1)))
    return worst_last if which == "all" else worst_last[:1]


def align_face(photo: Photo, faces: Faces, number: int, border: Border = "black") -> AlignedFace:
    """The crop of one of a photo's faces."""
    landmarks = faces.landmarks[number]
    matrix = estimate_similarity(landmarks)
    beyond = share_beyond((photo.shape[1], photo.shape[0]), matrix)
    crop = warp(photo, matrix, border)
    return AlignedFace(crop, faces.boxes[number], float(faces.scores[number]), landmarks, beyond)
