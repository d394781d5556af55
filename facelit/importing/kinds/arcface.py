"""InsightFace's arcface_torch: IResNet and MobileFaceNet."""

from __future__ import annotations

from collections.abc import Iterator

from facelit.backbones import ArcFaceMobileFaceNet, IResNet
from facelit.importing.kinds.kind import Feed, Kind, Network, Published, State, rows_of

_HOME = "https://github.com/deepinsight/insightface/tree/master/recognition/arcface_torch"
_LICENCE = "non-commercial research"
_SETS = "MS1MV2, MS1MV3, Glint360K, WebFace"


def _iresnets(state: State, hint: str | None) -> Iterator[Network]:
    dim = rows_of(state, "fc.weight", 512)
    for depth in (18, 34, 50, 100, 200):
        yield Network(f"IResNet-{depth} of arcface_torch", IResNet, {"depth": depth, "embedding_dim": dim})


def _mobilefacenets(state: State, hint: str | None) -> Iterator[Network]:
    dim = rows_of(state, "features.layers.2.weight", 512)
    for name, scale, blocks in (("mbf", 2, [1, 4, 6, 2]), ("mbf_large", 4, [2, 8, 12, 4])):
        arguments = {"embedding_dim": dim, "scale": scale, "blocks": blocks}
        yield Network(f"MobileFaceNet ({name}) of arcface_torch", ArcFaceMobileFaceNet, arguments)


IRESNET = Kind(
    "arcface_torch IResNet",
    "layer1.0.prelu.weight",
    _iresnets,
    Feed(),
    published=(
        Published(
            "arcface_torch r18, r34, r50, r100, r200",
            "IResNet-18 to 200",
            _HOME,
            _LICENCE,
            _SETS,
            "not stated",
            "facelit import backbone.pth r50.ckpt",
        ),
    ),
)

MOBILEFACENET = Kind(
    "arcface_torch MobileFaceNet",
    "conv_sep.layers.0.weight",
    _mobilefacenets,
    Feed(),
    published=(
        Published(
            "arcface_torch mbf",
            "MobileFaceNet, widened",
            _HOME,
            _LICENCE,
            _SETS,
            "not stated",
            "facelit import backbone.pth mbf.ckpt",
        ),
    ),
)
