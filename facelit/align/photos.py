"""Reading a photo of any size, as it is meant to be looked at."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from facelit.storage.images import BadImageError, read_file, read_image
from facelit.storage.photo_files import why_unreadable

Photo = npt.NDArray[np.uint8]
"""A photo: uint8, RGB, shape (height, width, 3)."""


def read_photo(path: Path | str) -> Photo:
    """Reads a photo of any size, of the kinds that `facelit.storage.photo_files` names, by its content.

    What becomes of EXIF orientation, grey, 16 bits and transparency: `facelit.storage.decoding.decode_image`.

    Args:
        path: The file.

    Returns:
        uint8 RGB, shape (height, width, 3).

    Raises:
        BadImageError: The file is absent, empty, damaged, not an image, of a kind that cannot be read here, or has more than 89
            million pixels (PIL's `MAX_IMAGE_PIXELS`), which may be a decompression bomb.
    """
    if reason := why_unreadable(os.fspath(path)):
        raise BadImageError(str(path), reason)
    return read_image(read_file(path), str(path))


def shrink(photo: Photo, max_side: int) -> Photo:
    """A photo whose longer side is at most so many pixels, each the mean of what it stands for; 0 leaves it as it is."""
    height, width = photo.shape[:2]
    longer = max(height, width)
    if not max_side or longer <= max_side:
        return photo
    size = (max(1, round(width * max_side / longer)), max(1, round(height * max_side / longer)))
    return np.asarray(Image.fromarray(photo).resize(size, Image.Resampling.BOX, reducing_gap=2.0))
