"""SCRFD, run by onnxruntime, with a model file that the user has: InsightFace's `det_*.onnx`.

Guo et al., "Sample and Computation Redistribution for Efficient Face Detection", ICLR 2022. At the strides 8, 16 and 32 the network
gives for each place, and each of its anchors, a score, the distances to a box's four sides, and the offsets of five landmarks.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from facelit.align.boxes import suppress
from facelit.align.detection import MIN_FACE, Device, Faces, search_side
from facelit.align.photos import Photo, shrink
from facelit.align.runtime import open_session
from facelit.errors import FacelitError

_STRIDES = (8, 16, 32)
_COLUMNS = (1, 4, 10)
"""Numbers of a score, a box, and landmarks: the outputs are three scores, three boxes, three times landmarks."""
_SCORE, _SAME_FACE = 0.5, 0.4
"""The least score, and the overlap from which two boxes are one face: InsightFace's defaults."""

Floats = npt.NDArray[np.float32]


class ScrfdDetector:
    """SCRFD on one thread of a CPU, or on a GPU.

    Args:
        model: An ONNX file with nine outputs: scores, boxes and landmarks at three strides.
        min_face: Side of the smallest face to look for, in pixels.
        device: "cpu" or "cuda".

    Raises:
        FacelitError: onnxruntime is not installed or knows no GPU, or the file holds another network.
    """

    def __init__(self, model: Path | str, min_face: int = MIN_FACE, device: Device = "cpu") -> None:
        self._min_face = min_face
        self._session = open_session(model, device)
        self._size = self._check(model)

    def detect(self, image: Photo) -> Faces:
        """Finds the faces in a picture, uint8 RGB, shape (height, width, 3)."""
        seen = self._fitted(image)
        faces = self._search(seen).resized(seen, image)
        return faces.of((faces.boxes[:, 2:] - faces.boxes[:, :2]).max(axis=1) >= self._min_face)

    def _check(self, model: Path | str) -> tuple[int, int] | None:
        """The height and width that the network demands; None if it takes any. Tries it on a blank picture."""
        fault = f"{model} (option detector_model): not an SCRFD model with landmarks"
        inputs = self._session.get_inputs()
        shape = inputs[0].shape if len(inputs) == 1 else []
        if len(shape) != 4 or shape[1] != 3:
            raise FacelitError(f"{fault}: it does not take one picture of three colours.")
        size = (shape[2], shape[3]) if isinstance(shape[2], int) and isinstance(shape[3], int) else None
        height, width = size or (64, 96)
        try:
            outputs = self._run(np.zeros((height, width, 3), np.uint8))
        except Exception as error:
            reason = str(error).strip().partition("\n")[0]
            raise FacelitError(
                f"{fault}: onnxruntime cannot run it on a picture of {width}x{height} ({reason})."
            ) from None
        if len(outputs) != 9:
            raise FacelitError(f"{fault}: it has {len(outputs)} outputs, not 9.")
        for number, output in enumerate(outputs):
            columns, stride = _COLUMNS[number // 3], _STRIDES[number % 3]
            places = (height // stride) * (width // stride)
            if output.shape[-1] != columns or output.size == 0 or output.size % (places * columns):
                raise FacelitError(
                    f"{fault}: output {number + 1} has the shape {output.shape}, which is not {columns} number(s) at stride {stride}."
                )
        return size

    def _fitted(self, image: Photo) -> Photo:
        """The picture, so small that it is searched well, and that the network takes it."""
        longer = search_side(image, self._min_face)
        if self._size is not None:
            height, width = image.shape[:2]
            longer = min(longer, int(max(height, width) * min(self._size[0] / height, self._size[1] / width)))
        return shrink(image, max(1, longer))

    def _run(self, canvas: Photo) -> list[Floats]:
        """The network's outputs for a picture whose sides it takes."""
        batch = np.ascontiguousarray(canvas.transpose(2, 0, 1)[None]).astype(np.float32)
        feed = {self._session.get_inputs()[0].name: (batch - np.float32(127.5)) / np.float32(128)}
        return [np.asarray(output) for output in self._session.run(None, feed)]

    def _search(self, image: Photo) -> Faces:
        """The faces in a picture, which lies in the upper left corner of a black one that the network takes."""
        height, width = image.shape[:2]
        size = self._size or (-(-height // 32) * 32, -(-width // 32) * 32)
        canvas = np.zeros((*size, 3), np.uint8)
        canvas[:height, :width] = image
        outputs = self._run(canvas)
        levels = [
            _decode(
                outputs[level], outputs[level + 3], outputs[level + 6], (size[0] // stride, size[1] // stride), stride
            )
            for level, stride in enumerate(_STRIDES)
        ]
        boxes, scores, landmarks = (np.concatenate(parts) for parts in zip(*levels, strict=True))
        return Faces(boxes, scores, landmarks).of(suppress(boxes, scores, _SAME_FACE))


def _decode(scores: Floats, boxes: Floats, landmarks: Floats, grid: tuple[int, int], stride: int) -> Faces:
    """The faces of one stride. All is counted from the place's upper left corner, in units of the stride."""
    scores = scores.reshape(-1)
    rows = np.flatnonzero(scores >= _SCORE)
    places = rows // (scores.size // (grid[0] * grid[1]))  # a place's anchors stand side by side
    corners = np.stack([places % grid[1], places // grid[1]], axis=1).astype(np.float32)
    sides = boxes.reshape(-1, 4)[rows]
    found = np.hstack([corners - sides[:, :2], corners + sides[:, 2:]])
    points = corners[:, None] + landmarks.reshape(-1, 5, 2)[rows]
    return Faces(found * np.float32(stride), scores[rows], points * np.float32(stride))
