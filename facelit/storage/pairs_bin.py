"""InsightFace's verification sets (`lfw.bin`, `cfp_fp.bin`, ...): pickles of (images, is_same)."""

from __future__ import annotations

import os
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from facelit.errors import FacelitError
from facelit.storage.downloads import what_lies_instead
from facelit.storage.files import replace_file
from facelit.storage.plain_arrays import PlainArray
from facelit.storage.plain_pickle import RefusedError, load_plain

_WAY_OUT = (
    "Get the set from where its authors put it; or, if you trust whoever made this one, which runs what is in it, write it anew:"
    ' python -c "import pickle; from facelit.storage.pairs_bin import write_pairs_bin; from pathlib import Path; images, same ='
    " pickle.load(open('OLD.bin', 'rb'), encoding='bytes'); write_pairs_bin([bytes(image) for image in images], [{0: False, 1:"
    " True}[one] for one in same], Path('NEW.bin'))\""
)
"""Not `bool(one)`: that makes genuine pairs of -1 and of "False"."""
_WHAT_IT_HOLDS = (
    "A set is two lists: the bytes of 2N image files (JPEG, PNG or WebP), and for N pairs True or 1 (genuine) or False or 0 (impostor);"
    " facelit.storage.pairs_bin.write_pairs_bin writes one."
)

_PACKED = {
    b"\x1f\x8b": "gzip",
    b"PK\3\4": "zip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"7z\xbc": "7-Zip",
    b"Rar!": "RAR",
}
"""How packed files begin; no pickle does."""


class _ContentError(Exception):
    """What a plain pickle holds in place of a verification set."""


def read_pairs_bin(path: str | os.PathLike[str]) -> tuple[list[bytes], npt.NDArray[np.bool_]]:
    """Reads a verification set, pickled by Python 2 or 3, in any protocol, and runs nothing in it.

    Lists may be tuples or NumPy arrays, images bytearrays or arrays of bytes, and bools NumPy's, or the numbers 0 and 1.

    Args:
        path: The file.

    Returns:
        The encoded images, two for each pair, and whether each pair is genuine, bool, shape (num_pairs,).

    Raises:
        FacelitError: The file cannot be read, is cut short, is not a pickle, asks for something to be called, or holds
            something else.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise FacelitError(f"verification set {path}: cannot read this file ({error.strerror}).") from None
    for start, kind in _PACKED.items():
        if data.startswith(start):
            raise FacelitError(f"{path}: this is a {kind} file, not a pickle. Unpack it first.")
    if instead := what_lies_instead(path):
        raise FacelitError(f"{path}: {instead}.")
    try:
        return _checked(load_plain(data), len(data))
    except _ContentError as error:
        raise FacelitError(f"{path}: {error}. {_WHAT_IT_HOLDS}") from None
    except RefusedError as error:
        raise FacelitError(f"{path}: refused: {error}. {_WAY_OUT}") from None
    except EOFError:
        raise FacelitError(f"{path}: is cut short: it ends at byte {len(data)}. Download it again.") from None


def write_pairs_bin(
    images: Sequence[bytes | memoryview], is_same: Sequence[bool] | npt.NDArray[np.bool_], path: Path
) -> None:
    """Writes a verification set as InsightFace does; every reader of theirs reads it.

    Args:
        images: The encoded images, two for each pair. An object that is listed twice is written once.
        is_same: Whether each pair is genuine, length num_pairs.
        path: The file; replaced in one move where it exists.

    Raises:
        ValueError: There are not two images for each pair.
        FacelitError: The file cannot be written.
    """
    if len(images) != 2 * len(is_same):
        raise ValueError(f"{len(images)} images for {len(is_same)} pairs")
    files = [image if isinstance(image, bytes) else bytes(image) for image in images]
    with replace_file(path) as file:
        pickle.dump((files, [bool(same) for same in is_same]), file, protocol=4)


def _checked(found: object, size: int) -> tuple[list[bytes], npt.NDArray[np.bool_]]:
    """What was found in a file of `size` bytes, if it is a verification set, whatever kinds of lists, bytes and bools it is made of."""
    parts = [_as_list(part) for part in found] if isinstance(found, (tuple, list)) else []
    if len(parts) != 2 or any(part is None for part in parts):
        raise _ContentError("it holds something else than two lists")
    files: dict[int, bytes] = {}  # an object that is listed twice is copied once
    copied = 0
    for number, image in enumerate(parts[0] or []):
        if id(image) not in files:
            files[id(image)] = _as_bytes(image, number)
            copied += 0 if isinstance(image, bytes) else len(files[id(image)])
        if copied > size:
            raise RefusedError(f"image {number}: it holds more bytes than the file has")
    images = [files[id(image)] for image in parts[0] or []]
    is_same = parts[1] or []
    for number, same in enumerate(is_same):
        if not isinstance(same, (int, float)) or same not in (0, 1):
            raise _ContentError(f"pair {number} is neither genuine nor impostor: {repr(same)[:40]}")
    if not is_same or len(images) != 2 * len(is_same):
        raise _ContentError(f"it holds {len(images):,} images for {len(is_same):,} pairs")
    return images, np.array(is_same, np.bool_)


def _as_list(part: object) -> list[Any] | None:
    values = part.values if isinstance(part, PlainArray) else part
    if isinstance(values, np.ndarray):
        return list(values.ravel().tolist())
    return list(values) if isinstance(values, (list, tuple)) else None


def _as_bytes(image: object, number: int) -> bytes:
    """A file's bytes, also where a recipe kept them as an array of them, or Python 3 read Python 2's bytes as Latin-1."""
    if isinstance(image, PlainArray) and isinstance(image.values, np.ndarray) and image.values.itemsize == 1:
        if image.values.ndim > 2:
            raise _ContentError(f"image {number} is an array of pixels, {image.values.shape}, not a file's bytes")
        return image.values.tobytes()
    if isinstance(image, str) and not image.isascii():  # no image file is ASCII, a path often
        try:
            return image.encode("latin-1")
        except UnicodeEncodeError:
            pass
    if not isinstance(image, (bytes, bytearray)):
        raise _ContentError(f"image {number} is not of type bytes")
    return bytes(image)
