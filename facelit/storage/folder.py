"""Crops in `root/<identity>/<image>`, listed once.

The list is kept as an Arrow file of one row per identity (name, modification time of its folder, names of its images),
beside the data or, where that is read-only, in the user's cache folder. It is memory-mapped: processes share it. A folder
whose modification time is not the listed one is listed again; adding, removing or renaming a file changes it.
"""

from __future__ import annotations

import hashlib
import os
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from facelit.errors import FacelitError
from facelit.progress import progress_bar
from facelit.storage.arrow import column_of, names_of, offsets_of
from facelit.storage.base import CropStore
from facelit.storage.images import is_image, read_file
from facelit.storage.names import Names

INDEX_NAME = ".facelit-index.arrow"
"""The index beside the data; hidden, so that no listing takes it for an identity."""

_VERSION = b"1"
_SUFFIXES = (b".jpg", b".jpeg", b".png", b".webp")
_SCHEMA = pa.schema(
    [
        ("identity", pa.large_binary()),
        ("modified_ns", pa.int64()),
        ("images", pa.large_list(pa.large_binary())),
    ]
)
_CHUNK = 64
"""Folders that are listed at a time."""
_THREADS = 32
"""For disks that answer slowly; a fast one is listed faster by one thread, as Python's lock lets one compute at a time."""
_RACY_NS = 2_000_000_000
"""A folder that changed so shortly before it was listed may change again without another modification time."""
_WORTH_A_BAR = 2_000
"""Fewer folders than this are listed without a progress bar."""


class FolderIndex(NamedTuple):
    """The listing of a folder of identities.

    Attributes:
        identities: Subfolder names, sorted; also those without images.
        modified_ns: Modification time of each subfolder when it was listed, int64; 0 where it cannot be relied on.
        starts: Where each identity's images start in `images`, int64, shape (num_identities + 1,).
        images: File names, sorted within each identity.
    """

    identities: Names
    modified_ns: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    images: Names


class FolderStore(CropStore):
    """A folder with one subfolder of image files per identity.

    Identities are numbered in the order of their sorted names, images within them likewise: the same folder always gives
    the same numbers. Subfolders without images, and hidden ones, are no identities.

    Args:
        root: The folder.

    Raises:
        FacelitError: The folder is missing, or has images directly in it.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.path = Path(root)
        self._index = index_folder(self.path)
        counts = np.diff(self._index.starts)
        filled = np.flatnonzero(counts)
        self._folder_of = None if len(filled) == len(counts) else filled
        names = self._index.identities
        self.identities: Sequence[str] = names if self._folder_of is None else Names.of(names[int(f)] for f in filled)
        self.labels = np.repeat(np.arange(len(filled), dtype=np.int32), counts[filled])

    def __reduce__(self) -> tuple[type[FolderStore], tuple[Path]]:
        return FolderStore, (self.path,)

    def encoded(self, row: int) -> bytes:
        """The bytes of the file."""
        return read_file(self.place(row))

    def name(self, row: int) -> str:
        """`identity/file`."""
        return f"{self.identities[int(self.labels[row])]}/{self._index.images[row]}"

    def place(self, row: int) -> str:
        """The file's path."""
        return os.path.join(self.path, self.identities[int(self.labels[row])], self._index.images[row])

    def fingerprint(self) -> str:
        """A hash over all names, in their order."""
        digest = hashlib.blake2b(digest_size=16)
        index = self._index
        for array in (
            index.identities.offsets,
            index.identities.blob,
            index.starts,
            index.images.offsets,
            index.images.blob,
        ):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def index_folder(root: Path) -> FolderIndex:
    """Lists a folder of identities, or takes what is still true from the list that was kept of it.

    Args:
        root: `root/<identity>/<image>`.

    Raises:
        FacelitError: The folder is missing, cannot be read, or has images directly in it.
    """
    folders = _subfolders(root)
    known, place = _read_kept(root)
    base = os.fsencode(root)
    fresh = _Fresh(known, base)
    stale = [name for name in folders if not fresh.holds(name)]
    if known is not None and not stale and len(known.identities) == len(folders):
        return known
    listed_at = time.time_ns()
    listed = _list_all(stale, base, root)
    merged = _merge(folders, fresh, listed, listed_at)
    return _keep(merged, root, place)


class _Listed(NamedTuple):
    """One folder: its modification time, its sorted image names end to end, and their lengths."""

    modified_ns: int
    blob: bytes
    lengths: npt.NDArray[np.int64]


class _Fresh:
    """What of a kept list is still true."""

    def __init__(self, known: FolderIndex | None, base: bytes) -> None:
        self._known = known
        self._base = base
        self._number = {} if known is None else {name: number for number, name in enumerate(known.identities)}

    def holds(self, folder: str) -> bool:
        number = self._number.get(folder)
        if self._known is None or number is None:
            return False
        modified = int(self._known.modified_ns[number])
        return modified != 0 and modified == os.stat(os.path.join(self._base, os.fsencode(folder))).st_mtime_ns

    def take(self, folder: str) -> _Listed:
        assert self._known is not None
        number = self._number[folder]
        start, stop = self._known.starts[number : number + 2]
        offsets = self._known.images.offsets[start : stop + 1]
        blob = self._known.images.blob[offsets[0] : offsets[-1]].tobytes() if stop > start else b""
        return _Listed(int(self._known.modified_ns[number]), blob, np.diff(offsets))


def _subfolders(root: Path) -> list[str]:
    if not root.is_dir():
        raise FacelitError(
            f"folder not found: {root}. A training set lies in root/<identity>/<image>, in a folder that `facelit pack` wrote, or in"
            " an InsightFace set."
        )
    folders: list[str] = []
    loose: list[str] = []
    try:
        with os.scandir(root) as entries:
            for entry in entries:
                if entry.is_dir():
                    folders.append(entry.name)
                elif is_image(entry.name):
                    loose.append(entry.name)
    except OSError as error:
        raise FacelitError(f"{root}: cannot list this folder ({error.strerror}).") from None
    if loose:
        raise FacelitError(
            f"{root}: {len(loose)} image(s) lie directly in the training folder ({', '.join(sorted(loose)[:3])}...)."
            " Each image belongs in its identity's subfolder: root/<identity>/<image>."
        )
    return sorted((name for name in folders if not name.startswith(".")), key=os.fsencode)


def _list_folder(path: bytes) -> _Listed:
    modified_ns = os.stat(path).st_mtime_ns  # before the listing: a change during it shows as a later time
    names = sorted(name for name in os.listdir(path) if name.lower().endswith(_SUFFIXES) and not name.startswith(b"."))
    return _Listed(modified_ns, b"".join(names), np.fromiter(map(len, names), np.int64, len(names)))


def _list_all(folders: list[str], base: bytes, root: Path) -> dict[str, _Listed]:
    """Lists folders: on one thread, or on many where it is the disk that takes the time."""
    listed: dict[str, _Listed] = {}
    pending = iter(folders)

    def list_chunk(chunk: list[str]) -> list[tuple[str, _Listed]]:
        return [(name, _list_folder(os.path.join(base, os.fsencode(name)))) for name in chunk]

    with progress_bar(f"Listing {root}", len(folders), _WORTH_A_BAR) as show:
        try:
            for chunk in _until_slow(pending, list_chunk):
                listed.update(chunk)
                show(len(listed))
            chunks = iter(lambda: list(islice(pending, _CHUNK)), [])
            with ThreadPoolExecutor(_THREADS) as threads:
                for chunk in threads.map(list_chunk, chunks):
                    listed.update(chunk)
                    show(len(listed))
        except OSError as error:
            raise FacelitError(
                f"{os.fsdecode(error.filename or base)}: cannot list this folder ({error.strerror})."
            ) from None
    return listed


def _until_slow(
    pending: Iterator[str], list_chunk: Callable[[list[str]], list[tuple[str, _Listed]]]
) -> Iterator[list[tuple[str, _Listed]]]:
    """Chunks listed by this thread, until most of a chunk's time goes into waiting for the disk."""
    while chunk := list(islice(pending, _CHUNK)):
        wall, computing, waits = time.perf_counter(), time.thread_time(), _times_waited()
        yield list_chunk(chunk)
        wall, computing = time.perf_counter() - wall, time.thread_time() - computing
        # A thread that other programs keep from computing is not waiting for the disk.
        if wall > 0.1 and computing < wall / 2 and _times_waited() - waits >= len(chunk) / 2:
            return


def _times_waited() -> int:
    """How often this thread has given up its core of its own accord (only Linux says so for a thread)."""
    return resource.getrusage(getattr(resource, "RUSAGE_THREAD", resource.RUSAGE_SELF)).ru_nvcsw


def _merge(folders: list[str], fresh: _Fresh, listed: dict[str, _Listed], listed_at: int) -> pa.RecordBatch:
    """The rows of all folders, sorted by name, as one Arrow record batch."""
    rows = [listed[name] if name in listed else fresh.take(name) for name in folders]
    lengths = np.concatenate([row.lengths for row in rows]) if rows else np.empty(0, np.int64)
    counts = [len(row.lengths) for row in rows]
    modified = np.array([row.modified_ns for row in rows], np.int64)
    modified[modified > listed_at - _RACY_NS] = 0
    images = column_of(lengths, b"".join(row.blob for row in rows))
    return pa.record_batch(
        [
            pa.array([os.fsencode(name) for name in folders], pa.large_binary()),
            pa.array(modified),
            pa.LargeListArray.from_arrays(pa.array(offsets_of(counts)), images),
        ],
        schema=_SCHEMA,
    )


def _view(batch: pa.RecordBatch) -> FolderIndex:
    images = batch.column("images")
    starts = np.asarray(images.offsets)
    return FolderIndex(
        names_of(batch.column("identity")), np.asarray(batch.column("modified_ns")), starts, names_of(images.values)
    )


def _cache_path(root: Path) -> Path:
    """Where the list of a read-only folder is kept."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    digest = hashlib.blake2b(os.fsencode(root.resolve()), digest_size=12).hexdigest()
    return caches / "facelit" / f"index-{digest}.arrow"


def _read_kept(root: Path) -> tuple[FolderIndex | None, Path | None]:
    """The list that was kept of a folder, if there is one, and where."""
    for path in (root / INDEX_NAME, _cache_path(root)):
        if not path.is_file():
            continue
        try:
            return _read_index(path), path
        except (pa.ArrowException, OSError, ValueError, KeyError):
            continue  # another version's, or damaged: the folder is listed again
    return None, None


def _read_index(path: Path) -> FolderIndex:
    with pa.memory_map(os.fspath(path)) as file, pa.ipc.open_file(file) as reader:
        if reader.schema.metadata.get(b"facelit-index") != _VERSION or reader.num_record_batches != 1:
            raise ValueError("not an index of this version")
        batch = reader.get_batch(0)
    batch.validate(full=True)  # the file may come from a stranger, with the data
    index = _view(batch)
    if (index.images.blob == ord("/")).any() or (index.identities.blob == ord("/")).any():
        raise ValueError("a file name that leads elsewhere")
    return index


def _keep(batch: pa.RecordBatch, root: Path, place: Path | None) -> FolderIndex:
    """Writes the list and maps it; where nothing can be written it stays in memory, and is made anew next time."""
    # A folder without any write permission is meant to stay as it is, even where this user (root) could write.
    beside = [root / INDEX_NAME] if root.stat().st_mode & 0o222 else []
    for path in dict.fromkeys([*beside, place or _cache_path(root), _cache_path(root)]):
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with (
                pa.OSFile(os.fspath(temporary), "wb") as file,
                pa.ipc.new_file(file, batch.schema.with_metadata({b"facelit-index": _VERSION})) as writer,
            ):
                writer.write_batch(batch)
            os.replace(temporary, path)
            return _read_index(path)
        except OSError:
            with suppress(OSError):
                temporary.unlink()
    return _view(batch)
