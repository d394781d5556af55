"""Where the records of a .rec file start: its `train.idx`, or a walk through it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv

from facelit.errors import FacelitError
from facelit.storage.progress import progress_bar
from facelit.storage.record_file import CutShortError, Heads, RecordError, RecordFile

DOWNLOAD_AGAIN = "Download the set again."
CHUNK = 1 << 16
"""Headers that are read at a time."""

Int64s = npt.NDArray[np.int64]


class Index(NamedTuple):
    """Keys of records, ascending, and where each starts: int64, shape (num_records,)."""

    keys: Int64s
    offsets: Int64s

    def part(self, rows: slice | Int64s) -> Index:
        """Some of the records."""
        return Index(self.keys[rows], self.offsets[rows])


def read_index(path: Path) -> Index:
    """Reads `train.idx`: a line `key<TAB>offset` per record.

    Raises:
        FacelitError: It is no such file, or is damaged.
    """
    way_out = f"{DOWNLOAD_AGAIN[:-1]}, or remove this file: it is then made anew from train.rec."
    try:
        table = pa.csv.read_csv(
            path,
            pa.csv.ReadOptions(use_threads=False, column_names=["key", "offset"]),
            pa.csv.ParseOptions(delimiter="\t", quote_char=False),
            pa.csv.ConvertOptions(column_types={"key": pa.int64(), "offset": pa.int64()}, null_values=[]),
        )
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise FacelitError(f"{path}: lines of `key<TAB>offset` are expected ({reason}). {way_out}") from None
    index = Index(table["key"].to_numpy(), table["offset"].to_numpy())
    if index.offsets.min() < 0 or (index.offsets % 4).any():
        raise FacelitError(f"{path}: has offsets at which no record can start. {way_out}")
    return _sorted(index, path)


def walk_index(file: RecordFile) -> Index:
    """What `train.idx` would say, from the records themselves: their ids, and where they start.

    Raises:
        FacelitError: A record is damaged or cut short, or two have the same id.
    """
    parts: list[Int64s] = []
    chunk: list[int] = []
    try:
        with progress_bar(f"No train.idx: walking {file.path}", file.size, quiet_below=1 << 30) as show:
            for offset in file.walk():
                chunk.append(offset)
                if len(chunk) == CHUNK:
                    parts.append(np.array(chunk, np.int64))
                    chunk.clear()
                    show(offset)
    except RecordError as error:
        number = sum(map(len, parts)) + len(chunk)
        raise FacelitError(f"{file.place(number, error.offset)}: {error.reason}. {DOWNLOAD_AGAIN}") from None
    offsets = np.concatenate([*parts, np.array(chunk, np.int64)])
    numbers = Index(np.arange(len(offsets)), offsets)
    keys = [heads_of(file, numbers.part(slice(start, start + CHUNK))).keys for start in range(0, len(offsets), CHUNK)]
    return _sorted(Index(np.concatenate(keys), offsets), file.path)


def check_whole(file: RecordFile, index: Index) -> None:
    """Checks that the last record of the index is all there, and the last one of the file.

    Raises:
        FacelitError: With the first record that is not; or the index is of another file.
    """
    inside = index.offsets < file.size
    if not inside.any():
        raise FacelitError(f"{file.path}: ends at byte {file.size}, before its first record. {DOWNLOAD_AGAIN}")
    row = int(np.argmax(np.where(inside, index.offsets, -1)))
    reason = ""
    try:
        end = file.end(int(index.offsets[row]))
        if not inside.all():
            row = int(np.argmin(np.where(inside, np.iinfo(np.int64).max, index.offsets)))
            reason = f"it is missing: the file ends at byte {file.size}"
        elif end < file.size:
            reason = f"it is the last in train.idx, and {file.size - end} bytes follow: train.idx is cut short, or old"
    except RecordError as error:
        reason = error.reason
        if isinstance(error, CutShortError):
            reason += f", after {np.count_nonzero(index.offsets < error.offset):,} of {len(index.keys):,} records"
    if reason:
        raise FacelitError(f"{file.place(int(index.keys[row]), int(index.offsets[row]))}: {reason}. {DOWNLOAD_AGAIN}")


def heads_of(file: RecordFile, index: Index) -> Heads:
    """The headers of records, `CHUNK` or fewer where memory counts.

    Raises:
        FacelitError: Naming the record that has none.
    """
    try:
        return file.heads(index.offsets)
    except RecordError as error:
        key = int(index.keys[np.argmax(index.offsets == error.offset)])
        raise FacelitError(f"{file.place(key, error.offset)}: {error.reason}. {DOWNLOAD_AGAIN}") from None


def _sorted(index: Index, path: Path) -> Index:
    """The index in the order of its keys; raises `FacelitError` where a key stands twice."""
    if (np.diff(index.keys) <= 0).any():
        index = index.part(np.argsort(index.keys, kind="stable"))
    again = np.flatnonzero(np.diff(index.keys) == 0)
    if len(again):
        raise FacelitError(f"{path}: key {index.keys[again[0]]} stands for two records. {DOWNLOAD_AGAIN}")
    return index
