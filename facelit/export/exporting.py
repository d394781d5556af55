"""Exports a trained network for other programs, and keeps the file only if its embeddings match the checkpoint's."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from facelit.align.template import TEMPLATE
from facelit.checkpoints import CHECKPOINT_KEY, read_checkpoint
from facelit.errors import FacelitError
from facelit.export.formats import Format, FormatName, format_of
from facelit.export.graph import EmbeddingGraph
from facelit.export.metadata import DType, Layout, Metadata
from facelit.export.runner import Crops, Floats, Runner
from facelit.inference import FaceModel
from facelit.storage.files import cannot_write, replacing
from facelit.version import __version__

TOLERANCE = 1e-4
"""The largest accepted difference in any component of a unit-length embedding."""

_ONE_BY_ONE = 4
"""The number of crops that are also compared in batches of one."""


class Exported(NamedTuple):
    """A file that has passed its check.

    Attributes:
        path: The file.
        metadata: The metadata in the file.
        num_crops: The number of crops it was compared on.
        difference: The largest absolute difference by batch size, relative to the embeddings' length.
        opened_in: The software that ran the file.
    """

    path: Path
    metadata: Metadata
    num_crops: int
    difference: dict[int, float]
    opened_in: str


def export_model(
    model: FaceModel,
    path: Path | str,
    crops: Crops,
    format: FormatName | None = None,
    normalize: bool = True,
    l2: bool = True,
    dtype: DType | None = None,
    layout: Layout = "NCHW",
    tolerance: float = TOLERANCE,
) -> Exported:
    """Exports a checkpoint's network. The file appears, or replaces an older one, only once it has passed the comparison.

    Args:
        model: The result of `facelit.load(checkpoint)`.
        path: The file to write; its suffix determines the format.
        crops: Faces to compare on, aligned as in training, uint8 RGB (N, 112, 112, 3), N at least 2.
        format: The format, whatever the suffix.
        normalize: Whether the file takes RGB in 0..255 and maps it to [-1, 1] itself.
        l2: Whether embeddings come out with length 1.
        dtype: The type of the input; by default uint8 with `normalize`, float32 without.
        layout: The layout of the input.
        tolerance: The largest accepted difference.

    Returns:
        A description of the file, and how far its embeddings are from the checkpoint's.

    Raises:
        FacelitError: The options contradict one another, a package is missing, the network cannot be exported, the file cannot
            be written, or its embeddings differ from the checkpoint's.
    """
    path = Path(path)
    chosen = format_of(path, format)
    _refuse_onnx(model, chosen)
    graph = _make_graph(model, chosen, normalize, l2, dtype, layout)
    metadata = _describe(model, graph)
    expected = _expected(model, crops, graph.l2)
    _check_target(path, model.checkpoint_path)
    try:
        with replacing(path) as temporary:
            _write(chosen, graph, metadata, temporary, path)
            difference = _compare(chosen.open_runner(temporary, graph), graph, crops, expected)
            worst = float(
                np.max(list(difference.values()))
            )  # numpy's max, unlike Python's, returns a NaN if there is one
            if not worst <= tolerance:  # not `>`: a NaN must fail
                raise FacelitError(
                    f"{path}: not written. In {chosen.opened_in} the embeddings of {len(crops)} crops differ from the"
                    f" checkpoint's by up to {worst:.2g}, more than {tolerance:g}."
                )
    except OSError as error:
        raise cannot_write(path, error) from None
    return Exported(path, metadata, len(crops), difference, chosen.opened_in)


def _refuse_onnx(model: FaceModel, chosen: Format) -> None:
    """Rejects exporting an imported ONNX as a graph: torch cannot see into it."""
    imported = read_checkpoint(model.checkpoint_path).get(CHECKPOINT_KEY, {}).get("imported", {})
    if chosen.has_graph and imported.get("frozen"):
        raise FacelitError(
            f"{model.checkpoint_path} holds an ONNX already: use {imported['file']}, from which it was imported."
        )


def _make_graph(
    model: FaceModel, chosen: Format, normalize: bool, l2: bool, dtype: DType | None, layout: Layout
) -> EmbeddingGraph:
    backbone = copy.deepcopy(model.backbone).cpu().to(memory_format=torch.contiguous_format)
    if not chosen.has_graph:
        if dtype == "uint8" or layout != "NCHW":
            raise FacelitError(
                f"a {chosen.suffix} file holds only weights: the type and layout of the input are options for .onnx and .pt2."
            )
        return EmbeddingGraph(backbone, normalize=False, l2=False, dtype="float32")
    if dtype == "uint8" and not normalize:
        raise FacelitError("without normalisation in the file, its input is float32 in [-1, 1] and cannot be uint8.")
    return EmbeddingGraph(backbone, normalize, l2, dtype or ("uint8" if normalize else "float32"), layout)


def _describe(model: FaceModel, graph: EmbeddingGraph) -> Metadata:
    checkpoint = read_checkpoint(model.checkpoint_path)
    configured = checkpoint.get("hyper_parameters", {}).get("backbone") or {}
    backbone = type(model.backbone)
    return Metadata(
        facelit=__version__,
        checkpoint=model.checkpoint_path.name,
        step=int(checkpoint.get("global_step", 0)),
        class_path=configured.get("class_path", f"{backbone.__module__}.{backbone.__qualname__}"),
        init_args=dict(configured.get("init_args") or {}) if configured else None,
        embedding_dim=model.embedding_dim,
        dtype=graph.dtype,
        layout=graph.layout,
        range=(0.0, 255.0) if graph.normalize else (-1.0, 1.0),
        normalize_inside=graph.normalize,
        l2_inside=graph.l2,
        template=tuple((float(x), float(y)) for x, y in TEMPLATE),
        calibration={
            name: {**entry, "drawn": True} if name in model.drawings.measured else entry
            for name, entry in model.calibration.items()
        },
        drawn=model.drawings.trained,
    )


def _expected(model: FaceModel, crops: Crops, l2: bool) -> Floats:
    """The checkpoint's embeddings: of unit length with `l2`, of their original length without."""
    if len(crops) < 2:
        raise FacelitError("comparing an export takes at least 2 crops, for batches of one and of all.")
    directions = model.embed(crops)
    if l2:
        return directions
    device = next(model.backbone.parameters()).device
    with torch.inference_mode():
        images = torch.from_numpy(crops).permute(0, 3, 1, 2).float().sub(127.5).div(127.5).to(device)
        lengths = model.backbone(images).norm(dim=1, keepdim=True).cpu().numpy()
    scaled: Floats = directions * lengths
    return scaled


def _compare(run: Runner, graph: EmbeddingGraph, crops: Crops, expected: Floats) -> dict[int, float]:
    """The largest absolute difference of a component, for batches of one and for all crops in one batch.

    It is relative to the embedding's length, so that it means the same with and without L2 normalisation in the file.
    """
    images = graph.prepare(torch.from_numpy(crops))
    few = min(_ONE_BY_ONE, len(crops))
    found = {
        1: np.concatenate([run(images[place : place + 1]) for place in range(few)]),
        len(crops): run(images),
    }
    lengths = np.linalg.norm(expected, axis=1, keepdims=True)
    return {
        size: float((np.abs(rows - expected[: len(rows)]) / lengths[: len(rows)]).max()) for size, rows in found.items()
    }


def _check_target(path: Path, checkpoint: Path) -> None:
    """Checks the path before the export, which takes a minute."""
    if path.is_dir():
        raise FacelitError(f"{path} is a folder: name a file.")
    if not path.parent.is_dir():
        raise FacelitError(f"{path.parent}: there is no such folder. Create it first.")
    if path.exists() and path.samefile(checkpoint):
        raise FacelitError(f"{path} is the checkpoint itself: name another file.")


def _write(chosen: Format, graph: EmbeddingGraph, metadata: Metadata, temporary: Path, path: Path) -> None:
    try:
        chosen.write(graph, metadata, temporary)
    except (FacelitError, OSError):
        raise
    except Exception as error:  # torch, onnx and safetensors raise a dozen kinds, for graphs and for full disks
        reason = next(iter(str(error).strip().splitlines()), "")[:200] or type(error).__name__
        raise FacelitError(
            f"{path}: {type(graph.backbone).__name__} cannot be exported in this format ({reason})."
        ) from error
