"""AdaFace's Lightning checkpoints, and CVLface's, with the same networks but a different order of colours."""

from __future__ import annotations

from collections.abc import Iterator

from facelit.backbones import AdaFaceIR
from facelit.importing.kinds.kind import Feed, Kind, Network, Published, State, rows_of


def _irs(owner: str, state: State) -> Iterator[Network]:
    dim = rows_of(state, "output_layer.3.weight", 512)
    for depth in (18, 34, 50, 101):
        yield Network(f"IR-{depth} of {owner}", AdaFaceIR, {"depth": depth, "embedding_dim": dim})


CVLFACE = Kind(
    "CVLface IR",
    "input_layer.0.weight",
    lambda state, hint: _irs("CVLface", state),
    Feed(),
    prefixes=("net.", "model.net."),
    published=(
        Published(
            "CVLface AdaFace and ArcFace IR-18, 50, 101",
            "IR-18, 50, 101",
            "https://github.com/mk-minchul/CVLface",
            "that of the training set",
            "CASIA-WebFace, VGGFace2, MS1MV2, MS1MV3, WebFace4M, WebFace12M",
            "0.9922 (IR-18, CASIA) to 0.9985 (IR-50, MS1MV2)",
            "facelit import model.pt ir101.ckpt",
        ),
    ),
)

ADAFACE = Kind(
    "AdaFace IR",
    "input_layer.0.weight",
    lambda state, hint: _irs("AdaFace", state),
    Feed(colour="BGR"),
    published=(
        Published(
            "AdaFace R18, R50, R100",
            "IR-18, 50, 101",
            "https://github.com/mk-minchul/AdaFace",
            "MIT (code); the training sets are for research",
            "CASIA-WebFace, VGGFace2, MS1MV2, MS1MV3, WebFace4M, WebFace12M",
            "0.9913 (R18, CASIA) to 0.9982 (R100)",
            "facelit import adaface_ir50_ms1mv2.ckpt adaface.ckpt",
        ),
    ),
)
