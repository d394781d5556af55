"""ONNX: for onnxruntime, and everything else that reads it."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from facelit.errors import FacelitError
from facelit.export.graph import EmbeddingGraph
from facelit.export.metadata import KEY, Metadata
from facelit.export.packages import require
from facelit.export.runner import Floats, Runner

OPSET = 18
"""What torch's exporter writes without converting; onnxruntime reads it since 1.14."""

_LARGEST = 2**31 - 1  # bytes: protobuf's limit for one message


def write(graph: EmbeddingGraph, metadata: Metadata, path: Path) -> None:
    """Writes one file, weights included, with input `images`, output `embeddings` and a batch axis of any length.

    Raises:
        FacelitError: onnx, onnxscript or onnxruntime is not installed, the network has no graph, or it is larger than such a file can be.
    """
    require("onnx", "onnxruntime")  # onnxruntime is for the check, so complain before the export, which takes a minute
    traversal = require("onnx_ir.traversal", "onnxscript")
    num_bytes = sum(value.numel() * value.element_size() for value in graph.state_dict().values())
    if num_bytes > _LARGEST:
        raise FacelitError(
            f"an ONNX file holds 2 GB at most, these weights are {num_bytes / 1e9:.1f} GB: export to .pt2 or .safetensors"
        )
    with _quiet():
        program = torch.onnx.export(
            graph,
            (example_of(graph),),
            dynamo=True,
            opset_version=OPSET,
            input_names=["images"],
            output_names=["embeddings"],
            dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
            external_data=False,
            verbose=False,
        )
        assert program is not None  # it is None without `dynamo` only
        for node in traversal.RecursiveGraphIterator(program.model.graph):
            node.metadata_props.clear()  # lines of source code, with the paths of this machine
        program.model.metadata_props[KEY] = metadata.to_json()
        program.save(path, external_data=False)


def open_runner(path: Path) -> Runner:
    """The file in onnxruntime on the CPU.

    Raises:
        FacelitError: onnxruntime is not installed.
    """
    onnxruntime = require("onnxruntime")
    # From bytes: a file by its name has to end in .onnx in some versions, and nothing is left open.
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Floats:
        embeddings: Floats = session.run(["embeddings"], {"images": images.numpy()})[0]
        return embeddings

    return run


def read_text(path: Path) -> str | None:
    """The metadata's JSON, None where there is none.

    Raises:
        FacelitError: onnx is not installed, or the file is no ONNX file.
    """
    onnx = require("onnx")
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's DecodeError, of which there are two
        raise FacelitError(f"{path}: not an ONNX file, a .pt2 or a .safetensors, or a damaged one ({error}).") from None
    return next((str(entry.value) for entry in model.metadata_props if entry.key == KEY), None)


def example_of(graph: EmbeddingGraph) -> Tensor:
    """Two crops: torch would fix the batch size of a batch of one."""
    return graph.prepare(torch.zeros(2, 112, 112, 3, dtype=torch.uint8))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences torch's messages to its own developers."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
