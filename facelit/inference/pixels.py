"""What people hand over in Python as an image, as a path or as uint8 RGB pixels."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from facelit.errors import FacelitError
from facelit.storage.decoding import UndecodableError, pixels_of
from facelit.storage.images import read_image

Pixels = npt.NDArray[np.uint8]

_TAKEN = (
    "An image is a path, a file's bytes, an open file, a PIL image, or an array or tensor of pixels: RGB, grey or RGBA, (height, width, 3),"
    " (3, height, width) or (height, width); uint8, uint16, or floats from 0 to 1 or from 0 to 255"
)


def to_pixels(image: Any) -> str | Path | Pixels:
    """Paths as they are, everything else as uint8 RGB pixels, (height, width, 3).

    Args:
        image: A path; a file's bytes; whatever `read()` gives them; a PIL image, read as `facelit.storage.decoding` reads files; or a NumPy array or torch tensor
            of RGB, grey or RGBA pixels, channels last or first, of dtype uint8, uint16 (the upper 8 bits are kept), another integer
            dtype with values from 0 to 255, or floats, whose white is 1 if none is above 1, else 255.

    Raises:
        BadImageError: The bytes are not an image.
        FacelitError: It is something else, or its values are out of range.
    """
    if isinstance(image, (str, Path)):
        return image
    if isinstance(image, os.PathLike):
        return Path(image)
    if isinstance(image, (bytes, bytearray, memoryview)):
        return read_image(bytes(image), "the image's bytes")
    if callable(getattr(image, "read", None)):
        return read_image(_content_of(image), "the open file")
    if isinstance(image, Image.Image):
        try:
            if not _holds_bytes(image):
                return pixels_of(image)
            image = np.asarray(image)
        except UndecodableError as error:
            raise FacelitError(f"an image in memory: {error}. {_TAKEN}.") from None
    channels_first = isinstance(image, torch.Tensor)
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu()
        image = (image.float() if image.is_floating_point() else image).numpy()
    image = as_array(image)
    if not isinstance(image, np.ndarray):
        raise FacelitError(f"{_TAKEN}; not {type(image).__name__}.")
    array = _channels_last(image, channels_first)
    if array is None or not array.size:
        raise FacelitError(f"{_TAKEN}; not {image.dtype} {image.shape}.")
    pixels = _bytes_of(array)
    if pixels.shape[2] == 4:
        return pixels_of(Image.fromarray(pixels, "RGBA"))
    return pixels if pixels.shape[2] == 3 else np.repeat(pixels, 3, axis=2)


def as_array(values: Any) -> Any:
    """Arrays and columns of other libraries (pandas, TensorFlow, ...) as NumPy's; everything else as it is."""
    is_other = hasattr(values, "__array__") and not isinstance(values, (np.ndarray, np.generic, torch.Tensor))
    return np.asarray(values) if is_other else values


def _content_of(file: Any) -> bytes:
    try:
        data = file.read()
    except (OSError, ValueError) as error:  # closed; or text that is none
        raise FacelitError(
            f"the open file: cannot be read ({error}). Open it for reading bytes: open(path, 'rb')."
        ) from None
    if not isinstance(data, bytes | bytearray | memoryview):
        raise FacelitError(f"{_TAKEN}; not {type(data).__name__} read from {type(file).__name__}.")
    return bytes(data)


def _holds_bytes(image: Image.Image) -> bool:
    """Whether 8-bit values lie in 32-bit ones, as `Image.convert("I")` leaves them; those of a file have 16 bits."""
    return image.mode == "I" and image.format is None and int(np.asarray(image).max(initial=0)) <= 255


def _channels_last(array: npt.NDArray[Any], channels_first: bool) -> npt.NDArray[Any] | None:
    """(height, width, channels), or None where there is no such order."""
    if array.ndim == 2:
        return array[..., None]
    if array.ndim != 3:
        return None
    first, last = array.shape[0] in (1, 3, 4), array.shape[2] in (1, 3, 4)
    if first and (channels_first or not last):
        return np.ascontiguousarray(np.moveaxis(array, 0, 2))
    return array if last else None


def _bytes_of(array: npt.NDArray[Any]) -> Pixels:
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.uint16:
        return (array / 257).round().astype(np.uint8)
    if array.dtype.kind in "iu" and array.min() >= 0 and array.max() <= 255:
        return array.astype(np.uint8)
    if array.dtype.kind != "f":
        raise FacelitError(f"{_TAKEN}; not {array.dtype} {array.shape}.")
    low, high = float(array.min()), float(array.max())
    if not 0 <= low <= high <= 255:  # NaN neither
        hint = (
            " Are they normalised for a network? Hand over the picture itself." if -10 < low < 0 and high < 10 else ""
        )
        raise FacelitError(f"{_TAKEN}; not floats from {low:g} to {high:g}.{hint}")
    return (array * (255 if high <= 1 else 1)).round().astype(np.uint8)
