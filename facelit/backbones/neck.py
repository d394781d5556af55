"""The standard embedding neck: batch normalisation - dropout - linear layer - batch normalisation.

Deng et al.: ArcFace: Additive Angular Margin Loss for Deep Face Recognition, CVPR 2019, section 4.1 (arXiv 1801.07698, whose
first version calls it option E of five ways from the last convolution to the embedding).
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from facelit.errors import FacelitError


class EmbeddingBatchNorm(nn.BatchNorm1d):
    """Batch normalisation of embeddings, (N, D), that says in training what is wrong with a batch of one.

    One image has no variance: normalised by its own statistics its embedding would be the bias, whatever the image.

    Args:
        num_features: the length of an embedding, D.
        fixed_scale: whether the scale of all components stays 1, so that the embeddings' length cannot run away; the
            weight is then a parameter without gradient, as in InsightFace, and lies in the state dict all the same.
    """

    def __init__(self, num_features: int, fixed_scale: bool = False) -> None:
        super().__init__(num_features)
        if fixed_scale:
            self.weight.requires_grad_(False)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Normalises each component over the batch.

        Args:
            embeddings: (N, D) floating point.

        Returns:
            (N, D).

        Raises:
            FacelitError: in training, if N is 1.
        """
        if self.training and embeddings.shape[0] < 2:
            raise FacelitError(
                "a training batch of one image: the backbone normalises embeddings over the batch, which takes two or"
                " more images per process. Raise data.batch_size to 4 or more: then the last batches have two each as well."
            )
        return super().forward(embeddings)


class EmbeddingNeck(nn.Module):
    """From a backbone's features to the embedding: BN - dropout - linear - BN.

    The scale of the last normalisation stays 1, as in InsightFace.

    Args:
        channels: of the feature map, C; or how many pooled features there are.
        embedding_dim: the length of an embedding, D.
        dropout: the share of the normalised features that training zeroes.
        area: the number of positions of the feature map, H * W.

    Shape:
        (N, C, H, W), or (N, C) where the area is 1, to (N, D).
    """

    def __init__(self, channels: int, embedding_dim: int, dropout: float = 0.0, area: int = 1) -> None:
        super().__init__()
        # Over a map: one mean and variance for each channel, over images and positions.
        self.norm = nn.BatchNorm2d(channels) if area > 1 else EmbeddingBatchNorm(channels)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(channels * area, embedding_dim)
        self.embedding_norm = EmbeddingBatchNorm(embedding_dim, fixed_scale=True)

    def forward(self, features: Tensor) -> Tensor:
        """Embeds features.

        Args:
            features: (N, C, H, W) or (N, C).

        Returns:
            (N, D) embeddings, not normalised.

        Raises:
            FacelitError: in training, if N is 1.
        """
        normalised = self.dropout(self.norm(features).flatten(1))
        embeddings: Tensor = self.embedding_norm(self.linear(normalised))
        return embeddings


def make_neck(
    backbone: str, features: int, embedding_dim: int, neck: Literal["standard"] | None, dropout: float | None
) -> nn.Module:
    """From pooled features, (N, C), to embeddings, (N, D): a linear layer, or the standard neck.

    Args:
        backbone: the backbone's name, for messages.
        features: C.
        embedding_dim: D.
        neck: "standard", or None for a linear layer.
        dropout: of the standard neck; None is 0, which goes without it too.

    Raises:
        FacelitError: if there is no such neck, or there is dropout without it.
    """
    check_neck(backbone, neck)
    if neck == "standard":
        return EmbeddingNeck(features, embedding_dim, dropout or 0.0)
    if dropout:
        raise FacelitError(f"{backbone}: dropout is the standard neck's: add neck: standard, or leave it away")
    return nn.Linear(features, embedding_dim)


def check_neck(backbone: str, neck: str | None) -> None:
    """Refuses a neck that there is not.

    Raises:
        FacelitError: if it is neither "standard" nor None.
    """
    if neck not in (None, "standard"):
        raise FacelitError(f"{backbone}: neck must be standard or null, not {neck!r}")
