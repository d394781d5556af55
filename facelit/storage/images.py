"""Decoding one crop, or saying which one is broken and why."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image

from facelit.errors import FacelitError

CROP_SIZE = 112
"""Height and width, in pixels, of an aligned crop."""

Crop = npt.NDArray[np.uint8]
"""One crop: uint8, RGB, shape (112, 112, 3)."""

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})

_JPEG_START = b"\xff\xd8\xff"


class BadImageError(FacelitError):
    """An image that cannot be used.

    Args:
        place: Where it lies: a path, or a file and a record in it.
        reason: What is wrong with it. (Left out by torch, which makes a data worker's exception anew from its message.)
        way_out: What the user can do.
    """

    def __init__(self, place: str, reason: str = "", way_out: str = "Mend or remove it.") -> None:
        super().__init__(f"{place}: {reason}. {way_out}" if reason else place)
        self.place = place
        self.reason = reason
        self.way_out = way_out

    def __reduce__(self) -> tuple[type[BadImageError], tuple[str, str, str]]:
        return BadImageError, (self.place, self.reason, self.way_out)


def is_image(filename: str) -> bool:
    """Whether the name ends as an image's does, in any case; hidden files (`._x.jpg`) are not images."""
    return not filename.startswith(".") and os.path.splitext(filename)[1].lower() in IMAGE_SUFFIXES


def list_images(root: Path) -> Iterator[Path]:
    """All image files below `root`, sorted, folder by folder; hidden folders (`.facelit-align`) are passed over."""
    for folder, subfolders, files in os.walk(root, followlinks=True):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for file in sorted(filter(is_image, files)):
            yield Path(folder, file)


def read_file(path: Path | str) -> bytes:
    """The bytes of an image file.

    Raises:
        BadImageError: The file is absent or cannot be read.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read()
    except FileNotFoundError:
        raise BadImageError(str(path), "no such image file") from None
    except OSError as error:
        raise BadImageError(str(path), f"cannot read this image ({error.strerror or error})") from None


def read_crop(path: Path | str, resize: bool = False) -> Crop:
    """Reads an aligned crop from a file; see `decode_crop`.

    Args:
        path: A JPEG, PNG or WebP file, colour or grey.
        resize: Whether an image of another size is resized to 112x112 (bilinear) instead of refused.

    Returns:
        uint8 RGB, shape (112, 112, 3).

    Raises:
        BadImageError: The file is absent, empty, truncated, not an image, a decompression bomb, or of another size.
    """
    return decode_crop(read_file(path), str(path), resize)


def decode_crop(
    data: bytes | memoryview, place: str | Callable[[], str], resize: bool = False, out: Crop | None = None
) -> Crop:
    """Decodes an aligned crop.

    JPEGs of the right size go through libjpeg-turbo straight into `out`; everything else through PIL. Both give the same
    pixels for a JPEG.

    Args:
        data: A JPEG, PNG or WebP file's bytes, colour or grey.
        place: Where they come from, for messages; a function is asked only where there is one to write.
        resize: Whether an image of another size is resized to 112x112 (bilinear) instead of refused.
        out: Where the pixels go: uint8, shape (112, 112, 3), C-contiguous; a new array where not given.

    Returns:
        uint8 RGB, shape (112, 112, 3): `out`, where it was given.

    Raises:
        BadImageError: The data is empty, truncated, not an image, a decompression bomb, or of another size.
    """
    if out is None:
        out = np.empty((CROP_SIZE, CROP_SIZE, 3), np.uint8)
    if bytes(data[:3]) == _JPEG_START:
        try:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
            if (height, width) == (CROP_SIZE, CROP_SIZE) and colours in ("YCbCr", "Gray"):
                simplejpeg.decode_jpeg(data, "RGB", buffer=out)
                return out
        except ValueError:
            pass  # PIL judges, as for every other file
    out[...] = _decode_with_pil(data, place if isinstance(place, str) else place(), resize)
    return out


def read_image(data: bytes | memoryview, place: str) -> npt.NDArray[np.uint8]:
    """Decodes an image at its own size; one of a crop's size gives `decode_crop`'s pixels.

    Args:
        data: An image file's bytes.
        place: Where they come from, for messages.

    Returns:
        uint8 RGB, shape (height, width, 3).

    Raises:
        BadImageError: `decode_crop` would refuse the image even if it were asked to resize it.
    """
    with suppress(Exception):
        return decode_crop(data, place)
    try:  # it is of another size, or broken
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data)) as image:
                return np.asarray(image.convert("RGB"))
    except Exception as error:
        raise _refusal(data, place, error) from None


def _refusal(data: bytes | memoryview, place: str, error: Exception) -> BadImageError:
    """What is wrong with an image, in the words of a training run where that has any."""
    try:
        decode_crop(data, place, resize=True)
    except BadImageError as refused:
        return refused
    except Exception as other:
        error = other
    return BadImageError(place, f"cannot read this image ({type(error).__name__}: {error})")


def check_size(width: int, height: int, place: str) -> None:
    """Refuses images of another size than a crop's.

    Raises:
        BadImageError: It is not 112x112.
    """
    if (width, height) != (CROP_SIZE, CROP_SIZE):
        raise BadImageError(
            place,
            f"the image is {width}x{height}, not {CROP_SIZE}x{CROP_SIZE}",
            "Align the photos first, or ask for resizing with `resize: true` in that dataset's options"
            " (data.predict_resize for predict).",
        )


def _decode_with_pil(data: bytes | memoryview, place: str, resize: bool) -> Crop:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data)) as image:
                if not resize:
                    check_size(*image.size, place)
                rgb = image.convert("RGB")
    except (
        OSError,
        ValueError,
        SyntaxError,
        Image.DecompressionBombError,
        Image.DecompressionBombWarning,
    ) as error:
        # PIL names its own buffer where it would name a file: that says nothing to anybody.
        reason = (
            "the file is empty" if not len(data) else str(error).replace("<_io.BytesIO object", "").split(" at 0x")[0]
        )
        raise BadImageError(place, f"cannot read this image ({reason.strip()})") from None
    if rgb.size != (CROP_SIZE, CROP_SIZE):
        rgb = rgb.resize((CROP_SIZE, CROP_SIZE), Image.Resampling.BILINEAR)
    return np.asarray(rgb)
