"""The residual networks of AdaFace and CVLface for 112x112 face crops.

Kim et al.: AdaFace: Quality Adaptive Margin for Face Recognition, CVPR 2022 (arXiv 2204.00964), whose networks are ArcFace's
with another shortcut. Parameters have the names of AdaFace's checkpoints, so that those load.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from facelit.backbones.channels import check_sizes
from facelit.backbones.maps import stretched
from facelit.errors import FacelitError

_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 14, 3), 101: (3, 13, 30, 3)}
_CHANNELS = (64, 64, 128, 256, 512)
_SIDE = 7
"""Halving 112x112 in four groups leaves 7x7."""


class AdaFaceIR(nn.Module):
    """IR-18, 34, 50 or 101: `IResNet`'s blocks with another shortcut.

    Where a block keeps its number of channels, the shortcut takes every second position instead of going through a
    convolution; and the batch normalisation of the embedding has neither scale nor bias.

    AdaFace's own network returns the embedding divided by its length, and the length; this one the embedding.

    Args:
        depth: 18, 34, 50 or 101.
        embedding_dim: the length of an embedding, D.
        dropout: the share of the last feature map that training zeroes.

    Attributes:
        embedding_dim: the length of an embedding.

    Raises:
        FacelitError: if there is no such depth.
    """

    def __init__(self, depth: Literal[18, 34, 50, 101] = 50, embedding_dim: int = 512, dropout: float = 0.4) -> None:
        super().__init__()
        check_sizes(embedding_dim=embedding_dim)
        if depth not in _BLOCKS:
            raise FacelitError(f"AdaFaceIR: there is no depth {depth!r}; there are: {', '.join(map(str, _BLOCKS))}")
        self.embedding_dim = embedding_dim
        self.input_layer = nn.Sequential(
            nn.Conv2d(3, _CHANNELS[0], 3, padding=1, bias=False), nn.BatchNorm2d(_CHANNELS[0]), nn.PReLU(_CHANNELS[0])
        )
        blocks = []
        for inputs, outputs, count in zip(_CHANNELS, _CHANNELS[1:], _BLOCKS[depth], strict=False):
            blocks += [_Block(inputs, outputs, 2), *(_Block(outputs, outputs, 1) for _ in range(count - 1))]
        self.body = nn.Sequential(*blocks)
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(_CHANNELS[-1]),
            nn.Dropout(dropout),
            nn.Flatten(),
            nn.Linear(_CHANNELS[-1] * _SIDE * _SIDE, embedding_dim),
            nn.BatchNorm1d(embedding_dim, affine=False),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Embeds images, (N, 3, 112, 112) floating point, to (N, D), not normalised."""
        embeddings: Tensor = self.output_layer(stretched(self.body(self.input_layer(images)), _SIDE, _SIDE))
        return embeddings


class _Block(nn.Module):
    """(N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.shortcut_layer: nn.Module = nn.MaxPool2d(1, stride)
        if inputs != outputs:
            self.shortcut_layer = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.PReLU(outputs),
            nn.Conv2d(outputs, outputs, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, maps: Tensor) -> Tensor:
        summed: Tensor = self.shortcut_layer(maps) + self.res_layer(maps)
        return summed
