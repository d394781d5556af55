"""safetensors: only the backbone's weights, in a format that holds no code, and how to build the backbone."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import Tensor, nn

from facelit.errors import FacelitError
from facelit.export.graph import EmbeddingGraph
from facelit.export.metadata import KEY, Metadata, from_json
from facelit.export.packages import require
from facelit.export.runner import Floats, Runner
from facelit.inference.checkpoint import restore_backbone


def write(graph: EmbeddingGraph, metadata: Metadata, path: Path) -> None:
    """Writes the backbone's weights, named as in its state dict.

    Raises:
        FacelitError: safetensors is not installed.
    """
    module = require("safetensors.torch", "safetensors")
    # Cloned because the format rejects tensors that share memory.
    weights = {
        name: value.detach().clone(memory_format=torch.contiguous_format)
        for name, value in graph.backbone.state_dict().items()
    }
    # Not `save_file`, which makes files readable only by their owner.
    path.write_bytes(module.save(weights, metadata={KEY: metadata.to_json()}))


def load_safetensors(path: Path | str, backbone: nn.Module | None = None) -> nn.Module:
    """Loads a backbone with the weights of an exported file; nothing in the file is executed.

    Args:
        path: A `.safetensors` that `facelit export` wrote.
        backbone: The network to fill, if its class is not part of facelit; by default it is built as the file says.

    Returns:
        The backbone in eval mode, float32, on the CPU. It maps images in [-1, 1], (N, 3, 112, 112), to embeddings (N, D),
        not normalised.

    Raises:
        FacelitError: The file does not exist, is damaged or was not written by facelit, safetensors is not installed, or the
            backbone's class is not part of facelit, or the weights do not fit.
    """
    path = Path(path)
    metadata = from_json(read_text(path), path)
    weights: dict[str, Tensor] = require("safetensors.torch", "safetensors").load_file(path)
    configured = None
    if metadata.init_args is not None:
        configured = {"class_path": metadata.class_path, "init_args": metadata.init_args}
    elif backbone is None:
        raise FacelitError(
            f"{path}: the file does not say how its backbone is built. Build it yourself and pass it in:"
            " load_safetensors(path, backbone=MyBackbone(...))"
        )
    state = {f"backbone.{name}": value for name, value in weights.items()}
    return restore_backbone({"state_dict": state, "hyper_parameters": {"backbone": configured}}, str(path), backbone)


def open_runner(path: Path, graph: EmbeddingGraph) -> Runner:
    """Loads the file into a newly built backbone, or into a copy of the graph's if the file does not say how to build one."""
    metadata = from_json(read_text(path), path)
    backbone = load_safetensors(path, copy.deepcopy(graph.backbone) if metadata.init_args is None else None)

    def run(images: Tensor) -> Floats:
        with torch.inference_mode():
            embeddings: Floats = backbone(images).numpy()
        return embeddings

    return run


def read_text(path: Path) -> str | None:
    """Reads the metadata's JSON, or None if there is none.

    Raises:
        FacelitError: safetensors is not installed, or the file does not exist or is damaged.
    """
    safetensors = require("safetensors")
    if not path.is_file():
        raise FacelitError(f"file not found: {path}")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            text: str | None = (file.metadata() or {}).get(KEY)
    except (safetensors.SafetensorError, OSError) as error:
        raise FacelitError(f"{path}: this .safetensors is damaged ({error}).") from None
    return text
