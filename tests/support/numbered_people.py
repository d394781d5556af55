"""Crops that carry the number of their embedding in their pixels, for tests of what `check --checkpoint` finds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

Vectors = npt.NDArray[np.float32]


class People:
    """Crops that carry the number of their embedding in their pixels, and the network that reads it."""

    def __init__(self) -> None:
        self.vectors: list[npt.NDArray[np.float64]] = []

    def add(self, path: Path, vector: npt.NDArray[np.float64]) -> None:
        number = len(self.vectors)
        self.vectors.append(vector / np.linalg.norm(vector))
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (112, 112), (number // 256, number % 256, 77)).save(path)

    def embed(self, crops: npt.NDArray[np.uint8]) -> Vectors:
        numbers = crops[:, 50, 50, 0].astype(int) * 256 + crops[:, 50, 50, 1]
        return np.stack([self.vectors[number] for number in numbers]).astype(np.float32)


def axis(number: int, other: int = 0, cosine: float = 1.0, size: int = 40) -> npt.NDArray[np.float64]:
    """A vector with this cosine to the axis `number`, leaning to `other`."""
    vector = np.zeros(size)
    vector[number] = cosine
    vector[other] += np.sqrt(1 - cosine**2)
    return vector


def unit(rng: np.random.Generator, rows: int, size: int = 6) -> Vectors:
    made = rng.normal(size=(rows, size))
    return np.asarray(made / np.linalg.norm(made, axis=1, keepdims=True), np.float32)
