"""The table that a verification set's embeddings are written into, image by image, by all processes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F


class EmbeddingTable:
    """One row per image, written by number: a sampler's padding writes a row twice and does no harm.

    Args:
        num_images: How many rows there must be.
    """

    def __init__(self, num_images: int) -> None:
        self.num_images = num_images
        self._rows: Tensor | None = None
        self._written: Tensor | None = None

    def write(self, numbers: Tensor, embeddings: Tensor) -> None:
        """Writes rows.

        Args:
            numbers: Image numbers, int64, shape (N,).
            embeddings: float32, shape (N, D).
        """
        if self._rows is None or self._written is None:
            self._rows = embeddings.new_zeros(self.num_images, embeddings.shape[1], dtype=torch.float32)
            self._written = embeddings.new_zeros(self.num_images, dtype=torch.float32)
        self._rows[numbers] = embeddings.detach().float()
        self._written[numbers] = 1

    def gather(self) -> Tensor:
        """The whole table on every process; call it on all of them.

        Returns:
            float32, shape (num_images, D), on the CPU.

        Raises:
            RuntimeError: Some image was embedded by no process.
        """
        if self._rows is None or self._written is None:
            raise RuntimeError(f"none of {self.num_images} images was embedded")
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            # Rows that two processes wrote are equal up to rounding: their mean is as good as either.
            dist.all_reduce(self._rows)
            dist.all_reduce(self._written)
            self._rows /= self._written.clamp(min=1).unsqueeze(1)
        missing = int((self._written == 0).sum())
        if missing:
            raise RuntimeError(f"{missing} of {self.num_images} images were not embedded")
        return self._rows.cpu()


def cosine_scores(
    embeddings: Tensor, first: npt.NDArray[np.int64], second: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Cosine similarity of each pair.

    Args:
        embeddings: float, shape (num_images, D), on the CPU.
        first: Row of each pair's first image, int64, shape (num_pairs,).
        second: Row of each pair's second image, likewise.

    Returns:
        float64 in [-1, 1], shape (num_pairs,).
    """
    directions = F.normalize(embeddings.double(), dim=1)
    scores = (directions[torch.from_numpy(first)] * directions[torch.from_numpy(second)]).sum(dim=1)
    return scores.numpy()
