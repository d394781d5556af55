"""A network of a few thousand weights, with all that a resumed run must restore: dropout, running means."""

from torch import nn


class TinyNet(nn.Sequential):
    """Means of an 8x8 grid, 24 numbers, embeddings; `plain` without dropout and batch normalisation."""

    def __init__(self, embedding_dim: int = 16, plain: bool = False) -> None:
        super().__init__(
            nn.AvgPool2d(14),
            nn.Flatten(),
            nn.Linear(192, 24),
            nn.Identity() if plain else nn.BatchNorm1d(24),
            nn.ReLU(),
            nn.Dropout(0.0 if plain else 0.3),
            nn.Linear(24, embedding_dim),
        )
        self.embedding_dim = embedding_dim
