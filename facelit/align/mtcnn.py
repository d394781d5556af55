"""MTCNN: three small networks in a row, run by onnxruntime with the weights of the package mtcnn-runtime.

Zhang et al., "Joint Face Detection and Alignment Using Multitask Cascaded Convolutional Networks", IEEE SPL 2016. P-Net
looks at every 12x12 window of the photo in several sizes, R-Net judges its finds at 24x24, and O-Net at 48x48, which also
gives the landmarks. Only the weights are taken from the package: its own code fails if P-Net finds nothing, misplaces
the landmarks of a face that reaches beyond the photo, and is slower (benchmarks/align.py).
"""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from facelit.align.boxes import Floats, overlaps, suppress
from facelit.align.detection import MIN_FACE, Device, Faces
from facelit.align.photos import Photo
from facelit.align.runtime import INSTALL, load_package, open_session
from facelit.errors import FacelitError

_WINDOW, _STRIDE, _FACTOR = 12, 2, 0.709
"""P-Net's window and step in pixels, and the size of each level of the pyramid relative to the one before."""
_THRESHOLDS = (0.6, 0.7, 0.7)
_SAME_LEVEL, _SAME_FACE, _INSIDE = 0.5, 0.7, 0.7
"""Overlap from which two boxes count as one face: in one level, after each network, and as a share of the smaller one at the end."""
_AVERAGED = 0.6
"""Overlap with a face's box from which another one's landmarks count for that face."""
_MAX_WINDOWS = 256
"""For one call of R-Net or O-Net: bounds the memory."""
_LANDMARK_OFFSET = 0.5
"""Added to landmarks, in pixels. Mirrored photos show that the landmarks of MTCNN's common implementations lie a pixel too far
right and down; the sets that were aligned with them have that shift, and so do ours. (Half a pixel, because windows begin at the
edge of a pixel, whose centre is half a pixel further.)"""


class _Found(NamedTuple):
    """Boxes of several photos: x1 y1 x2 y2 in pixels, counted from the upper left corner of the first pixel.

    Attributes:
        photo: Which photo each is of, int64 (n,).
        boxes: float64 (n, 4).
        scores: float64 (n,).
    """

    photo: npt.NDArray[np.int64]
    boxes: Floats
    scores: Floats

    def of(self, rows: npt.NDArray[np.int64]) -> _Found:
        return _Found(self.photo[rows], self.boxes[rows], self.scores[rows])


class MtcnnDetector:
    """MTCNN, on one thread of a CPU or on a GPU.

    Args:
        min_face: Side of the smallest face to look for, in pixels.
        device: "cpu" or "cuda".

    Raises:
        FacelitError: A package is missing, or onnxruntime knows no GPU.
    """

    def __init__(self, min_face: int = MIN_FACE, device: Device = "cpu") -> None:
        self._min_face = min_face
        self._cv2, sessions = _load(device)
        self._networks: dict[str, Any] = sessions

    def detect(self, image: Photo) -> Faces:
        """Finds the faces in a picture, uint8 RGB, shape (height, width, 3)."""
        return self.detect_many([image])[0]

    def detect_many(self, images: list[Photo]) -> list[Faces]:
        """The faces in each picture. R-Net and O-Net take the windows of all at once; P-Net's model takes one picture at a time."""
        found = _joined([self._propose(number, image) for number, image in enumerate(images)])
        found = self._judge(images, found)
        return self._locate(images, found)

    def _run(self, name: str, windows: Floats) -> list[Floats]:
        return [np.asarray(output) for output in self._networks[name].run(None, {"input": windows})]

    def _propose(self, number: int, image: Photo) -> _Found:
        """P-Net over the pyramid of one picture."""
        levels = [_Found(np.empty(0, np.int64), np.empty((0, 4)), np.empty(0))]
        height, width = image.shape[:2]
        scale, level = _WINDOW / self._min_face, image
        while min(height, width) * scale >= _WINDOW:
            size = (math.ceil(width * scale), math.ceil(height * scale))
            level = self._cv2.resize(level, size, interpolation=self._cv2.INTER_AREA)
            offsets, scores = self._run("pnet", _normalised(level[None]))
            row, column = np.nonzero(scores[0, 1] >= _THRESHOLDS[0])
            corner = np.stack([column, row], axis=1) * float(_STRIDE)
            zoom = np.tile(np.array([width, height]) / size, 2)
            boxes, score = np.hstack([corner, corner + _WINDOW]) * zoom, scores[0, 1][row, column]
            kept = suppress(boxes, score, _SAME_LEVEL)
            boxes, score, shift = boxes[kept], score[kept], offsets[0][:, row, column].T[kept]
            levels.append(_Found(np.full(len(kept), number), np.hstack([boxes, shift]), score))
            scale *= _FACTOR
        found = _joined(levels, columns=8)
        found = found.of(suppress(found.boxes[:, :4], found.scores, _SAME_FACE))
        return found._replace(boxes=_whole(_square(_shifted(found.boxes[:, :4], found.boxes[:, 4:]))))

    def _judge(self, images: list[Photo], found: _Found) -> _Found:
        """R-Net over what P-Net proposed."""
        offsets, scores = self._in_parts("rnet", images, found, 24)
        sure = np.flatnonzero(scores[:, 1] > _THRESHOLDS[1])
        found, offsets = found.of(sure)._replace(scores=scores[sure, 1]), offsets[sure]
        kept = _for_each_photo(found, len(images), _SAME_FACE)
        found = found.of(kept)
        return found._replace(boxes=_whole(_square(_shifted(found.boxes, offsets[kept]))))

    def _locate(self, images: list[Photo], found: _Found) -> list[Faces]:
        """O-Net over what R-Net left."""
        points, offsets, scores = self._in_parts("onet", images, found, 48)
        sure = np.flatnonzero(scores[:, 1] > _THRESHOLDS[2])
        found, offsets = found.of(sure)._replace(scores=scores[sure, 1]), offsets[sure]
        corner, size = found.boxes[:, None, :2], (found.boxes[:, 2:] - found.boxes[:, :2])[:, None]
        landmarks = corner + size * points[sure].reshape(-1, 2, 5).transpose(0, 2, 1) + _LANDMARK_OFFSET
        found = found._replace(boxes=_shifted(found.boxes, offsets))
        return [_faces(found.of(rows), landmarks[rows]) for rows in _rows_by_photo(found, len(images))]

    def _in_parts(self, name: str, images: list[Photo], found: _Found, size: int) -> list[Floats]:
        """Runs a network over windows of the photos; its outputs, one row for each box."""
        parts = []
        for start in range(0, max(1, len(found.scores)), _MAX_WINDOWS):
            some = found.of(np.arange(start, min(start + _MAX_WINDOWS, len(found.scores))))
            windows = np.zeros((max(1, len(some.scores)), size, size, 3), np.uint8)  # an empty batch is not an input
            for window, photo, box in zip(windows, some.photo, some.boxes.astype(int).tolist(), strict=False):
                self._cut(images[photo], box, window)
            parts.append([output[: len(some.scores)] for output in self._run(name, _normalised(windows))])
        return [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]

    def _cut(self, image: Photo, box: list[int], out: Photo) -> None:
        """A box of a photo, black where it reaches beyond, at a network's size."""
        x1, y1, x2, y2 = box
        height, width = image.shape[:2]
        part = image[max(y1, 0) : max(0, min(y2, height)), max(x1, 0) : max(0, min(x2, width))]
        if not part.size:
            return
        if part.shape[:2] != (y2 - y1, x2 - x1):
            edges = (max(-y1, 0), max(y2 - height, 0), max(-x1, 0), max(x2 - width, 0))
            part = self._cv2.copyMakeBorder(part, *edges, self._cv2.BORDER_CONSTANT)
        self._cv2.resize(part, out.shape[:2], dst=out, interpolation=self._cv2.INTER_AREA)


def _load(device: Device) -> tuple[Any, dict[str, Any]]:
    """OpenCV, and a session for each network."""
    cv2 = load_package("cv2")
    found = importlib.util.find_spec("mtcnnruntime")
    if found is None or not found.submodule_search_locations:
        raise FacelitError(f"finding faces needs a detector that is not installed: {INSTALL}")
    folder = Path(next(iter(found.submodule_search_locations)), "weights")
    return cv2, {name: open_session(folder / f"{name}.onnx", device) for name in ("pnet", "rnet", "onet")}


def _faces(found: _Found, landmarks: Floats) -> Faces:
    """The faces of one photo, out of O-Net's boxes, of which several may be of one face.

    A face's landmarks are the mean of those of all its boxes, weighted by score: each box alone is off by about a pixel, in
    a direction of its own.
    """
    kept = suppress(found.boxes, found.scores, _INSIDE, of_smaller=True)
    means = [
        np.average(landmarks[same], axis=0, weights=found.scores[same])
        for same in (np.flatnonzero(overlaps(found.boxes[row], found.boxes) >= _AVERAGED) for row in kept)
    ]
    return Faces(
        found.boxes[kept].astype(np.float32),
        found.scores[kept].astype(np.float32),
        np.array(means, np.float32).reshape(-1, 5, 2),
    )


def _normalised(windows: Photo) -> npt.NDArray[np.float32]:
    """uint8 (n, height, width, 3) -> float32 (n, 3, height, width), about -1 to 1."""
    return (np.ascontiguousarray(windows.transpose(0, 3, 1, 2)).astype(np.float32) - np.float32(127.5)) / np.float32(
        128
    )


def _joined(parts: list[_Found], columns: int = 4) -> _Found:
    empty = _Found(np.empty(0, np.int64), np.empty((0, columns)), np.empty(0))
    photo, boxes, scores = zip(*(part for part in (empty, *parts) if len(part.scores) or part is empty), strict=True)
    return _Found(np.concatenate(photo), np.concatenate(boxes), np.concatenate(scores))


def _rows_by_photo(found: _Found, num_photos: int) -> list[npt.NDArray[np.int64]]:
    return [np.flatnonzero(found.photo == number) for number in range(num_photos)]


def _for_each_photo(found: _Found, num_photos: int, most: float) -> npt.NDArray[np.int64]:
    """Rows that stay when doubles are suppressed within each photo."""
    rows = [rows[suppress(found.boxes[rows], found.scores[rows], most)] for rows in _rows_by_photo(found, num_photos)]
    return np.concatenate([np.empty(0, np.int64), *rows])


def _shifted(boxes: Floats, offsets: Floats) -> Floats:
    """Boxes corrected by a network's output, in units of their sides."""
    sides = boxes[:, 2:] - boxes[:, :2]
    shifted: Floats = boxes + np.hstack([sides, sides]) * offsets
    return shifted


def _square(boxes: Floats) -> Floats:
    """The square around each box's centre that has its longer side."""
    centre, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]).max(axis=1, keepdims=True) / 2
    return np.hstack([centre - half, centre + half])


def _whole(boxes: Floats) -> Floats:
    """Edges between pixels, at least a pixel apart."""
    corner = np.rint(boxes[:, :2])
    return np.hstack([corner, np.maximum(np.rint(boxes[:, 2:]), corner + 1)])
