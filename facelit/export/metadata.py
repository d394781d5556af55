"""The metadata in an exported file: its input, its output, and the thresholds."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from facelit.errors import FacelitError

KEY = "facelit"
"""The key of the metadata in a file, a JSON text (in `torch.export` the extra file `facelit.json`)."""

VERSION = 1
"""The version of the metadata format."""

DType = Literal["uint8", "float32"]
Layout = Literal["NCHW", "NHWC"]


@dataclass(frozen=True)
class Metadata:
    """Everything a program must know to feed an exported file faces as in training, and to interpret its embeddings.

    Attributes:
        facelit: The version of facelit that wrote the file.
        checkpoint: The checkpoint's file name, without its folder.
        step: The number of optimizer steps the weights were trained for.
        class_path: The import path of the backbone's class.
        init_args: The arguments it was built with; None if the checkpoint does not record them.
        embedding_dim: The length of an embedding, D.
        dtype: The type of the input.
        layout: The layout of the input: NCHW is (N, 3, 112, 112), NHWC is (N, 112, 112, 3).
        range: The lowest and highest value of a pixel in the input.
        normalize_inside: Whether the file itself maps 0..255 to [-1, 1].
        l2_inside: Whether embeddings come out with length 1.
        template: x, y in pixels of left eye, right eye, nose, left and right mouth corner (as the viewer sees them) in an
            aligned crop, (5, 2).
        calibration: Thresholds on the cosine similarity by verification set, and how they were measured; empty if the
            checkpoint has none.
        size: The height and width of a crop in pixels.
        colour: The order of the colours in the input.
        drawn: Whether the network was trained on facelit's drawn faces; in the file only where it was.
    """

    facelit: str
    checkpoint: str
    step: int
    class_path: str
    init_args: dict[str, Any] | None
    embedding_dim: int
    dtype: DType
    layout: Layout
    range: tuple[float, float]
    normalize_inside: bool
    l2_inside: bool
    template: tuple[tuple[float, float], ...]
    calibration: dict[str, Any]
    size: tuple[int, int] = (112, 112)
    colour: str = "RGB"
    drawn: bool = False

    @property
    def input_shape(self) -> str:
        """The input's shape, for messages."""
        height, width = self.size
        return f"(batch, 3, {height}, {width})" if self.layout == "NCHW" else f"(batch, {height}, {width}, 3)"

    def as_dict(self) -> dict[str, Any]:
        """Plain values in the order in which `facelit export --info` prints them."""
        values = dataclasses.asdict(self)
        if not self.drawn:  # as in files of earlier versions, which do not know it
            del values["drawn"]
        return {"format": "facelit-export", "version": VERSION, **values}

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(self.as_dict())


def from_json(text: str | None, path: Path | str) -> Metadata:
    """Parses a file's metadata.

    Args:
        text: The metadata's JSON; None if the file has none.
        path: The file, for messages.

    Raises:
        FacelitError: There is no metadata, it is damaged, or a newer facelit wrote it.
    """
    if text is None:
        raise FacelitError(
            f"{path}: there is no facelit metadata in this file: it was not written by `facelit export`."
        )
    try:
        values = dict(json.loads(text))
        if values.pop("format") != "facelit-export":
            raise KeyError("format")
        version = values.pop("version")
        if version == VERSION:
            template = tuple((float(x), float(y)) for x, y in values["template"])
            pairs = {"range": tuple(values["range"]), "size": tuple(values["size"])}
            return Metadata(**{**values, **pairs, "template": template})
    except (ValueError, TypeError, KeyError) as error:
        raise FacelitError(f"{path}: the metadata in this file is damaged ({type(error).__name__}: {error}).") from None
    raise FacelitError(
        f"{path}: its metadata is version {version}; this facelit reads version {VERSION}. Update facelit."
    )
