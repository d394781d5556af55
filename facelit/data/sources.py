"""What can be trained on, and what can be verified on: the two seams that every dataset implements."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from facelit.errors import FacelitError
from facelit.storage.images import Crop


class IdentitySource(ABC):
    """Crops with identity labels, to train on.

    Subclasses give `labels`, `identities`, `image` and `name`; everything else follows.
    """

    @property
    @abstractmethod
    def labels(self) -> npt.NDArray[np.integer[Any]]:
        """Identity number of each image, any integer dtype, shape (num_images,), values in [0, num_identities)."""

    @property
    @abstractmethod
    def identities(self) -> Sequence[str]:
        """Name of each identity, length num_identities."""

    @abstractmethod
    def image(self, index: int) -> Crop:
        """The crop number `index`; raises `BadImageError` naming the file where it cannot be read."""

    def read_into(self, index: int, out: Crop) -> None:
        """Writes crop `index` into `out`, uint8 (112, 112, 3): sources that decode there spare a copy."""
        out[...] = self.image(index)

    def encoded(self, index: int) -> bytes | memoryview:
        """The image file's bytes of image `index`, for sources that have files."""
        raise FacelitError(
            f"data.decode_on_gpu: {type(self).__name__} has no image files to decode. Turn the option off."
        )

    @abstractmethod
    def name(self, index: int) -> str:
        """What to call image `index` in a message, usually its path."""

    def prepare(self) -> None:  # noqa: B027 - most sources have nothing to prepare
        """Whatever is worth doing once, before the first image is asked for (it may show progress)."""

    @property
    def num_identities(self) -> int:
        """How many identities there are: the size of a softmax head."""
        return len(self.identities)

    def __len__(self) -> int:
        return len(self.labels)


class VerificationSource(ABC):
    """Distinct crops, and the genuine and impostor pairs over them.

    Args:
        names: Name of each distinct image, length num_images.
        first: Image number of each pair's first image, int64, shape (num_pairs,).
        second: Image number of each pair's second image, int64, shape (num_pairs,).
        is_same: True for a genuine pair, bool, shape (num_pairs,).
        folds: Fold number of each pair, int64, shape (num_pairs,).
        num_missing_pairs: Pairs that were left out because an image of theirs is absent.
    """

    def __init__(
        self,
        names: Sequence[str],
        first: npt.NDArray[np.int64],
        second: npt.NDArray[np.int64],
        is_same: npt.NDArray[np.bool_],
        folds: npt.NDArray[np.int64],
        num_missing_pairs: int = 0,
    ) -> None:
        self.names = list(names)
        self.first = first
        self.second = second
        self.is_same = is_same
        self.folds = folds
        self.num_missing_pairs = num_missing_pairs

    @abstractmethod
    def image(self, number: int) -> Crop:
        """The crop number `number`; raises `FacelitError` naming the file where it cannot be read."""

    def prepare(self) -> None:  # noqa: B027 - most sources have nothing to prepare
        """Whatever is worth doing once, before the first image is asked for (it may show progress)."""

    def __len__(self) -> int:
        return len(self.names)
