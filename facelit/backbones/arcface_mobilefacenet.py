"""InsightFace's MobileFaceNet, `mbf` of arcface_torch: wider than the paper's, with grouped convolutions at full resolution.

Chen et al.: MobileFaceNets, CCBR 2018 (arXiv 1804.07573); An et al.: Killing Two Birds with One Stone, CVPR 2022, section 4, for
this variant's figures. Parameters have the names of arcface_torch's checkpoints, so that those load.
"""

from __future__ import annotations

from torch import Tensor, nn

from facelit.backbones.channels import check_sizes

_GROUPS = 64
_LAST = 512
_FEATURE_MAP = 7


class ArcFaceMobileFaceNet(nn.Module):
    """A small network of inverted bottlenecks with 1.7 times the parameters of `MobileFaceNet`.

    Args:
        embedding_dim: the length of an embedding, D.
        scale: factor of the 64 and 128 channels between bottlenecks; 2 in `mbf`, 4 in `mbf_large`.
        blocks: repetitions at each of the four resolutions; (1, 4, 6, 2) in `mbf`, (2, 8, 12, 4) in `mbf_large`.

    Attributes:
        embedding_dim: the length of an embedding.
    """

    def __init__(
        self, embedding_dim: int = 512, scale: int = 2, blocks: tuple[int, int, int, int] = (1, 4, 6, 2)
    ) -> None:
        super().__init__()
        check_sizes(embedding_dim=embedding_dim, scale=scale)
        self.embedding_dim = embedding_dim
        narrow, wide = 64 * scale, 128 * scale
        first = (
            _Convolution(narrow, narrow, 3, groups=_GROUPS)
            if blocks[0] == 1
            else _Bottlenecks(narrow, blocks[0], hidden=128)
        )
        self.layers = nn.ModuleList(
            [
                _Convolution(3, narrow, 3, stride=2),
                first,
                _Bottleneck(narrow, narrow, 128, stride=2),
                _Bottlenecks(narrow, blocks[1], hidden=128),
                _Bottleneck(narrow, wide, 256, stride=2),
                _Bottlenecks(wide, blocks[2], hidden=256),
                _Bottleneck(wide, wide, 512, stride=2),
                _Bottlenecks(wide, blocks[3], hidden=256),
            ]
        )
        self.conv_sep = _Convolution(wide, _LAST, 1)
        self.features = _Layers(
            _Convolution(_LAST, _LAST, _FEATURE_MAP, groups=_LAST, padding=0, linear=True),
            nn.Flatten(),
            nn.Linear(_LAST, embedding_dim, bias=False),
            nn.BatchNorm1d(embedding_dim),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Embeds images, (N, 3, 112, 112) floating point, to (N, D), not normalised."""
        maps = images
        for layer in self.layers:
            maps = layer(maps)
        embeddings: Tensor = self.features(self.conv_sep(maps))
        return embeddings


class _Layers(nn.Module):
    """A sequence under the name that arcface_torch gives it."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, maps: Tensor) -> Tensor:
        result: Tensor = self.layers(maps)
        return result


class _Convolution(_Layers):
    """A convolution, BN, and PReLU unless linear."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        stride: int = 1,
        groups: int = 1,
        padding: int | None = None,
        linear: bool = False,
    ) -> None:
        pad = size // 2 if padding is None else padding
        convolution = nn.Conv2d(inputs, outputs, size, stride, pad, groups=groups, bias=False)
        super().__init__(convolution, nn.BatchNorm2d(outputs), *([] if linear else [nn.PReLU(outputs)]))


class _Bottleneck(_Layers):
    """Widens to `hidden` channels, filters each by itself, narrows to `outputs`."""

    def __init__(self, inputs: int, outputs: int, hidden: int, stride: int, residual: bool = False) -> None:
        super().__init__(
            _Convolution(inputs, hidden, 1),
            _Convolution(hidden, hidden, 3, stride, groups=hidden),
            _Convolution(hidden, outputs, 1, linear=True),
        )
        self.residual = residual

    def forward(self, maps: Tensor) -> Tensor:
        inner = super().forward(maps)
        return maps + inner if self.residual else inner


class _Bottlenecks(_Layers):
    """Residual bottlenecks of one resolution."""

    def __init__(self, channels: int, count: int, hidden: int) -> None:
        super().__init__(*(_Bottleneck(channels, channels, hidden, 1, residual=True) for _ in range(count)))
