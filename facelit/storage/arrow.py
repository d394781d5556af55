"""Arrow columns of names and bytes as numpy arrays, without copying."""

from __future__ import annotations

from collections.abc import Sequence

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
