"""MobileFaceNet with ReLU instead of PReLU, as github.com/foamliu/MobileFaceNet trained it.

Chen et al.: MobileFaceNets, CCBR 2018 (arXiv 1804.07573), table 1. Parameters have the names of that project's checkpoints, so
that those load.
"""

from __future__ import annotations

from torch import Tensor, nn

_BOTTLENECKS = ((2, 64, 5, 2), (4, 128, 1, 2), (2, 128, 6, 1), (4, 128, 1, 2), (2, 128, 2, 1))
"""Rows of table 1: expansion factor t, output channels c, repetitions n, stride s of the first."""

_LAST = 512


class ReluMobileFaceNet(nn.Module):
    """The paper's bottlenecks with ReLU6, after a depthwise separable first block with ReLU; a convolution with bias ends it.

    Args:
        embedding_dim: the length of an embedding, D.

    Attributes:
        embedding_dim: the length of an embedding.
    """

    def __init__(self, embedding_dim: int = 128) -> None:
        super().__init__()
        self.embedding_dim = embedding_dim
        self.conv1 = _convolution(3, 64, 3, stride=2)
        self.dw_conv = _Separable(64)
        channels, blocks = 64, []
        for expansion, outputs, repetitions, stride in _BOTTLENECKS:
            for number in range(repetitions):
                blocks.append(_Bottleneck(channels, outputs, channels * expansion, 1 if number else stride))
                channels = outputs
        self.features = nn.Sequential(*blocks)
        self.conv2 = _convolution(channels, _LAST, 1)
        self.gdconv = _GlobalDepthwise(_LAST)
        self.conv3 = nn.Conv2d(_LAST, embedding_dim, 1)
        self.bn = nn.BatchNorm2d(embedding_dim)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def forward(self, images: Tensor) -> Tensor:
        """Embeds images, (N, 3, 112, 112) floating point, to (N, D), not normalised."""
        maps = self.conv2(self.features(self.dw_conv(self.conv1(images))))
        embeddings: Tensor = self.bn(self.conv3(self.gdconv(maps))).flatten(1)
        return embeddings


class _Separable(nn.Module):
    """A depthwise convolution and a pointwise one, each with BN and ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.pointwise = nn.Conv2d(channels, channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, maps: Tensor) -> Tensor:
        filtered = self.bn1(self.depthwise(maps)).relu()
        result: Tensor = self.bn2(self.pointwise(filtered)).relu()
        return result


class _GlobalDepthwise(nn.Module):
    """One 7x7 filter for each channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, groups=channels, bias=False)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, maps: Tensor) -> Tensor:
        result: Tensor = self.bn(self.depthwise(maps))
        return result


class _Bottleneck(nn.Module):
    """(N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""

    def __init__(self, inputs: int, outputs: int, hidden: int, stride: int) -> None:
        super().__init__()
        self.residual = stride == 1 and inputs == outputs
        self.conv = nn.Sequential(
            _convolution(inputs, hidden, 1),
            _convolution(hidden, hidden, 3, stride, groups=hidden),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, maps: Tensor) -> Tensor:
        inner: Tensor = self.conv(maps)
        return maps + inner if self.residual else inner


def _convolution(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU6())
