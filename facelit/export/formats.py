"""The export formats: by name, by file suffix, and by the first bytes of a file."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

from facelit.errors import FacelitError
from facelit.export import onnx, safetensors, torch_export
from facelit.export.graph import EmbeddingGraph
from facelit.export.metadata import Metadata, from_json
from facelit.export.runner import Runner

FormatName = Literal["onnx", "torch_export", "safetensors"]
"""The formats that a network can be exported to."""


class Format(NamedTuple):
    """A file format for exported networks.

    Attributes:
        suffix: The suffix of such files' names.
        opened_in: The software that the check runs it in, for messages.
        has_graph: Whether it holds the whole graph, including normalisation, or only the backbone's weights.
        write: Writes the file.
        open_runner: Opens the file that `write` wrote, given the same graph.
        read_text: Returns the metadata's JSON, or None if there is none.
    """

    suffix: str
    opened_in: str
    has_graph: bool
    write: Callable[[EmbeddingGraph, Metadata, Path], None]
    open_runner: Callable[[Path, EmbeddingGraph], Runner]
    read_text: Callable[[Path], str | None]


FORMATS: dict[FormatName, Format] = {
    "onnx": Format(
        ".onnx", "onnxruntime", True, onnx.write, lambda path, graph: onnx.open_runner(path), onnx.read_text
    ),
    "torch_export": Format(
        ".pt2",
        "torch.export's program",
        True,
        torch_export.write,
        lambda path, graph: torch_export.open_runner(path),
        torch_export.read_text,
    ),
    "safetensors": Format(
        ".safetensors",
        "a newly built backbone",
        False,
        safetensors.write,
        safetensors.open_runner,
        safetensors.read_text,
    ),
}


def format_of(path: Path, name: FormatName | None = None) -> Format:
    """Finds the format to write.

    Args:
        path: The file to write, whose suffix determines the format unless `name` is given.
        name: The format's name.

    Raises:
        FacelitError: The suffix does not belong to any format.
    """
    if name is not None:
        return FORMATS[name]
    for known in FORMATS.values():
        if path.suffix.lower() == known.suffix:
            return known
    suffixes = ", ".join(known.suffix for known in FORMATS.values())
    raise FacelitError(f"{path}: the file's name must end in one of {suffixes} (or name a format with --format).")


def read_metadata(path: Path | str) -> Metadata:
    """Reads the metadata of an exported file; nothing in it is executed, and the format is recognised by content.

    Raises:
        FacelitError: The file does not exist, is damaged or not from `facelit export`, or the package to read it is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise FacelitError(f"file not found: {path}")
    with path.open("rb") as file:
        start = file.read(9)
    if zipfile.is_zipfile(path):
        text = torch_export.read_text(path)
    elif start[8:] == b"{":  # safetensors: eight bytes with the length of the JSON header, then the header
        text = safetensors.read_text(path)
    else:
        text = onnx.read_text(path)
    return from_json(text, path)
