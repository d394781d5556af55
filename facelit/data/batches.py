"""Sources to tensors: what a loader's workers run."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from facelit.data.augmentation import uniform_draws
from facelit.data.samplers import BatchRequest
from facelit.data.sources import IdentitySource, VerificationSource
from facelit.storage.images import Crop, read_crop


class TrainBatch(NamedTuple):
    """Crops to train on.

    `images` (N, 3, 112, 112): uint8 from the workers, float32 in [-1, 1] once on the device; `labels` (N,) int64;
    `draws` (N, 12) float32, the random numbers that the augmentation uses up.
    """

    images: Tensor
    labels: Tensor
    draws: Tensor


class EvalBatch(NamedTuple):
    """Crops to embed: `images` as in `TrainBatch`, `numbers` (N,) int64 their row in the table of embeddings."""

    images: Tensor
    numbers: Tensor


class TrainImages(Dataset[TrainBatch]):
    """Whole batches of a source, as a sampler asks for them."""

    def __init__(self, source: IdentitySource, seed: int) -> None:
        self.source = source
        self.seed = seed

    def __getitem__(self, request: BatchRequest) -> TrainBatch:
        """The crops of one request."""
        return TrainBatch(
            _stack([self.source.image(int(index)) for index in request.indices]),
            torch.from_numpy(self.source.labels[request.indices]),
            torch.from_numpy(uniform_draws(self.seed, request.epoch, request.indices)),
        )

    def __len__(self) -> int:
        return len(self.source)


class EvalImages(Dataset[EvalBatch]):
    """Every distinct crop of a verification set, or every file of a list, one by one."""

    def __init__(self, source: VerificationSource | list[Path], resize: bool = False) -> None:
        self.source = source
        self.resize = resize

    def __getitem__(self, number: int) -> EvalBatch:
        """Crop `number`, without a batch dimension."""
        if isinstance(self.source, VerificationSource):
            crop = self.source.image(number)
        else:
            crop = read_crop(self.source[number], self.resize)
        return EvalBatch(_stack([crop])[0], torch.tensor(number))

    def __len__(self) -> int:
        return len(self.source)


def _stack(crops: list[Crop]) -> Tensor:
    """uint8 (N, 3, 112, 112), contiguous in channels_last order: the bytes stay as the decoder laid them."""
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)
