"""Inception-ResNet-v1 for face crops of 160x160, as David Sandberg's FaceNet trained it and facenet-pytorch carries it.

Szegedy et al.: Inception-v4, Inception-ResNet and the Impact of Residual Connections on Learning, AAAI 2017 (arXiv 1602.07261),
figures 10 to 15. Parameters have the names of facenet-pytorch's checkpoints, so that those load.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from facelit.backbones.channels import check_sizes

_EPSILON = 1e-3  # TensorFlow's, in batch normalisation


class InceptionResnetV1(nn.Module):
    """The residual Inception network of 22.8 M parameters; it takes 80x80 and up, and was trained on 160x160.

    facenet-pytorch's own network divides the embedding by its length; this one does not.

    Args:
        embedding_dim: the length of an embedding, D.
        dropout: the share of the pooled features that training zeroes.

    Attributes:
        embedding_dim: the length of an embedding.
    """

    def __init__(self, embedding_dim: int = 512, dropout: float = 0.6) -> None:
        super().__init__()
        check_sizes(embedding_dim=embedding_dim)
        self.embedding_dim = embedding_dim
        self.conv2d_1a = _Convolution(3, 32, 3, stride=2)
        self.conv2d_2a = _Convolution(32, 32, 3)
        self.conv2d_2b = _Convolution(32, 64, 3, padding=1)
        self.maxpool_3a = nn.MaxPool2d(3, stride=2)
        self.conv2d_3b = _Convolution(64, 80, 1)
        self.conv2d_4a = _Convolution(80, 192, 3)
        self.conv2d_4b = _Convolution(192, 256, 3, stride=2)
        self.repeat_1 = nn.Sequential(*(_inception_a() for _ in range(5)))
        self.mixed_6a = _Branches(
            _Convolution(256, 384, 3, stride=2),
            nn.Sequential(
                _Convolution(256, 192, 1), _Convolution(192, 192, 3, padding=1), _Convolution(192, 256, 3, stride=2)
            ),
            nn.MaxPool2d(3, stride=2),
        )
        self.repeat_2 = nn.Sequential(*(_inception_b() for _ in range(10)))
        self.mixed_7a = _Branches(
            nn.Sequential(_Convolution(896, 256, 1), _Convolution(256, 384, 3, stride=2)),
            nn.Sequential(_Convolution(896, 256, 1), _Convolution(256, 256, 3, stride=2)),
            nn.Sequential(
                _Convolution(896, 256, 1), _Convolution(256, 256, 3, padding=1), _Convolution(256, 256, 3, stride=2)
            ),
            nn.MaxPool2d(3, stride=2),
        )
        self.repeat_3 = nn.Sequential(*(_inception_c(0.2) for _ in range(5)))
        self.block8 = _inception_c(1.0, rectify=False)
        self.avgpool_1a = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.last_linear = nn.Linear(1792, embedding_dim, bias=False)
        self.last_bn = nn.BatchNorm1d(embedding_dim, eps=_EPSILON)

    def forward(self, images: Tensor) -> Tensor:
        """Embeds images, (N, 3, 160, 160) floating point, to (N, D), not normalised."""
        maps = self.maxpool_3a(self.conv2d_2b(self.conv2d_2a(self.conv2d_1a(images))))
        maps = self.repeat_1(self.conv2d_4b(self.conv2d_4a(self.conv2d_3b(maps))))
        maps = self.repeat_2(self.mixed_6a(maps))
        maps = self.block8(self.repeat_3(self.mixed_7a(maps)))
        pooled = self.dropout(self.avgpool_1a(maps).flatten(1))
        embeddings: Tensor = self.last_bn(self.last_linear(pooled))
        return embeddings


class _Convolution(nn.Module):
    """A convolution, BN and ReLU."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int | tuple[int, int],
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, size, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=_EPSILON)

    def forward(self, maps: Tensor) -> Tensor:
        result: Tensor = self.bn(self.conv(maps)).relu()
        return result


class _Branches(nn.Module):
    """Branches from one input, their channels side by side: `branch0`, `branch1`, ..."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        for number, branch in enumerate(branches):
            self.add_module(f"branch{number}", branch)
        self._count = len(branches)

    def forward(self, maps: Tensor) -> Tensor:
        return torch.cat([self.get_submodule(f"branch{number}")(maps) for number in range(self._count)], dim=1)


class _Residual(_Branches):
    """Branches whose channels a 1x1 convolution brings back to the input's; scaled, they are added to it."""

    def __init__(
        self, channels: int, width: int, scale: float, branches: Sequence[nn.Module], rectify: bool = True
    ) -> None:
        super().__init__(*branches)
        self.conv2d = nn.Conv2d(width, channels, 1)
        self.scale = scale
        self.rectify = rectify

    def forward(self, maps: Tensor) -> Tensor:
        summed: Tensor = self.conv2d(super().forward(maps)) * self.scale + maps
        return summed.relu() if self.rectify else summed


def _inception_a() -> nn.Module:
    """Figure 10, at 17x17 positions for images of 160x160."""
    branches = [
        _Convolution(256, 32, 1),
        nn.Sequential(_Convolution(256, 32, 1), _Convolution(32, 32, 3, padding=1)),
        nn.Sequential(_Convolution(256, 32, 1), _Convolution(32, 32, 3, padding=1), _Convolution(32, 32, 3, padding=1)),
    ]
    return _Residual(256, 96, 0.17, branches)


def _inception_b() -> nn.Module:
    """Figure 11, at 8x8 positions."""
    branches = [
        _Convolution(896, 128, 1),
        nn.Sequential(
            _Convolution(896, 128, 1),
            _Convolution(128, 128, (1, 7), padding=(0, 3)),
            _Convolution(128, 128, (7, 1), padding=(3, 0)),
        ),
    ]
    return _Residual(896, 256, 0.10, branches)


def _inception_c(scale: float, rectify: bool = True) -> nn.Module:
    """Figure 13, at 3x3 positions."""
    branches = [
        _Convolution(1792, 192, 1),
        nn.Sequential(
            _Convolution(1792, 192, 1),
            _Convolution(192, 192, (1, 3), padding=(0, 1)),
            _Convolution(192, 192, (3, 1), padding=(1, 0)),
        ),
    ]
    return _Residual(1792, 384, scale, branches, rectify)
