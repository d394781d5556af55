"""facenet-pytorch's InceptionResnetV1."""

from __future__ import annotations

from collections.abc import Iterator

from facelit.backbones import InceptionResnetV1
from facelit.importing.kinds.kind import Feed, Kind, Network, Published, State, rows_of


def _networks(state: State, hint: str | None) -> Iterator[Network]:
    dim = rows_of(state, "last_linear.weight", 512)
    yield Network("InceptionResnetV1 of facenet-pytorch", InceptionResnetV1, {"embedding_dim": dim})


def _without_classifier(state: State) -> State:
    return {name: value for name, value in state.items() if not name.startswith("logits.")}


INCEPTION = Kind(
    "facenet-pytorch InceptionResnetV1",
    "conv2d_1a.conv.weight",
    _networks,
    Feed(size=(160, 160), std=(128.0, 128.0, 128.0)),
    convert=_without_classifier,
    published=(
        Published(
            "facenet-pytorch 20180402-114759",
            "InceptionResnetV1, 160x160",
            "https://github.com/timesler/facenet-pytorch",
            "MIT",
            "VGGFace2",
            "0.9965 (its own, looser crops)",
            "facelit import 20180402-114759-vggface2.pt facenet.ckpt",
        ),
        Published(
            "facenet-pytorch 20180408-102900",
            "InceptionResnetV1, 160x160",
            "https://github.com/timesler/facenet-pytorch",
            "MIT",
            "CASIA-WebFace",
            "0.9905 (its own, looser crops)",
            "facelit import 20180408-102900-casia-webface.pt facenet.ckpt",
        ),
    ),
    notes=(
        "Trained on looser crops that were not aligned: facelit's are enlarged to 160x160. Measure it before you rely on it.",
    ),
)
