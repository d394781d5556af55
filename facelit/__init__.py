"""facelit: face-verification embeddings with PyTorch Lightning."""

from facelit.errors import FacelitError
from facelit.recognizer import FaceRecognizer

__version__ = "0.1.0"
__all__ = ["FaceRecognizer", "FacelitError", "__version__"]
