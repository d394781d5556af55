"""The model as Lightning trains it: backbone, head and optimizers."""

from facelit.training.recognizer import FaceRecognizer

__all__ = ["FaceRecognizer"]
