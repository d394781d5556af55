"""Arrow columns of names and bytes as numpy arrays, without copying."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from facelit.storage.names import Names


def names_of(column: pa.LargeBinaryArray) -> Names:
    """A view of a column of names."""
    _, offsets, blob = column.buffers()
    starts = np.frombuffer(offsets, np.int64, len(column) + 1, offset=8 * column.offset)
    return Names(starts, np.frombuffer(blob, np.uint8) if blob is not None else np.empty(0, np.uint8))


def column_of(lengths: Sequence[int] | npt.NDArray[np.int64], blob: bytes) -> pa.LargeBinaryArray:
    """A column of byte strings that lie end to end in `blob`."""
    buffers = [None, pa.py_buffer(offsets_of(lengths)), pa.py_buffer(blob)]
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(lengths), buffers)


def offsets_of(lengths: Sequence[int] | npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Where pieces of these lengths start, and where the last one ends: int64, shape (count + 1,)."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def open_mapped(path: Path) -> tuple[pa.ipc.RecordBatchFileReader, int]:
    """Maps an Arrow file, whatever bytes its name is made of.

    Returns:
        Its reader, and the address that its first byte is mapped to. What is read refers to the map, and keeps it.

    Raises:
        OSError: It cannot be opened.
        ValueError: It is empty, or no Arrow file (`pyarrow.ArrowInvalid`).
    """
    with open(path, "rb") as file:
        buffer = pa.py_buffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    return pa.ipc.open_file(buffer), buffer.address


@contextmanager
def new_file(path: Path, schema: pa.Schema) -> Iterator[pa.ipc.RecordBatchFileWriter]:
    """Writes an Arrow file; the disk has it when this ends."""
    with open(path, "wb") as file:
        with pa.ipc.new_file(file, schema) as writer:
            yield writer
        file.flush()
        # Its final name must not outlive its contents in a power cut.
        os.fsync(file.fileno())
