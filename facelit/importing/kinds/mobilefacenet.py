"""The two MobileFaceNets that most PyTorch repositories copy."""

from __future__ import annotations

import re
from collections.abc import Iterator

from facelit.backbones import MobileFaceNet, ReluMobileFaceNet
from facelit.importing.kinds.kind import IMAGENET_MEAN, IMAGENET_STD, Feed, Kind, Network, Published, State, rows_of

_BLOCK_PARTS = {0: (0, 0), 1: (0, 1), 2: (0, 2), 3: (1, 0), 4: (1, 1), 5: (1, 2), 6: (2, 0), 7: (2, 1)}
"""Xiaoccer's bottleneck is one sequence; facelit's is three: convolution, BN, PReLU each."""

_PLACES = {
    "conv1.conv": "stem.0.0",
    "conv1.bn": "stem.0.1",
    "conv1.prelu": "stem.0.2",
    "dw_conv1.conv": "stem.1.0",
    "dw_conv1.bn": "stem.1.1",
    "dw_conv1.prelu": "stem.1.2",
    "conv2.conv": "expand.0",
    "conv2.bn": "expand.1",
    "conv2.prelu": "expand.2",
    "linear7.conv": "neck.0",
    "linear7.bn": "neck.2",
    "linear1.conv": "neck.3",
    "linear1.bn": "neck.4",
}


def _relu(state: State, hint: str | None) -> Iterator[Network]:
    dim = rows_of(state, "conv3.weight", 128)
    yield Network("MobileFaceNet of foamliu", ReluMobileFaceNet, {"embedding_dim": dim})


def _prelu(state: State, hint: str | None) -> Iterator[Network]:
    dim = rows_of(state, "neck.3.weight", 128)
    yield Network("MobileFaceNet of Xiaoccer", MobileFaceNet, {"embedding_dim": dim, "feature_map": [7, 6]})


def _xiaoccers_names(state: State) -> State:
    converted = {}
    for name, value in state.items():
        place, _, kind = name.rpartition(".")
        if block := re.fullmatch(r"blocks\.(\d+)\.conv\.([0-7])", place):
            first, second = _BLOCK_PARTS[int(block.group(2))]
            place = f"blocks.{block.group(1)}.layers.{first}.{second}"
        else:
            place = _PLACES.get(place, place)
        if place == "neck.3" and value.ndim == 4:  # a 1x1 convolution of one position is a linear layer
            value = value.flatten(1)
        converted[f"{place}.{kind}"] = value
    return converted


FOAMLIU = Kind(
    "foamliu MobileFaceNet",
    "gdconv.depthwise.weight",
    _relu,
    Feed(mean=IMAGENET_MEAN, std=IMAGENET_STD),
    published=(
        Published(
            "foamliu/MobileFaceNet",
            "MobileFaceNet with ReLU, 128 numbers",
            "https://github.com/foamliu/MobileFaceNet",
            "Apache-2.0",
            "MS1M, refined (85,164 people)",
            "0.9948",
            "facelit import mobilefacenet.pt mobilefacenet.ckpt",
        ),
    ),
)

XIAOCCER = Kind(
    "Xiaoccer MobileFaceNet",
    "neck.3.weight",
    _prelu,
    Feed(size=(112, 96), std=(128.0, 128.0, 128.0)),
    convert=_xiaoccers_names,
    published=(
        Published(
            "Xiaoccer/MobileFaceNet_Pytorch",
            "MobileFaceNet for 112x96, 128 numbers",
            "https://github.com/Xiaoccer/MobileFaceNet_Pytorch",
            "not stated",
            "CASIA-WebFace",
            "0.9930 (both mirror images side by side)",
            "facelit import 068.ckpt mobilefacenet.ckpt",
        ),
    ),
)
