"""MXNet's RecordIO, the format: records in one file, each with a header that carries its labels.

A record is one part, or several. A part is the magic number and a word (both uint32, little-endian), its bytes, and zeros
up to the next multiple of four. The word's lower 29 bits are the number of bytes, its upper three say which part it is:
0 a whole record, 1 the first, 2 a middle, 3 the last part of one that was cut wherever it had the magic number at a
multiple of four; the magic number itself is left out there (dmlc-core, `include/dmlc/recordio.h`). What a record holds is
MXNet's image header (`struct` "IfQQ": flag, label, id, upper half of the id), then `flag` float32 labels where flag is
not 0, then the image file's bytes (`mxnet.recordio.pack`).
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from facelit.errors import FacelitError
from facelit.storage.system import read_at

MAGIC = 0xCED7230A
MAGIC_BYTES = MAGIC.to_bytes(4, "little")

_WHOLE, _FIRST, _MIDDLE, _LAST = range(4)
_PART = struct.Struct("<II")
_HEADER = struct.Struct("<Ifqq")  # ids are read as signed, as numpy's are: none is so large
_LENGTH_MASK = (1 << 29) - 1
MAX_IMAGE = _LENGTH_MASK - _HEADER.size
"""Most bytes an image may have in a record with one label."""
_HEAD_WORDS = np.arange(10)
"""Words of a whole record that stand before its third label: magic, length, flag, label, id, its upper half, two labels."""


class RecordError(Exception):
    """What is wrong with a record.

    Args:
        offset: Where the record starts.
        reason: What is wrong with it.
    """

    def __init__(self, offset: int, reason: str) -> None:
        super().__init__(reason)
        self.offset = offset
        self.reason = reason


class CutShortError(RecordError):
    """The file ends inside the record."""

    def __init__(self, offset: int, size: int) -> None:
        super().__init__(offset, f"it is cut short: the file ends at byte {size}")


class Head(NamedTuple):
    """The header of one record.

    Attributes:
        key: The record's id.
        labels: Its first two labels; NaN for what it lacks.
        image_at: Where in the record the image's bytes start.
    """

    key: int
    labels: tuple[float, float]
    image_at: int


class Heads(NamedTuple):
    """The headers of many records.

    Attributes:
        keys: Their ids, int64, shape (n,).
        labels: Their first two labels, float32, shape (n, 2); NaN for what they lack.
        sizes: Bytes of their images, int64, shape (n,).
    """

    keys: npt.NDArray[np.int64]
    labels: npt.NDArray[np.float32]
    sizes: npt.NDArray[np.int64]


class RecordFile:
    """A .rec file.

    Headers of many records are read through a map of the file; what a record holds with `pread`, so that a file that is cut short
    while a run uses it is an error and not a crash.

    Args:
        path: The file.

    Raises:
        FacelitError: It cannot be opened, or is empty.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = open(path, "rb", buffering=0)  # noqa: SIM115 - as long as this object lives
            self.size = os.fstat(self._file.fileno()).st_size
            if self.size < _PART.size:
                raise FacelitError(f"{path}: the file ends at byte {self.size}, before its first record.")
            self._map = mmap.mmap(self._file.fileno(), self.size, access=mmap.ACCESS_READ)
        except OSError as error:
            raise FacelitError(f"{path}: cannot open this file ({error.strerror}).") from None
        self._words = np.frombuffer(self._map, "<u4", self.size // 4)

    def place(self, key: int, offset: int) -> str:
        """What to call a record in a message: `.../train.rec, record 17 (byte 123456)`."""
        return f"{self.path}, record {key} (byte {offset})"

    def record(self, offset: int) -> bytes:
        """What the record at byte `offset` holds.

        Raises:
            RecordError: There is no record, or a damaged one.
        """
        return MAGIC_BYTES.join([self._read(start, end - start, offset) for start, end in self._parts(offset)])

    def end(self, offset: int) -> int:
        """Where the record at byte `offset` ends, its padding included; raises `RecordError` as `record` does."""
        return _aligned(self._parts(offset)[-1][1])

    def walk(self) -> Iterator[int]:
        """The offset of every record; raises `RecordError` at the first damaged one."""
        offset = 0
        while offset < self.size:
            end = self.end(offset)
            yield offset
            offset = end

    def heads(self, offsets: npt.NDArray[np.int64]) -> Heads:
        """The headers of many records, about 0.2 µs each where the file is in memory.

        Args:
            offsets: Where the records start: int64, shape (n,), multiples of four inside the file.

        Raises:
            RecordError: One of them is damaged.
        """
        at = offsets[:, None] // 4 + _HEAD_WORDS
        words = self._words[np.minimum(at, len(self._words) - 1)]
        lengths, flags = (words[:, 1] & np.uint32(_LENGTH_MASK)).astype(np.int64), words[:, 2].astype(np.int64)
        sizes = lengths - _HEADER.size - 4 * flags
        floats = words.view("<f4")
        first = np.where(flags > 0, floats[:, 8], floats[:, 3])
        labels = np.stack([first, np.where(flags > 1, floats[:, 9], np.float32(np.nan))], axis=1)
        keys = words[:, 4].astype(np.int64) | words[:, 5].astype(np.int64) << 32
        is_plain = (words[:, 0] == MAGIC) & (words[:, 1] >> 29 == _WHOLE) & (sizes >= 0)
        is_plain &= offsets + _PART.size + (lengths + 3 & ~3) <= self.size
        for row in np.flatnonzero(~is_plain):
            record = self.record(int(offsets[row]))
            head = read_head(record, int(offsets[row]))
            keys[row], labels[row], sizes[row] = head.key, head.labels, len(record) - head.image_at
        return Heads(keys, labels, sizes)

    def _parts(self, offset: int) -> list[tuple[int, int]]:
        """Where the parts of the record at `offset` start and end."""
        kind, start, end = self._part(offset, offset)
        if kind not in (_WHOLE, _FIRST):
            raise RecordError(offset, "it does not start a record")
        parts = [(start, end)]
        while kind in (_FIRST, _MIDDLE):
            kind, start, end = self._part(_aligned(end), offset)
            if kind not in (_MIDDLE, _LAST):
                raise RecordError(offset, "its parts are damaged")
            parts.append((start, end))
        return parts

    def _part(self, offset: int, record: int) -> tuple[int, int, int]:
        """Kind, start and end of the part at `offset` of the record at `record`."""
        if offset + _PART.size > self.size:
            raise CutShortError(record, self.size)
        magic, word = _PART.unpack(self._read(offset, _PART.size, record))
        if magic != MAGIC:
            raise RecordError(record, f"there is no record at byte {offset}: the magic number is not there")
        start = offset + _PART.size
        end = start + (word & _LENGTH_MASK)
        if _aligned(end) > self.size:
            raise CutShortError(record, self.size)
        return word >> 29, start, end

    def _read(self, start: int, size: int, record: int) -> bytes:
        """Bytes of the file, for the record at `record`."""
        try:
            data = read_at(self._file.fileno(), size, start)
        except OSError as error:
            raise RecordError(record, f"cannot be read ({error.strerror})") from None
        if len(data) < size:
            raise CutShortError(record, start + len(data))
        return data


def read_head(record: bytes, offset: int) -> Head:
    """Reads the header of a record.

    Args:
        record: What the record holds.
        offset: Where it starts in its file, for the message.

    Raises:
        RecordError: The record is too short for it.
    """
    if len(record) < _HEADER.size:
        raise RecordError(offset, f"its {len(record)} bytes are too few for a header")
    flag, label, key, _ = _HEADER.unpack_from(record)
    image_at = _HEADER.size + 4 * flag
    if image_at > len(record):
        raise RecordError(offset, f"its header is damaged: {flag} labels in {len(record)} bytes")
    labels = struct.unpack_from(f"<{min(flag, 2)}f", record, _HEADER.size) if flag else (label,)
    return Head(key, (labels[0], labels[1] if flag > 1 else float("nan")), image_at)


def encode_image(key: int, labels: tuple[float, ...], image: bytes | memoryview) -> bytes:
    """What a record holds, as `mxnet.recordio.pack` makes it: one label in the header, several behind it."""
    if len(labels) == 1:
        return _HEADER.pack(0, labels[0], key, 0) + image
    return _HEADER.pack(len(labels), 0.0, key, 0) + struct.pack(f"<{len(labels)}f", *labels) + image


def encode_record(record: bytes) -> bytes:
    """The bytes of a record in the file: cut where it has the magic number at a multiple of four, and padded."""
    words = np.frombuffer(record, "<u4", len(record) // 4)
    cuts = [4 * int(position) for position in np.flatnonzero(words == MAGIC)]
    starts = [0, *(cut + 4 for cut in cuts)]
    kinds = [_FIRST, *[_MIDDLE] * (len(cuts) - 1), _LAST] if cuts else [_WHOLE]
    pieces = []
    for kind, start, end in zip(kinds, starts, [*cuts, len(record)], strict=True):
        pieces += [_PART.pack(MAGIC, kind << 29 | end - start), record[start:end]]
    return b"".join([*pieces, bytes(-len(record) % 4)])


def _aligned(offset: int) -> int:
    return (offset + 3) & ~3
