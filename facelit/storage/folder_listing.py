"""Lists a folder of identities, and keeps the list.

A folder whose modification or change time is not the listed one is listed again; adding, removing or renaming a file changes both.
(rsync and tar set the former back; the latter nobody can.)
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from facelit.errors import FacelitError
from facelit.storage.arrow import column_of, offsets_of
from facelit.storage.folder_index import SCHEMA, FolderIndex, keep, read_kept
from facelit.storage.images import IMAGE_SUFFIXES, is_image
from facelit.storage.names import Names
from facelit.storage.progress import progress_bar
from facelit.storage.system import times_waited
from facelit.storage.walking import is_folder, is_hidden

_SUFFIXES = tuple(map(str.encode, IMAGE_SUFFIXES))
_CHUNK = 64
"""Folders that are listed at a time."""
_THREADS = 32
"""For disks that answer slowly; a fast one is listed faster by one thread, as Python's lock lets one compute at a time."""
_RACY_NS = 2_000_000_000
"""A folder that changed so shortly before it was listed may change again without another modification time."""
_CHANGE_TICK_NS = 50_000_000
"""The same for the change time, which only the system's clock sets, and no program."""
_WORTH_A_BAR = 2_000
"""Fewer folders than this are listed without a progress bar."""

Answer = TypeVar("Answer")


def index_folder(root: Path, identity_depth: int = 1) -> tuple[FolderIndex, Path | None]:
    """Lists a folder of identities, or takes what is still true from the list that was kept of it.

    Args:
        root: `root/<identity>/<image>`.
        identity_depth: See `FolderStore`.

    Returns:
        The list, and the file that it is kept in; None where it cannot be kept.

    Raises:
        FacelitError: The folder is missing, cannot be read, or has images above the identities' folders.
    """
    folders = _identity_folders(root, identity_depth)
    known, kept = read_kept(root, identity_depth)
    rows = np.full(len(folders), -1) if known is None else _rows_of(folders, known, root)
    if known is not None and (rows >= 0).all() and len(rows) == len(known.identities):
        return known, kept
    listed_at = time.time_ns()
    stale = [folder for folder, row in zip(folders, rows.tolist(), strict=True) if row < 0]
    listed = dict(zip(stale, _for_each(stale, _list_folder, root, "Listing"), strict=True))
    return keep(_merge(folders, rows, known, listed, listed_at), root, identity_depth)


class _Listed(NamedTuple):
    """One folder: its times, its sorted image names end to end, and their lengths."""

    modified_ns: int
    changed_ns: int
    blob: bytes
    lengths: npt.NDArray[np.int64]


def _rows_of(folders: list[bytes], known: FolderIndex, root: Path) -> npt.NDArray[np.int64]:
    """Where each folder stands in a kept list; -1 where it does not, or has changed since."""
    names = Names.of(map(os.fsdecode, folders))
    if np.array_equal(names.offsets, known.identities.offsets) and np.array_equal(names.blob, known.identities.blob):
        rows = np.arange(len(folders))
    else:
        number = {os.fsencode(name): row for row, name in enumerate(known.identities)}
        rows = np.array([number.get(folder, -1) for folder in folders], np.int64)
    times = np.array(_for_each(folders, _times_ns, root, "Looking for changes in"), np.int64).reshape(-1, 2)
    is_true = (rows >= 0) & (times != 0).all(1)
    for column, listed in enumerate((known.modified_ns, known.changed_ns)):
        is_true[is_true] &= listed[rows[is_true]] == times[is_true, column]
    return np.where(is_true, rows, -1)


def _take(known: FolderIndex, row: int) -> _Listed:
    """One folder out of a kept list."""
    start, stop = known.starts[row : row + 2]
    offsets = known.images.offsets[start : stop + 1]
    blob = known.images.blob[offsets[0] : offsets[-1]].tobytes() if stop > start else b""
    return _Listed(int(known.modified_ns[row]), int(known.changed_ns[row]), blob, np.diff(offsets))


def _identity_folders(root: Path, depth: int) -> list[bytes]:
    """Paths of the identities' folders below `root`, sorted."""
    folders = _subfolders(root)
    for _ in range(depth - 1):
        base = os.fsencode(root)
        folders = [
            os.path.join(folder, name)
            for folder in folders
            for name in _subfolders(Path(os.fsdecode(os.path.join(base, folder))), is_root=False)
        ]
    return sorted(folders)


def _subfolders(root: Path, is_root: bool = True) -> list[bytes]:
    if not root.is_dir():
        what = f"{root} is a file, and no folder" if root.is_file() else f"folder not found: {root}"
        raise FacelitError(
            f"{what}. A training set is root/<identity>/<image>, a folder that `facelit pack` wrote, or an"
            " InsightFace set."
        )
    folders: list[bytes] = []
    loose: list[str] = []
    try:
        with os.scandir(os.fsencode(root)) as entries:
            for entry in entries:
                if is_folder(entry):
                    folders.append(entry.name)
                elif is_image(os.fsdecode(entry.name)):
                    loose.append(os.fsdecode(entry.name))
    except OSError as error:
        raise FacelitError(f"{root}: cannot list this folder ({error.strerror}).") from None
    if loose and not is_root:
        raise FacelitError(
            f"{root}: {len(loose)} image(s) are directly in this folder ({', '.join(sorted(loose)[:3])}...), above the identities'"
            " (option identity_depth). Move them into an identity's subfolder, or out of the set."
        )
    if loose:
        raise FacelitError(
            f"{root}: {len(loose)} image(s) are directly in the training folder ({', '.join(sorted(loose)[:3])}...)."
            " Each image belongs in its identity's subfolder: root/<identity>/<image>."
        )
    return sorted(name for name in folders if not is_hidden(os.fsdecode(name)))


def _times_ns(path: bytes) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_mtime_ns, status.st_ctime_ns


def _list_folder(path: bytes) -> _Listed:
    times = _times_ns(path)  # before the listing: a change during it shows as a later time
    names = sorted(name for name in os.listdir(path) if name.lower().endswith(_SUFFIXES) and not name.startswith(b"."))
    return _Listed(*times, b"".join(names), np.fromiter(map(len, names), np.int64, len(names)))


def _for_each(folders: list[bytes], ask: Callable[[bytes], Answer], root: Path, doing: str) -> list[Answer]:
    """Asks the disk about each folder: on one thread, or on many where it is the disk that takes the time."""
    base = os.fsencode(root)
    answers: list[Answer] = []
    pending = iter(folders)

    def ask_chunk(chunk: list[bytes]) -> list[Answer]:
        return [ask(os.path.join(base, name)) for name in chunk]

    with progress_bar(f"{doing} {root}", len(folders), _WORTH_A_BAR) as show:
        try:
            for chunk in _until_slow(pending, ask_chunk):
                answers += chunk
                show(len(answers))
            chunks = iter(lambda: list(islice(pending, _CHUNK)), [])
            with ThreadPoolExecutor(_THREADS) as threads:
                for chunk in threads.map(ask_chunk, chunks):
                    answers += chunk
                    show(len(answers))
        except OSError as error:
            raise FacelitError(
                f"{os.fsdecode(error.filename or base)}: cannot list this folder ({error.strerror})."
            ) from None
    return answers


def _until_slow(pending: Iterator[bytes], ask_chunk: Callable[[list[bytes]], list[Answer]]) -> Iterator[list[Answer]]:
    """Chunks asked for by this thread, until most of a chunk's time goes into waiting for the disk."""
    while chunk := list(islice(pending, _CHUNK)):
        wall, computing, waits = time.perf_counter(), time.thread_time(), times_waited()
        yield ask_chunk(chunk)
        wall, computing = time.perf_counter() - wall, time.thread_time() - computing
        # A thread that other programs keep from computing is not waiting for the disk.
        if wall > 0.1 and computing < wall / 2 and times_waited() - waits >= len(chunk) / 2:
            return


def _merge(
    folders: list[bytes],
    kept_rows: npt.NDArray[np.int64],
    known: FolderIndex | None,
    listed: dict[bytes, _Listed],
    listed_at: int,
) -> pa.RecordBatch:
    """The rows of all folders, sorted by name, as one Arrow record batch."""
    rows = [
        listed[folder] if row < 0 or known is None else _take(known, row)
        for folder, row in zip(folders, kept_rows.tolist(), strict=True)
    ]
    lengths = np.concatenate([row.lengths for row in rows]) if rows else np.empty(0, np.int64)
    counts = [len(row.lengths) for row in rows]
    modified = np.array([row.modified_ns for row in rows], np.int64)
    modified[modified > listed_at - _RACY_NS] = 0
    changed = np.array([row.changed_ns for row in rows], np.int64)
    changed[changed > listed_at - _CHANGE_TICK_NS] = 0
    images = column_of(lengths, b"".join(row.blob for row in rows))
    return pa.record_batch(
        [
            pa.array(folders, pa.large_binary()),
            pa.array(modified),
            pa.array(changed),
            pa.LargeListArray.from_arrays(pa.array(offsets_of(counts)), images),
        ],
        schema=SCHEMA,
    )
