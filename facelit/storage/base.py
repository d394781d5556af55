"""The seam that every way of keeping crops implements."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

Labels = npt.NDArray[np.int32]
"""Identity number of each image, shape (num_images,), values in [0, num_identities)."""


class ImageStore(ABC):
    """Encoded images with names and identities, in whatever files they lie.

    What a store knows of an image is in arrays, a few tens of bytes each, which worker processes share with their
    parent. A store that is pickled (for a worker that is not forked) carries its path only and opens its files anew.

    Attributes:
        path: The folder or file, as messages name it.
        identities: Name of each identity, in the order of their numbers.
        labels: Identity number of each image, int32, shape (num_images,).
    """

    path: Path
    identities: Sequence[str]
    labels: Labels

    @abstractmethod
    def encoded(self, row: int) -> bytes | memoryview:
        """The image file's bytes (JPEG, PNG or WebP) of image `row`; raises `BadImageError` where they cannot be had."""

    @abstractmethod
    def name(self, row: int) -> str:
        """`identity/file`, unique in the store: what a pack keeps, whatever it was packed from."""

    def place(self, row: int) -> str:
        """What to call image `row` in a message: a path, or a file and a record in it."""
        return str(self.path / self.name(row))

    def __len__(self) -> int:
        return len(self.labels)


class CropStore(ImageStore):
    """A training set: aligned crops, and a way to tell whether they are still the same ones."""

    @abstractmethod
    def fingerprint(self) -> str:
        """A hash over what is listed: which images, under which names, in which order."""
