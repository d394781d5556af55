"""Decoding one crop, or saying which one is broken and why."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image

from facelit.errors import FacelitError
from facelit.storage.decoding import JPEG_START, Pixels, UndecodableError, damage_of_jpeg, decode_image, may_be_turned
from facelit.storage.walking import files_below

CROP_SIZE = 112
"""Height and width, in pixels, of an aligned crop."""

Crop = npt.NDArray[np.uint8]
"""One crop: uint8, RGB, shape (112, 112, 3)."""

USUAL_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
"""Of a set's images, in the order in which they are looked for."""

IMAGE_SUFFIXES = (*USUAL_SUFFIXES, ".jpe", ".jfif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".gif", ".avif")
"""All that a set's images end in; how they are read depends on their content alone."""


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


def list_images(root: Path) -> list[Path]:
    """All image files below `root`; see `facelit.storage.walking.files_below`."""
    return files_below(root, lambda entry: is_image(entry.name))


def read_file(path: Path | str) -> bytes:
    """The bytes of an image file.

    Raises:
        BadImageError: The file is absent or cannot be read.
    """
    try:
        with open(path, "rb", buffering=0, opener=_open_now) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise BadImageError(str(path), "it is not a file")
            return file.read()
    except FileNotFoundError:
        raise BadImageError(str(path), "no such image file") from None
    except OSError as error:
        raise BadImageError(str(path), f"cannot read this image ({error.strerror or error})") from None


def _open_now(path: str, flags: int) -> int:
    """To open a pipe would take until somebody writes to it."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def read_crop(path: Path | str, resize: bool = False) -> Crop:
    """Reads an aligned crop from a file; see `decode_crop`.

    Args:
        path: An image file.
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
    """Decodes an aligned crop, by the rule of `facelit.storage.decoding.decode_image`.

    JPEGs of the right size, which nothing says to turn, go through libjpeg-turbo straight into `out`.

    Args:
        data: An image file's bytes.
        place: Where they come from, for messages; a function is asked only where there is one to write.
        resize: Whether an image of another size is resized to 112x112 (bilinear) instead of refused.
        out: Where the pixels go: uint8, shape (112, 112, 3), C-contiguous; a new array where not given.

    Returns:
        uint8 RGB, shape (112, 112, 3): `out`, where it was given.

    Raises:
        BadImageError: The data is empty, damaged, not an image, a decompression bomb, or of another size.
    """
    file = bytes(data)
    if out is None:
        out = np.empty((CROP_SIZE, CROP_SIZE, 3), np.uint8)
    if _decode_plain(file, place, out):
        return out
    pixels = _decode(file, place, None if resize else lambda width, height: check_size(width, height, _written(place)))
    if pixels.shape[:2] != (CROP_SIZE, CROP_SIZE):
        pixels = np.asarray(Image.fromarray(pixels).resize((CROP_SIZE, CROP_SIZE), Image.Resampling.BILINEAR))
    out[...] = pixels
    return out


def read_image(data: bytes | memoryview, place: str) -> Pixels:
    """Decodes an image at its own size; one of a crop's size gives `decode_crop`'s pixels.

    Args:
        data: An image file's bytes.
        place: Where they come from, for messages.

    Returns:
        uint8 RGB, shape (height, width, 3).

    Raises:
        BadImageError: `decode_crop` would refuse the image even if it were asked to resize it.
    """
    file, out = bytes(data), np.empty((CROP_SIZE, CROP_SIZE, 3), np.uint8)
    return out if _decode_plain(file, place, out) else _decode(file, place, None)


def _decode_plain(file: bytes, place: str | Callable[[], str], out: Crop) -> bool:
    """Decodes a JPEG of a crop's size that nothing says to turn; False, and `out` undefined, for everything else."""
    if not file.startswith(JPEG_START) or may_be_turned(file):
        return False
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(file)
        if (height, width) != (CROP_SIZE, CROP_SIZE) or colours not in ("YCbCr", "Gray"):
            return False
        simplejpeg.decode_jpeg(file, "RGB", buffer=out)
    except Exception as error:
        if reason := damage_of_jpeg(error, file):
            raise _cannot_read(_written(place), UndecodableError(reason)) from None
        return False  # Pillow judges
    return True


def _decode(data: bytes, place: str | Callable[[], str], check: Callable[[int, int], None] | None) -> Pixels:
    try:
        return decode_image(data, check)
    except UndecodableError as error:
        raise _cannot_read(_written(place), error) from None


def _written(place: str | Callable[[], str]) -> str:
    return place if isinstance(place, str) else place()


def _cannot_read(place: str, error: UndecodableError) -> BadImageError:
    return BadImageError(place, f"cannot read this image ({error})", *filter(None, [error.way_out]))


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
