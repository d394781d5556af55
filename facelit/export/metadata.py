"""What an exported file says about itself: how crops must come in, what comes out, and where to draw the line."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from facelit.errors import FacelitError

KEY = "facelit"
"""Under this name a file keeps its metadata, one JSON text (in `torch.export` the extra file `facelit.json`)."""

VERSION = 1
"""Version of the metadata format."""

DType = Literal["uint8", "float32"]
Layout = Literal["NCHW", "NHWC"]


@dataclass(frozen=True)
class Metadata:
    """Everything that a program needs to use an exported file as the training saw faces.

    Attributes:
        facelit: Version that wrote the file.
        checkpoint: Name of the checkpoint's file, without its folder.
        step: Optimizer steps behind the checkpoint's weights.
        class_path: Import path of the backbone's class.
        init_args: Arguments it was built with; None where the checkpoint does not know.
        embedding_dim: Length of an embedding, D.
        dtype: Of the input.
        layout: Of the input: NCHW is (N, 3, 112, 112), NHWC is (N, 112, 112, 3).
        range: Lowest and highest value of a pixel in the input.
        normalize_inside: Whether the file itself turns 0..255 into [-1, 1].
        l2_inside: Whether embeddings come out with length 1.
        template: x, y in pixels of left eye, right eye, nose, left and right mouth corner (as the viewer sees them) in an
            aligned crop, (5, 2).
        calibration: Thresholds on the cosine similarity by verification set, and what they were measured on; empty
            where the checkpoint has none.
        size: Height and width of a crop in pixels.
        colour: Order of the colours in the input.
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

    @property
    def input_shape(self) -> str:
        """As a message shows it."""
        height, width = self.size
        return f"(batch, 3, {height}, {width})" if self.layout == "NCHW" else f"(batch, {height}, {width}, 3)"

    def as_dict(self) -> dict[str, Any]:
        """Plain values in the order in which `facelit export --info` prints them."""
        return {"format": "facelit-export", "version": VERSION, **dataclasses.asdict(self)}

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(self.as_dict())


def from_json(text: str | None, path: Path | str) -> Metadata:
    """The metadata that a file's JSON text stands for.

    Args:
        text: What the file holds; None where it holds none.
        path: The file, for messages.

    Raises:
        FacelitError: There is none, it is damaged, or a newer facelit wrote it.
    """
    if text is None:
        raise FacelitError(f"{path}: no metadata of facelit's in this file: it was not written by `facelit export`.")
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
    raise FacelitError(f"{path}: metadata of version {version}; this facelit reads version {VERSION}. Update facelit.")
