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
"""The formats that a network is exported to."""


class Format(NamedTuple):
    """A file format for exported networks.

    Attributes:
        suffix: How such files' names end.
        opened_in: What the check runs it in, for a message.
        has_graph: Whether it holds the whole graph, normalisation included, or the backbone's weights alone.
        write: Writes the file.
        open_runner: Opens what `write` wrote, given the graph that it wrote.
        read_text: The JSON of the metadata, None where there is none.
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
        "a backbone built anew",
        False,
        safetensors.write,
        safetensors.open_runner,
        safetensors.read_text,
    ),
}


def format_of(path: Path, name: FormatName | None = None) -> Format:
    """The format to write.

    Args:
        path: Its suffix decides where `name` is not given.
        name: The format's name.

    Raises:
        FacelitError: The suffix is no format's.
    """
    if name is not None:
        return FORMATS[name]
    for known in FORMATS.values():
        if path.suffix.lower() == known.suffix:
            return known
    suffixes = ", ".join(known.suffix for known in FORMATS.values())
    raise FacelitError(f"{path}: the file's name must end in one of {suffixes} (or name a format with --format).")


def read_metadata(path: Path | str) -> Metadata:
    """Metadata of an exported file; nothing in it is executed, and the format is recognised by content.

    Raises:
        FacelitError: The file is absent, damaged or not from `facelit export`, or the package that reads it is absent.
    """
    path = Path(path)
    if not path.is_file():
        raise FacelitError(f"file not found: {path}")
    with path.open("rb") as file:
        start = file.read(9)
    if zipfile.is_zipfile(path):
        text = torch_export.read_text(path)
    elif start[8:] == b"{":  # safetensors: the length of its JSON header in eight bytes, and the header
        text = safetensors.read_text(path)
    else:
        text = onnx.read_text(path)
    return from_json(text, path)
