"""Exports a trained network for other programs (ONNX, `torch.export`, safetensors), compared with its checkpoint."""

from facelit.export.exporting import TOLERANCE, Exported, export_model
from facelit.export.formats import FormatName, read_metadata
from facelit.export.graph import EmbeddingGraph
from facelit.export.metadata import Metadata
from facelit.export.safetensors import load_safetensors

__all__ = [
    "TOLERANCE",
    "EmbeddingGraph",
    "Exported",
    "FormatName",
    "Metadata",
    "export_model",
    "load_safetensors",
    "read_metadata",
]
