"""ONNX, for onnxruntime and everything else that reads it."""

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
"""The opset that torch's exporter writes without conversion; onnxruntime has read it since 1.14."""

IR_VERSION = 8
"""Of the file format: the newest that onnxruntime 1.14 reads. torch writes 10, which takes 1.18, and nothing of what came in between."""

_LARGEST = 2**31 - 1  # bytes: protobuf's limit for one message


def write(graph: EmbeddingGraph, metadata: Metadata, path: Path) -> None:
    """Writes one file, including weights, with input `images`, output `embeddings` and any batch size.

    Raises:
        FacelitError: onnx, onnxscript or onnxruntime is not installed, or the network is too large for an ONNX file.
    """
    require("onnx", "onnxruntime")  # onnxruntime is for the check: complain before the export, which takes a minute
    traversal = require("onnx_ir.traversal", "onnxscript")
    num_bytes = sum(value.numel() * value.element_size() for value in graph.state_dict().values())
    if num_bytes > _LARGEST:
        raise FacelitError(
            f"an ONNX file holds at most 2 GB, but these weights are {num_bytes / 1e9:.1f} GB: export to .pt2 or .safetensors"
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
        assert program is not None  # it is None only without `dynamo`
        for node in traversal.RecursiveGraphIterator(program.model.graph):
            node.metadata_props.clear()  # source lines with this machine's paths
            for value in node.outputs:
                value.metadata_props.clear()
        for value in (*program.model.graph.inputs, *program.model.graph.initializers.values()):
            value.metadata_props.clear()
        program.model.graph.metadata_props.clear()
        program.model.ir_version = IR_VERSION
        program.model.metadata_props[KEY] = metadata.to_json()
        program.save(path, external_data=False)


def open_runner(path: Path) -> Runner:
    """Opens the file in onnxruntime on the CPU.

    Raises:
        FacelitError: onnxruntime is not installed.
    """
    onnxruntime = require("onnxruntime")
    # From bytes: some versions insist on a name that ends in .onnx, and no file stays open.
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Floats:
        embeddings: Floats = session.run(["embeddings"], {"images": images.numpy()})[0]
        return embeddings

    return run


def read_text(path: Path) -> str | None:
    """Reads the metadata's JSON, or None if there is none.

    Raises:
        FacelitError: onnx is not installed, or the file is not an ONNX file.
    """
    onnx = require("onnx")
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's DecodeError, of which there are two
        raise FacelitError(f"{path}: not an .onnx, .pt2 or .safetensors file, or damaged ({error}).") from None
    return next((str(entry.value) for entry in model.metadata_props if entry.key == KEY), None)


def example_of(graph: EmbeddingGraph) -> Tensor:
    """An example input of two crops: with one, torch would fix the batch size at 1."""
    return graph.prepare(torch.zeros(2, 112, 112, 3, dtype=torch.uint8))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences the messages that torch addresses to its own developers."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
