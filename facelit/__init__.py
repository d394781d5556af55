"""facelit: face-verification embeddings with PyTorch Lightning."""

from typing import TYPE_CHECKING, Any

from facelit.errors import FacelitError

if TYPE_CHECKING:
    from facelit.recognizer import FaceRecognizer

__version__ = "0.1.0"
__all__ = ["FaceRecognizer", "FacelitError", "__version__"]


def __getattr__(name: str) -> Any:
    """Imports Lightning only when the module that needs it is asked for: heads and losses come without."""
    if name == "FaceRecognizer":
        from facelit.recognizer import FaceRecognizer

        return FaceRecognizer
    raise AttributeError(f"module 'facelit' has no attribute {name!r}")
