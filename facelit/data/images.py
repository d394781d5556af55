"""Reading one crop from one file, or saying which file is broken and why."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from facelit.data.sources import CROP_SIZE, Crop
from facelit.errors import FacelitError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})


def is_image(filename: str) -> bool:
    """Whether the name ends as an image's does, in any case; hidden files (`._x.jpg`) are not images."""
    return not filename.startswith(".") and os.path.splitext(filename)[1].lower() in IMAGE_SUFFIXES


def read_crop(path: Path | str, resize: bool = False) -> Crop:
    """Reads an aligned crop.

    Args:
        path: A JPEG, PNG or WebP file, colour or grey.
        resize: Whether an image of another size is resized to 112x112 (bilinear) instead of refused.

    Returns:
        uint8 RGB, shape (112, 112, 3).

    Raises:
        FacelitError: The file is absent, empty, truncated, not an image, a decompression bomb, or of another size.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                if image.size != (CROP_SIZE, CROP_SIZE) and not resize:
                    width, height = image.size
                    raise FacelitError(
                        f"{path}: the image is {width}x{height}, not {CROP_SIZE}x{CROP_SIZE}. Align the photos first, or"
                        " ask for resizing with `resize: true` in that dataset's options (data.predict_resize for predict)."
                    )
                rgb = image.convert("RGB")
    except FileNotFoundError:
        raise FacelitError(f"{path}: no such image file.") from None
    except (
        OSError,
        ValueError,
        SyntaxError,
        Image.DecompressionBombError,
        Image.DecompressionBombWarning,
    ) as error:
        reason = "the file is empty" if _is_empty(path) else str(error).replace(f"{str(path)!r}", "").strip()
        raise FacelitError(f"{path}: cannot read this image ({reason}). Mend or remove the file.") from None
    if rgb.size != (CROP_SIZE, CROP_SIZE):
        rgb = rgb.resize((CROP_SIZE, CROP_SIZE), Image.Resampling.BILINEAR)
    return np.asarray(rgb)


def list_images(root: Path) -> Iterator[Path]:
    """All image files below `root`, sorted, folder by folder."""
    for folder, subfolders, files in os.walk(root, followlinks=True):
        subfolders.sort()
        for file in sorted(filter(is_image, files)):
            yield Path(folder, file)


def _is_empty(path: Path | str) -> bool:
    try:
        return os.path.getsize(path) == 0
    except OSError:
        return False
