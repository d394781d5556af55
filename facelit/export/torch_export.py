"""`torch.export`: the graph, for torch without facelit, AOTInductor, ExecuTorch and the like."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from facelit.errors import FacelitError
from facelit.export.graph import EmbeddingGraph
from facelit.export.metadata import KEY, Metadata
from facelit.export.onnx import example_of
from facelit.export.runner import Floats, Runner

EXTRA_FILE = f"{KEY}.json"
"""The metadata's file in the archive; `torch.export.load(path, extra_files={"facelit.json": ""})` reads it."""


def write(graph: EmbeddingGraph, metadata: Metadata, path: Path) -> None:
    """Writes a `.pt2` for any batch size."""
    shapes = {"images": {0: torch.export.Dim("batch")}}
    program = torch.export.export(graph, (example_of(graph),), dynamic_shapes=shapes, strict=False)
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)  # source lines with this machine's paths
    # Into memory first: on a full disk torch's own writer kills the process.
    content = io.BytesIO()
    torch.export.save(program, content, extra_files={EXTRA_FILE: metadata.to_json()})
    path.write_bytes(content.getbuffer())


def open_runner(path: Path) -> Runner:
    """Opens the file as a torch module on the CPU. Only for trusted files: torch may unpickle."""
    with path.open("rb") as file:
        module = torch.export.load(file).module()

    def run(images: Tensor) -> Floats:
        with torch.inference_mode():
            embeddings: Floats = module(images).numpy()
        return embeddings

    return run


def read_text(path: Path) -> str | None:
    """Reads the metadata's JSON, or None if there is none; nothing in the file is executed.

    Raises:
        FacelitError: The file is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            name = next((name for name in archive.namelist() if name.endswith(f"/{EXTRA_FILE}")), None)
            return None if name is None else archive.read(name).decode()
    except (zipfile.BadZipFile, UnicodeDecodeError, OSError) as error:
        raise FacelitError(f"{path}: this .pt2 is damaged ({error}).") from None
