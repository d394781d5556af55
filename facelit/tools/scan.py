"""Reading every image of a store once, on all cores, into a few bytes of facts each."""

from __future__ import annotations

import hashlib
import io
import multiprocessing
import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, suppress
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from facelit.errors import FacelitError
from facelit.progress import progress_bar
from facelit.storage.base import CropStore
from facelit.storage.images import BadImageError, decode_crop

FACTS = np.dtype(
    [("digest", "u8", 2), ("width", "u4"), ("height", "u4"), ("num_bytes", "u4"), ("format", "u1"), ("is_grey", "?")]
)
"""What is kept of an image, 30 bytes.

`digest` hashes the decoded pixels and the size; width and height are 0 where the image cannot be read; `format` is a place
in `FORMATS`; `is_grey` says whether the three channels are equal in every pixel.
"""

FORMATS = ("none", "JPEG", "PNG", "WebP", "other")
"""By the file's first bytes, whatever its name ends in; "none" cannot be read."""

_CHUNK = 128
"""Images that a process reads at a time."""
_WORTH_A_POOL = 2_000
"""Fewer images than this are read before a second process has started."""
_WORTH_A_BAR = 1_000
"""Fewer images than this are read without a progress bar."""

Pixels = npt.NDArray[np.uint8]
"""An image of any size: uint8, RGB, shape (height, width, 3)."""


class Scan(NamedTuple):
    """What was found in the images of a store.

    Attributes:
        facts: One record of dtype `FACTS` for each image, shape (num_images,).
        reasons: Why an image cannot be read, by its place in `facts`.
    """

    facts: npt.NDArray[Any]
    reasons: dict[int, str]

    @property
    def is_readable(self) -> npt.NDArray[np.bool_]:
        """Whether each image can be read, bool, shape (num_images,)."""
        return np.asarray(self.facts["width"] > 0)


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


def scan_images(
    store: CropStore, rows: Sequence[int] | npt.NDArray[np.int64] | None = None, jobs: int | None = None
) -> Scan:
    """Reads images and notes what `FACTS` lists of each.

    Args:
        store: Where they lie.
        rows: Which ones; all where not given.
        jobs: Number of processes; one per core where not given.

    Returns:
        The facts, in the order of `rows`, whatever the number of processes.

    Raises:
        FacelitError: `jobs` is below 1, or the processes died.
    """
    if jobs is not None and jobs < 1:
        raise FacelitError(f"option jobs: at least 1 process is needed, not {jobs}.")
    rows = range(len(store)) if rows is None else rows
    chunks = [rows[start : start + _CHUNK] for start in range(0, len(rows), _CHUNK)]
    scan = Scan(np.zeros(len(rows), FACTS), {})
    done = 0
    with ExitStack() as stack:
        advance = stack.enter_context(progress_bar(f"Reading {store.path}", len(rows), _WORTH_A_BAR))
        try:
            for facts, reasons in _scanned(store, chunks, jobs or _cores(), stack):
                scan.facts[done : done + len(facts)] = facts
                scan.reasons.update((done + position, reason) for position, reason in reasons.items())
                done += len(facts)
                advance(done)
        except BrokenProcessPool as error:
            raise FacelitError(
                "the processes that read the images died: the machine may be short of memory. Try --jobs 1; in a script of"
                ' your own, put what runs under `if __name__ == "__main__":`.'
            ) from error
    return scan


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _scanned(store: CropStore, chunks: list[Any], jobs: int, stack: ExitStack) -> Iterator[Scan]:
    if jobs == 1 or len(chunks) * _CHUNK < _WORTH_A_POOL:
        return (_scan_chunk(store, chunk) for chunk in chunks)
    # Not forked: the progress bar has a thread.
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(jobs, mp_context=spawn, initializer=_keep_store, initargs=(store,))
    stack.callback(pool.shutdown, cancel_futures=True)
    return pool.map(_scan_chunk_of_kept_store, chunks)


_kept_store: CropStore | None = None
"""In a process of the pool: the store, opened once."""


def _keep_store(store: CropStore) -> None:
    global _kept_store
    _kept_store = store


def _scan_chunk_of_kept_store(rows: Sequence[int]) -> Scan:
    assert _kept_store is not None
    return _scan_chunk(_kept_store, rows)


def _scan_chunk(store: CropStore, rows: Sequence[int]) -> Scan:
    scan = Scan(np.zeros(len(rows), FACTS), {})
    for position, row in enumerate(rows):
        try:
            data = store.encoded(int(row))
            scan.facts[position]["num_bytes"] = len(data)
            scan.facts[position] = _facts(data, read_image(data, store.place(int(row))))
        except BadImageError as error:
            scan.reasons[position] = error.reason
    return scan


def _facts(data: bytes | memoryview, pixels: Pixels) -> tuple[tuple[int, int], int, int, int, int, bool]:
    """One record of `FACTS`."""
    height, width = pixels.shape[:2]
    digest = hashlib.blake2b(f"{width}x{height}".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(pixels).data)
    value = digest.digest()
    halves = int.from_bytes(value[:8], "little"), int.from_bytes(value[8:], "little")
    return halves, width, height, len(data), _format(bytes(data[:12])), _is_grey(pixels)


def _format(start: bytes) -> int:
    if start.startswith(b"\xff\xd8\xff"):
        return FORMATS.index("JPEG")
    if start.startswith(b"\x89PNG"):
        return FORMATS.index("PNG")
    if start.startswith(b"RIFF") and start[8:] == b"WEBP":
        return FORMATS.index("WebP")
    return FORMATS.index("other")


def _is_grey(pixels: Pixels) -> bool:
    for some in (pixels[len(pixels) // 2], pixels):  # nearly every colour image shows it in one line
        if (some[..., 0] != some[..., 1]).any() or (some[..., 0] != some[..., 2]).any():
            return False
    return True
