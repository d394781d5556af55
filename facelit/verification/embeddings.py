"""Cosine similarities of pairs of embeddings."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F


def cosine_scores(
    embeddings: Tensor, first: npt.NDArray[np.int64], second: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Cosine similarity of each pair.

    Args:
        embeddings: float, shape (num_images, D), on the CPU.
        first: Row of each pair's first image, int64, shape (num_pairs,).
        second: Row of each pair's second image, int64, shape (num_pairs,).

    Returns:
        float64 in [-1, 1], shape (num_pairs,).
    """
    directions = F.normalize(embeddings.double(), dim=1)
    scores = (directions[torch.from_numpy(first)] * directions[torch.from_numpy(second)]).sum(dim=1)
    return scores.numpy()
