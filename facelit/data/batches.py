"""Sources to tensors: what a loader's workers run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from facelit.data.augmentation import uniform_draws
from facelit.data.reading import BadImage, CropReader, EncodedCrops
from facelit.data.samplers import BatchRequest, Indices
from facelit.data.sources import VerificationSource
from facelit.storage.images import CROP_SIZE, BadImageError, read_crop


class TrainBatch(NamedTuple):
    """Crops to train on.

    `images` (N, 3, 112, 112): uint8 from the workers (or JPEGs, for a GPU to decode), float32 in [-1, 1] once on the device;
    `labels` (N,) int64; `draws` (N, K), the float32 random numbers that the augmentation uses up, as int32 of the same bits
    from the workers; `bad`: images that could not be read, and that others stand in for; `global_size`: images of the batch
    over all processes, None for N each; `numbers`: the crops' numbers in the set, int64 (N,), which stay on the CPU.
    """

    images: Tensor | EncodedCrops
    labels: Tensor
    draws: Tensor
    bad: Sequence[BadImage] = ()
    global_size: int | None = None
    numbers: Indices | None = None


class EvalBatch(NamedTuple):
    """Crops to embed.

    Attributes:
        images: As in `TrainBatch`; a crop that could not be read is black.
        numbers: Their rows in the table of embeddings, int64, (N,).
        bad: Numbers of the crops that could not be read, and why.
    """

    images: Tensor
    numbers: Tensor
    bad: Sequence[tuple[int, BadImage]] = ()


class TrainImages(Dataset[TrainBatch]):
    """Whole batches of a source, as a sampler asks for them.

    Args:
        reader: Reads the crops.
        seed: Of the augmentation.
        encoded: Whether JPEGs are left for a GPU to decode.
    """

    def __init__(self, reader: CropReader, seed: int, encoded: bool = False) -> None:
        self.reader = reader
        self.seed = seed
        self.encoded = encoded

    def __getitem__(self, request: BatchRequest) -> TrainBatch:
        """The crops of one request."""
        read = self.reader.read_encoded if self.encoded else self.reader.read
        images, labels, bad = read(request.indices)
        return TrainBatch(
            images if isinstance(images, EncodedCrops) else as_tensor(images),
            torch.from_numpy(labels),
            # As integers: Lightning would round floating-point numbers under trainer.precision bf16-true.
            torch.from_numpy(uniform_draws(self.seed, request.epoch, request.indices)).view(torch.int32),
            bad,
            request.global_size,
            request.indices,
        )

    def __len__(self) -> int:
        return len(self.reader.source)


class EvalImages(Dataset[EvalBatch]):
    """Every distinct crop of a verification set, or every file of a list, one by one.

    A crop of a verification set that cannot be read is an error, as figures over a part of the set would mean nothing; of a
    list, it is told in the batch.
    """

    def __init__(self, source: VerificationSource | list[Path], resize: bool = False) -> None:
        self.source = source
        self.resize = resize

    def __getitem__(self, number: int) -> EvalBatch:
        """Crop `number`, without a batch dimension."""
        bad: tuple[tuple[int, BadImage], ...] = ()
        if isinstance(self.source, VerificationSource):
            crop = self.source.image(number)
        else:
            try:
                crop = read_crop(self.source[number], self.resize)
            except BadImageError as error:
                crop = np.zeros((CROP_SIZE, CROP_SIZE, 3), np.uint8)
                bad = ((number, BadImage(error.place, error.reason)),)
        return EvalBatch(as_tensor(crop[None])[0], torch.tensor(number), bad)

    def __len__(self) -> int:
        return len(self.source)


def as_tensor(crops: npt.NDArray[np.uint8]) -> Tensor:
    """(N, 112, 112, 3) to (N, 3, 112, 112), contiguous in channels_last order: the bytes stay as the decoder laid them."""
    return torch.from_numpy(crops).permute(0, 3, 1, 2)
