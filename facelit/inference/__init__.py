"""Inference with a trained checkpoint: embeddings, "are these two the same person?", "who is this?"."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from facelit.inference.gallery import Gallery, Match
    from facelit.inference.model import FaceModel, Identification, Verdict, load
    from facelit.inference.photos import NoFaceError
    from facelit.inference.thresholds import Threshold

__all__ = ["FaceModel", "Gallery", "Identification", "Match", "NoFaceError", "Threshold", "Verdict", "load"]

_MODULES = {"Gallery": "gallery", "Match": "gallery", "NoFaceError": "photos", "Threshold": "thresholds"}


def __getattr__(name: str) -> Any:
    """Imports torch only once a name that needs it is used, so that `facelit verify --help` does not wait for it."""
    if name not in __all__:
        raise AttributeError(f"module 'facelit.inference' has no attribute {name!r}")
    return getattr(import_module(f"facelit.inference.{_MODULES.get(name, 'model')}"), name)
