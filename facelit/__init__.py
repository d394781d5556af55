"""facelit: face-verification embeddings with PyTorch Lightning."""

from typing import TYPE_CHECKING, Any

from facelit.errors import FacelitError
from facelit.version import __version__

if TYPE_CHECKING:
    from facelit.inference import load
    from facelit.training.recognizer import FaceRecognizer

__all__ = ["FaceRecognizer", "FacelitError", "__version__", "load"]


def __getattr__(name: str) -> Any:
    """Imports torch and Lightning only when what needs them is asked for: heads and losses come without Lightning."""
    if name == "FaceRecognizer":
        from facelit.training.recognizer import FaceRecognizer

        return FaceRecognizer
    if name == "load":
        from facelit.inference import load

        return load
    raise AttributeError(f"module 'facelit' has no attribute {name!r}")
