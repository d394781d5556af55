"""The kinds of weights that facelit knows, one per file."""

from facelit.importing.kinds import adaface, arcface, facenet, mobilefacenet, onnx_files, timm_model, torchvision_model
from facelit.importing.kinds.kind import Feed, Kind, Network, Published, State

__all__ = ["KINDS", "Feed", "Kind", "Network", "Published", "State", "published"]

KINDS: tuple[Kind, ...] = (
    arcface.IRESNET,
    arcface.MOBILEFACENET,
    adaface.CVLFACE,
    adaface.ADAFACE,
    mobilefacenet.FOAMLIU,
    mobilefacenet.XIAOCCER,
    facenet.INCEPTION,
    torchvision_model.TORCHVISION,
    timm_model.TIMM,
)
"""The kinds, in the order in which they are tried."""


def published() -> list[Published]:
    """All published weights that are known, kind by kind."""
    rows = [row for kind in KINDS if kind.mark for row in kind.published]
    return [*rows, *onnx_files.PUBLISHED, *(row for kind in KINDS if not kind.mark for row in kind.published)]
