"""Reading a photo of any size, as it is meant to be looked at."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, UnidentifiedImageError

from facelit.storage.images import BadImageError, read_file
from facelit.storage.photo_files import readable_formats, why_unidentified, why_unreadable

Photo = npt.NDArray[np.uint8]
"""A photo: uint8, RGB, shape (height, width, 3)."""

_ORIENTATION = 0x0112
"""The EXIF tag."""
_TURNED: dict[int, Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.uint8]]] = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.transpose(1, 0, 2),
    6: lambda pixels: pixels.transpose(1, 0, 2)[:, ::-1],
    7: lambda pixels: pixels.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda pixels: pixels.transpose(1, 0, 2)[::-1],
}
"""What turns a stored picture upright, by its EXIF orientation."""


def read_photo(path: Path | str) -> Photo:
    """Reads a photo of any size, of the kinds that `facelit.storage.photo_files` names, by its content.

    EXIF rotation is applied. Grey, palette and CMYK pictures become RGB; of 16 bits the upper 8 are kept; transparent pixels are
    laid on white; of several pictures in a file the first is taken.

    Args:
        path: The file.

    Returns:
        uint8 RGB, shape (height, width, 3).

    Raises:
        BadImageError: The file is absent, empty, truncated, not an image, of a kind that cannot be read here, or has more than 89
            million pixels (PIL's `MAX_IMAGE_PIXELS`), which may be a decompression bomb.
    """
    if reason := why_unreadable(os.fspath(path)):
        raise BadImageError(str(path), reason)
    data = read_file(path)
    if not data:
        raise BadImageError(str(path), "the file is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=readable_formats()) as image:
                pixels = _decode(data, image)
                # Afterwards: TIFF's decoder turns the picture itself, and then forgets the tag.
                orientation = int(image.getexif().get(_ORIENTATION, 1))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        limit = (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        raise BadImageError(
            str(path),
            f"has more than {limit:.0f} million pixels, which may be a decompression bomb",
            "Shrink or remove it.",
        ) from None
    except UnidentifiedImageError:
        raise BadImageError(str(path), why_unidentified(data)) from None
    except Exception as error:  # decoders, and plugins, raise all kinds on damaged files
        raise BadImageError(str(path), f"cannot read this image ({error})") from None
    turn = _TURNED.get(orientation)
    return pixels if turn is None else np.ascontiguousarray(turn(pixels))


def shrink(photo: Photo, max_side: int) -> Photo:
    """A photo whose longer side is at most so many pixels, each the mean of what it stands for; 0 leaves it as it is."""
    height, width = photo.shape[:2]
    longer = max(height, width)
    if not max_side or longer <= max_side:
        return photo
    size = (max(1, round(width * max_side / longer)), max(1, round(height * max_side / longer)))
    return np.asarray(Image.fromarray(photo).resize(size, Image.Resampling.BOX, reducing_gap=2.0))


def _decode(data: bytes, image: Image.Image) -> Photo:
    """The pixels as they are stored, in RGB; `image` was opened from `data`."""
    if image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L"):
        try:  # the same pixels, in half the time
            return np.asarray(simplejpeg.decode_jpeg(data, "RGB"))
        except ValueError:
            pass  # PIL judges
    if image.mode.startswith("I") or image.mode == "F":
        return _from_16_bits(image)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        picture = image.convert("RGBA")
        return np.asarray(Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB"))
    return np.asarray(image.convert("RGB"))


def _from_16_bits(image: Image.Image) -> Photo:
    """PIL would cut values above 255 off."""
    grey = np.clip(np.asarray(image, np.float64) / 257, 0, 255).round().astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)
