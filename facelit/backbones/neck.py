"""The standard embedding neck: batch normalisation - dropout - linear layer - batch normalisation.

Deng et al.: ArcFace: Additive Angular Margin Loss for Deep Face Recognition, CVPR 2019, section 4.1 (arXiv 1801.07698, whose
first version calls it option E of five ways from the last convolution to the embedding).
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from facelit.errors import FacelitError


class EmbeddingBatchNorm(nn.BatchNorm1d):
    """Batch normalisation of embeddings, (N, D), that explains in training why a batch of one image fails.

    One image has no variance: normalised by its own statistics, any image's embedding would be the bias.

    Args:
        num_features: the length of an embedding, D.
        fixed_scale: whether the scale of all components stays 1, so that the embeddings' length cannot run away; the
            weight is then a parameter without gradient, as in InsightFace, and still in the state dict.

    Raises:
        FacelitError: from the forward pass in training, if N is 1.
    """

    def __init__(self, num_features: int, fixed_scale: bool = False) -> None:
        super().__init__(num_features)
        if fixed_scale:
            self.weight.requires_grad_(False)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Normalises each component over the batch: (N, D) to (N, D)."""
        if self.training and embeddings.shape[0] < 2:
            raise FacelitError(
                "a training batch of one image: the backbone normalises embeddings over the batch, which takes two or"
                " more images per process. Set data.batch_size to 4 or more: then even the last batches have two each."
            )
        return super().forward(embeddings)


class EmbeddingNeck(nn.Module):
    """From a backbone's features to the embedding: BN - dropout - linear - BN.

    The scale of the last normalisation stays 1, as in InsightFace.

    Args:
        channels: channels of the feature map, or number of pooled features, C.
        embedding_dim: the length of an embedding, D.
        dropout: fraction of the normalised features that is zeroed in training.
        area: the number of positions of the feature map, H * W.

    Raises:
        FacelitError: from the forward pass in training, if N is 1.
    """

    def __init__(self, channels: int, embedding_dim: int, dropout: float = 0.0, area: int = 1) -> None:
        super().__init__()
        # Over a map: one mean and variance for each channel, over images and positions.
        self.norm = nn.BatchNorm2d(channels) if area > 1 else EmbeddingBatchNorm(channels)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(channels * area, embedding_dim)
        self.embedding_norm = EmbeddingBatchNorm(embedding_dim, fixed_scale=True)

    def forward(self, features: Tensor) -> Tensor:
        """Features, (N, C, H, W) or (N, C), to embeddings, (N, D), not normalised."""
        normalised = self.dropout(self.norm(features).flatten(1))
        embeddings: Tensor = self.embedding_norm(self.linear(normalised))
        return embeddings


def make_neck(
    backbone: str, features: int, embedding_dim: int, neck: Literal["standard"] | None, dropout: float | None
) -> nn.Module:
    """A module from pooled features, (N, C), to embeddings, (N, D): a linear layer, or the standard neck.

    Args:
        backbone: the backbone's name, for messages.
        features: C.
        embedding_dim: D.
        neck: "standard", or None for a linear layer.
        dropout: of the standard neck; None, or 0, also goes with a linear layer.

    Raises:
        FacelitError: if there is no such neck, or dropout is given without the standard one.
    """
    check_neck(backbone, neck)
    if neck == "standard":
        return EmbeddingNeck(features, embedding_dim, dropout or 0.0)
    if dropout:
        raise FacelitError(f"{backbone}: dropout belongs to the standard neck: add neck: standard, or omit it")
    return nn.Linear(features, embedding_dim)


def check_neck(backbone: str, neck: str | None) -> None:
    """Rejects an unknown neck.

    Raises:
        FacelitError: if the neck is neither "standard" nor None.
    """
    if neck not in (None, "standard"):
        raise FacelitError(f"{backbone}: neck must be standard or null, not {neck!r}")
