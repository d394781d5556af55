"""Photos that say where their faces are, and a detector that believes them: other processes import this file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from facelit.align import TEMPLATE, Faces
from facelit.align.photos import Photo

SIZE = 160
"""Of a photo: a face of the crop's scale lies in its middle, smaller ones are to the right."""


def draw(num_faces: int, seed: int = 0) -> Photo:
    """A photo of noise that has its number of faces in its first pixel."""
    photo = np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    photo[0, 0] = (num_faces, 17, 99)
    return photo


def save(path: Path, num_faces: int, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(draw(num_faces, seed)).save(path)
    return path


def landmarks_of(number: int) -> np.ndarray:
    return (TEMPLATE / (number + 1) + [20 + 9 * number, 30]).astype(np.float32)


class FakeDetector:
    """Counts the photos it saw in `seen`."""

    seen: int = 0

    def detect(self, image: Photo) -> Faces:
        type(self).seen += 1
        assert image[0, 0, 1:].tolist() == [17, 99]
        rows = [landmarks_of(number) for number in range(int(image[0, 0, 0]))]
        if not rows:
            return Faces.none()
        landmarks = np.stack(rows)
        boxes = np.concatenate([landmarks.min(1) - 5, landmarks.max(1) + 5], axis=1)
        return Faces(boxes, np.full(len(rows), 0.9, np.float32), landmarks)
