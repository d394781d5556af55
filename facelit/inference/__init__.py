"""A trained checkpoint's answers: embeddings, "are these two the same person?", "who is this?"."""

from facelit.inference.gallery import Gallery, Match
from facelit.inference.model import FaceModel, Identification, Verdict, load
from facelit.inference.photos import NoFaceError
from facelit.inference.thresholds import Threshold

__all__ = ["FaceModel", "Gallery", "Identification", "Match", "NoFaceError", "Threshold", "Verdict", "load"]
