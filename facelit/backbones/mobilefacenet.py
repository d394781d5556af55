"""MobileFaceNet for 112x112 face crops.

Chen et al.: MobileFaceNets: Efficient CNNs for Accurate Real-time Face Verification on Mobile Devices, CCBR 2018
(arXiv 1804.07573), table 1.
"""

from __future__ import annotations

from torch import Tensor, nn

from facelit.backbones.channels import check_sizes, scale_channels
from facelit.backbones.maps import stretched
from facelit.backbones.neck import EmbeddingBatchNorm

_BOTTLENECKS = ((2, 64, 5, 2), (4, 128, 1, 2), (2, 128, 6, 1), (4, 128, 1, 2), (2, 128, 2, 1))
"""Rows of table 1: expansion factor t, output channels c, repetitions n, stride s of the first."""

_FEATURE_MAP = (7, 7)
"""Halving 112x112 four times leaves 7x7."""


class MobileFaceNet(nn.Module):
    """A small network of inverted bottlenecks, whose last feature map is weighted by position instead of averaged.

    The global depthwise convolution (GDConv) has one 7x7 filter per channel, as the centre of a face matters more than
    the corners. Every convolution is followed by BN, and by PReLU unless table 1 says linear. The paper's embeddings have
    128 components.

    Args:
        embedding_dim: the length of an embedding, D.
        width: multiplies all channel counts (rounded to multiples of 8).
        feature_map: height and width of the last map, a sixteenth of the images'; (7, 6) for a network that takes 112x96.

    Attributes:
        embedding_dim: the length of an embedding.

    Raises:
        FacelitError: from the forward pass in training, if N is 1.
    """

    def __init__(
        self, embedding_dim: int = 512, width: float = 1.0, feature_map: tuple[int, int] = _FEATURE_MAP
    ) -> None:
        super().__init__()
        check_sizes(width=width, embedding_dim=embedding_dim)
        self.embedding_dim = embedding_dim
        self.feature_map = feature_map
        channels, last = scale_channels(64, width), scale_channels(512, width)
        self.stem = nn.Sequential(
            _convolution(3, channels, 3, stride=2), _convolution(channels, channels, 3, depthwise=True)
        )
        blocks: list[nn.Module] = []
        for expansion, count, repetitions, stride in _BOTTLENECKS:
            outputs = scale_channels(count, width)
            for number in range(repetitions):
                blocks.append(_Bottleneck(channels, outputs, expansion, 1 if number else stride))
                channels = outputs
        self.blocks = nn.Sequential(*blocks)
        self.expand = _convolution(channels, last, 1)
        self.neck = nn.Sequential(
            nn.Conv2d(last, last, (feature_map[0], feature_map[1]), groups=last, bias=False),  # GDConv
            nn.Flatten(),
            EmbeddingBatchNorm(last),
            nn.Linear(last, embedding_dim, bias=False),  # table 1's last 1x1 convolution
            EmbeddingBatchNorm(embedding_dim),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Embeds crops, (N, 3, 112, 112) floating-point RGB in [-1, 1], as (N, D), not normalised."""
        embeddings: Tensor = self.neck(stretched(self.expand(self.blocks(self.stem(images))), *self.feature_map))
        return embeddings


class _Bottleneck(nn.Module):
    """MobileNetV2's, with PReLU: (N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.residual = stride == 1 and inputs == outputs
        self.layers = nn.Sequential(
            _convolution(inputs, hidden, 1),
            _convolution(hidden, hidden, 3, stride, depthwise=True),
            _convolution(hidden, outputs, 1, linear=True),
        )

    def forward(self, maps: Tensor) -> Tensor:
        inner: Tensor = self.layers(maps)
        return maps + inner if self.residual else inner


def _convolution(
    inputs: int, outputs: int, size: int, stride: int = 1, depthwise: bool = False, linear: bool = False
) -> nn.Sequential:
    """A convolution that keeps or divides the resolution, BN, and PReLU unless linear."""
    groups = inputs if depthwise else 1
    convolution = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), *([] if linear else [nn.PReLU(outputs)]))
