"""InsightFace's improved residual networks for 112x112 face crops.

Deng et al.: ArcFace: Additive Angular Margin Loss for Deep Face Recognition, CVPR 2019 (arXiv 1801.07698; its first version
compares the blocks, section 3.2). The layers, their names and their initialisation are those of InsightFace's PyTorch
code, `recognition/arcface_torch/backbones/iresnet.py`.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from facelit.backbones.channels import check_sizes, scale_channels
from facelit.backbones.maps import stretched
from facelit.backbones.neck import EmbeddingBatchNorm
from facelit.errors import FacelitError

_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 14, 3), 100: (3, 13, 30, 3), 200: (6, 26, 60, 6)}
"""Residual blocks in each of the four groups."""

_SIDE = 7
"""Halving 112x112 in four groups leaves 7x7."""

_MIN_CHANNELS = 16
"""With fewer, the backward pass of a strided 1x1 convolution in NHWC crashes on AVX-512 CPUs (torch 2.15); see oneDNN issue 6035."""


class IResNet(nn.Module):
    """A residual network that keeps the resolution in its first layer, with the standard neck.

    The first layer is a 3x3 convolution of stride 1 (112x112 is small already). A block is BN - 3x3 - BN - PReLU - 3x3 - BN
    with nothing after the addition; the first block of each of the four groups halves the resolution, and its shortcut is
    a 1x1 convolution and BN. The neck is BN - dropout - linear - BN, the scale of whose last BN stays 1.

    Parameters have InsightFace's names: the weights of its `iresnet18`, 34, 50, 100 and 200 load into the same depth.

    Args:
        depth: 18, 34, 50, 100 or 200.
        embedding_dim: the length of an embedding, D.
        dropout: fraction of the last feature map that is zeroed in training.
        width: multiplies all channel counts (rounded to multiples of 8, and at least 16).

    Attributes:
        embedding_dim: the length of an embedding.

    Raises:
        FacelitError: if there is no such depth. From the forward pass in training, if N is 1.
    """

    def __init__(
        self,
        depth: Literal[18, 34, 50, 100, 200] = 50,
        embedding_dim: int = 512,
        dropout: float = 0.0,
        width: float = 1.0,
    ) -> None:
        super().__init__()
        check_sizes(width=width, embedding_dim=embedding_dim)
        if depth not in _BLOCKS:
            raise FacelitError(f"IResNet: there is no depth {depth!r}; there are: {', '.join(map(str, _BLOCKS))}")
        self.embedding_dim = embedding_dim
        stem, *channels = (max(_MIN_CHANNELS, scale_channels(count, width)) for count in (64, 64, 128, 256, 512))
        self.conv1 = nn.Conv2d(3, stem, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.prelu = nn.PReLU(stem)
        inputs = [stem, *channels[:-1]]
        groups = [_group(*sizes) for sizes in zip(inputs, channels, _BLOCKS[depth], strict=True)]
        self.layer1, self.layer2, self.layer3, self.layer4 = groups
        # An `EmbeddingNeck`'s parts, under InsightFace's names.
        self.bn2 = nn.BatchNorm2d(channels[-1])
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(channels[-1] * _SIDE * _SIDE, embedding_dim)
        self.features = EmbeddingBatchNorm(embedding_dim, fixed_scale=True)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0, 0.1)

    def forward(self, images: Tensor) -> Tensor:
        """Embeds crops, (N, 3, 112, 112) floating-point RGB in [-1, 1], as (N, D), not normalised."""
        maps = self.prelu(self.bn1(self.conv1(images)))
        maps = stretched(self.layer4(self.layer3(self.layer2(self.layer1(maps)))), _SIDE, _SIDE)
        embeddings: Tensor = self.features(self.fc(self.dropout(self.bn2(maps).flatten(1))))
        return embeddings


class _Block(nn.Module):
    """(N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.prelu = nn.PReLU(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False),
                nn.BatchNorm2d(outputs),
            )

    def forward(self, maps: Tensor) -> Tensor:
        inner = self.prelu(self.bn2(self.conv1(self.bn1(maps))))
        summed: Tensor = self.bn3(self.conv2(inner)) + self.downsample(maps)
        return summed


def _group(inputs: int, outputs: int, blocks: int) -> nn.Sequential:
    """Blocks of one resolution, which the first one halves."""
    return nn.Sequential(_Block(inputs, outputs, 2), *(_Block(outputs, outputs, 1) for _ in range(blocks - 1)))
