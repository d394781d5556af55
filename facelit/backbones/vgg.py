"""VGG16 for 112x112 face crops.

Simonyan, Zisserman: Very Deep Convolutional Networks for Large-Scale Image Recognition, ICLR 2015.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torchvision.models import VGG16_BN_Weights, VGG16_Weights
from torchvision.models.vgg import cfgs, make_layers

from facelit.backbones.channels import check_sizes, scale_channels
from facelit.backbones.maps import stretched
from facelit.backbones.neck import EmbeddingNeck, check_neck
from facelit.errors import FacelitError

_SIDE = 3
"""Halving 112x112 five times leaves 3x3."""

_FEATURE_MAP = _SIDE * _SIDE


class VGG16(nn.Module):
    """torchvision's VGG16 features, and two linear layers down to the embedding.

    The layers after the features are 512*3*3 -> 4096 -> ReLU -> Dropout -> embedding_dim, or the standard neck. Everything
    is initialised as in torchvision's VGG.

    ImageNet weights were trained on images with different normalisation (ImageNet's mean and standard deviation for each
    channel); on crops in [-1, 1] they are a starting point for training, not features to freeze.

    Args:
        embedding_dim: the length of an embedding, D.
        batch_norm: whether every convolution is followed by batch normalisation, as in ``vgg16_bn``.
        dropout: fraction of the 4096 activations, or of the standard neck's features, that is zeroed in training.
        width: multiplies all channel counts (rounded to multiples of 8) and the 4096.
        weights: "imagenet" starts from torchvision's ImageNet features, which are downloaded; None from scratch.
        neck: "standard" replaces the two linear layers by BN - dropout - linear - BN.

    Attributes:
        embedding_dim: the length of an embedding.

    Raises:
        FacelitError: if the ImageNet weights cannot be downloaded, or do not fit. From the forward pass in training with
            the standard neck, if N is 1.
    """

    def __init__(
        self,
        embedding_dim: int = 512,
        batch_norm: bool = False,
        dropout: float = 0.5,
        width: float = 1.0,
        weights: Literal["imagenet"] | None = None,
        neck: Literal["standard"] | None = None,
    ) -> None:
        super().__init__()
        check_sizes(width=width, embedding_dim=embedding_dim)
        check_neck("VGG16", neck)
        if weights not in (None, "imagenet"):
            raise FacelitError(f'VGG16: weights must be "imagenet" or null, not {weights!r}')
        if weights and width != 1.0:
            raise FacelitError("VGG16: weights: imagenet requires width: 1.0; omit one of the two")
        self.embedding_dim = embedding_dim
        self.neck = neck
        channels: list[str | int] = [c if isinstance(c, str) else scale_channels(c, width) for c in cfgs["D"]]
        self.features: nn.Sequential = make_layers(channels, batch_norm=batch_norm)
        last = scale_channels(512, width)
        self.embedding: nn.Module = (
            _two_linear_layers(last, scale_channels(4096, width), embedding_dim, dropout)
            if neck is None
            else EmbeddingNeck(last, embedding_dim, dropout, _FEATURE_MAP)
        )
        self.apply(_initialize)
        if weights:
            self.features.load_state_dict(_imagenet_features(batch_norm))

    def forward(self, images: Tensor) -> Tensor:
        """Embeds crops, (N, 3, 112, 112) floating-point RGB in [-1, 1], as (N, D), not normalised."""
        maps = stretched(self.features(images), _SIDE, _SIDE)
        embeddings: Tensor = self.embedding(maps if self.neck else maps.flatten(1))
        return embeddings


def _two_linear_layers(channels: int, hidden: int, embedding_dim: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(channels * _FEATURE_MAP, hidden),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Linear(hidden, embedding_dim),
    )


def _initialize(module: nn.Module) -> None:
    """Initialises one layer as torchvision's VGG does."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, 0, 0.01)
    if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


def _imagenet_features(batch_norm: bool) -> dict[str, torch.Tensor]:
    """The state dict of torchvision's ImageNet features, without the classifier."""
    weights = VGG16_BN_Weights.IMAGENET1K_V1 if batch_norm else VGG16_Weights.IMAGENET1K_V1
    try:
        state = weights.get_state_dict(progress=True, check_hash=True)
    except (OSError, RuntimeError) as error:
        raise FacelitError(
            f"VGG16: weights: imagenet could not be downloaded from {weights.url} ({error}); "
            "go online, put the file into $TORCH_HOME/hub/checkpoints, or set weights: null"
        ) from error
    prefix = "features."
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
