"""Crops in `root/<identity>/<image>`, or in identities of several folders (`root/<family>/<member>/<image>`), listed once.

The list is kept as an Arrow file of one row per identity (name, times of its folder, names of its images),
beside the data or, where that is read-only, in the user's cache folder. It is memory-mapped: processes share it. A folder
whose modification or change time is not the listed one is listed again; adding, removing or renaming a file changes both. (rsync and
tar set the former back; the latter nobody can.)
"""

from __future__ import annotations

import hashlib
import os
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from facelit.errors import FacelitError
from facelit.storage.arrow import column_of, names_of, new_file, offsets_of, open_mapped
from facelit.storage.base import CropStore
from facelit.storage.files import replacing
from facelit.storage.images import IMAGE_SUFFIXES, BadImageError, is_image, read_file
from facelit.storage.names import Names
from facelit.storage.progress import progress_bar
from facelit.storage.system import times_waited
from facelit.storage.walking import is_folder

INDEX_NAME = ".facelit-index.arrow"
"""The index beside the data; hidden, so that no listing takes it for an identity."""

_VERSION = b"3"
_SUFFIXES = tuple(map(str.encode, IMAGE_SUFFIXES))
_SCHEMA = pa.schema(
    [
        ("identity", pa.large_binary()),
        ("modified_ns", pa.int64()),
        ("changed_ns", pa.int64()),
        ("images", pa.large_list(pa.large_binary())),
    ]
)
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


_UNREADABLE = (pa.ArrowException, OSError, ValueError, KeyError)
Answer = TypeVar("Answer")


class FolderIndex(NamedTuple):
    """The listing of a folder of identities.

    Attributes:
        identities: Subfolder names, sorted; also those without images.
        modified_ns: Modification time of each subfolder when it was listed, int64; 0 where it cannot be relied on.
        changed_ns: Likewise, the change time of each subfolder's entry.
        starts: Where each identity's images start in `images`, int64, shape (num_identities + 1,).
        images: File names, sorted within each identity.
    """

    identities: Names
    modified_ns: npt.NDArray[np.int64]
    changed_ns: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    images: Names


class FolderStore(CropStore):
    """A folder with one subfolder of image files per identity.

    Identities are numbered in the order of their sorted names, images within them likewise: the same folder always gives
    the same numbers. Subfolders without images, and hidden ones, are no identities.

    Args:
        root: The folder.
        identity_depth: How many folders lead to an identity's images: 1 for `root/<identity>/<image>`; 2 for
            `root/F0001/MID1/<image>`, whose identity is called `F0001/MID1`.

    Raises:
        FacelitError: The folder is missing, has images above the identities' folders, or the depth is below 1.
    """

    def __init__(self, root: str | os.PathLike[str], identity_depth: int = 1) -> None:
        if identity_depth < 1:
            raise FacelitError(f"option identity_depth: at least 1 folder leads to an image, not {identity_depth}.")
        self._set_up(Path(root), identity_depth, *index_folder(Path(root), identity_depth))

    def _set_up(self, root: Path, depth: int, index: FolderIndex, kept: Path | None) -> None:
        self.path, self.identity_depth, self._index, self._kept = root, depth, index, kept
        counts = np.diff(self._index.starts)
        filled = np.flatnonzero(counts)
        names = self._index.identities
        all_filled = len(filled) == len(counts)
        self.identities: Sequence[str] = names if all_filled else Names.of(names[row] for row in filled.tolist())
        self.labels = np.repeat(np.arange(len(filled), dtype=np.int32), counts[filled])

    def __reduce__(self) -> tuple[Callable[..., FolderStore], tuple[Path, int, Path | None, str]]:
        return _reopen, (self.path, self.identity_depth, self._kept, self.fingerprint())

    def encoded(self, row: int) -> bytes:
        """The bytes of the file."""
        place = self.place(row)
        try:
            return read_file(place)
        except BadImageError as error:
            if self._kept is None or os.path.lexists(place):
                raise
            way_out = f"The list that was kept of its folder still has it: remove {self._kept}, and the folder is listed anew."
            raise BadImageError(place, error.reason, way_out) from None

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


def _reopen(root: Path, depth: int, kept: Path | None, fingerprint: str) -> FolderStore:
    """The store as another process listed it, not as the folder is by now."""
    store = FolderStore.__new__(FolderStore)
    try:
        if kept is None:
            raise OSError
        store._set_up(root, depth, _read_index(kept, depth), kept)
    except _UNREADABLE:
        store = FolderStore(root, depth)
    if store.fingerprint() != fingerprint:
        raise FacelitError(f"{root}: its list of images has changed since this program listed it. Start it again.")
    return store


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
    known, kept = _read_kept(root, identity_depth)
    rows = np.full(len(folders), -1) if known is None else _rows_of(folders, known, root)
    if known is not None and (rows >= 0).all() and len(rows) == len(known.identities):
        return known, kept
    listed_at = time.time_ns()
    stale = [folder for folder, row in zip(folders, rows.tolist(), strict=True) if row < 0]
    listed = dict(zip(stale, _for_each(stale, _list_folder, root, "Listing"), strict=True))
    return _keep(_merge(folders, rows, known, listed, listed_at), root, identity_depth)


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
    return sorted(name for name in folders if not name.startswith(b"."))


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
        schema=_SCHEMA,
    )


def _view(batch: pa.RecordBatch) -> FolderIndex:
    images = batch.column("images")
    starts = np.asarray(images.offsets)
    modified, changed = (np.asarray(batch.column(name)) for name in ("modified_ns", "changed_ns"))
    return FolderIndex(names_of(batch.column("identity")), modified, changed, starts, names_of(images.values))


def _places(root: Path, depth: int) -> list[Path]:
    """Where the list of a folder may be kept: beside the data, or in the user's cache folder."""
    deeper = f"-{depth}" if depth > 1 else ""
    places = [root / INDEX_NAME.replace(".arrow", f"{deeper}.arrow")]
    with suppress(RuntimeError):  # a user without a home has no cache
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        digest = hashlib.blake2b(os.fsencode(root.resolve()), digest_size=12).hexdigest()
        places.append(caches / "facelit" / f"index-{digest}{deeper}.arrow")
    return places


def _read_kept(root: Path, depth: int) -> tuple[FolderIndex | None, Path | None]:
    """The newest list that was kept of a folder, if there is one, and where."""
    found: list[tuple[int, Path]] = []
    for path in _places(root, depth):
        with suppress(OSError):
            found.append((path.stat().st_mtime_ns, path))
    for _, path in sorted(found, reverse=True):
        with suppress(*_UNREADABLE):  # another version's, or damaged: the folder is listed again
            return _read_index(path, depth), path
    return None, None


def _read_index(path: Path, depth: int) -> FolderIndex:
    reader, _ = open_mapped(path)
    if (reader.schema.metadata or {}).get(b"facelit-index") != _VERSION or reader.num_record_batches != 1:
        raise ValueError("not an index of this version")
    batch = reader.get_batch(0)
    batch.validate(full=True)  # the file may come from a stranger, with the data
    index = _view(batch)
    if reader.schema.metadata.get(b"crc32") != _checksum(index):
        raise ValueError("damaged")
    slashes = np.concatenate([[0], np.cumsum(index.identities.blob == ord("/"))])[index.identities.offsets]
    if (index.images.blob == ord("/")).any() or (np.diff(slashes) != depth - 1).any():
        raise ValueError("a file name that leads elsewhere")
    return index


def _checksum(index: FolderIndex) -> bytes:
    """CRC-32 of all that is listed, as it stands in the file's metadata."""
    names = [array for some in (index.identities, index.images) for array in (some.offsets, some.blob)]
    checksum = 0
    for array in (index.modified_ns, index.changed_ns, index.starts, *names):
        checksum = zlib.crc32(np.ascontiguousarray(array).data, checksum)
    return b"%08x" % checksum


def _keep(batch: pa.RecordBatch, root: Path, depth: int) -> tuple[FolderIndex, Path | None]:
    """Writes the list and maps it; where nothing can be written it stays in memory, and is made anew next time."""
    # A folder without any write permission is meant to stay as it is, even where this user (root) could write.
    may_write = bool(root.stat().st_mode & 0o222)
    for path in _places(root, depth)[0 if may_write else 1 :]:
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            schema = batch.schema.with_metadata({b"facelit-index": _VERSION, b"crc32": _checksum(_view(batch))})
            with replacing(path) as temporary, new_file(temporary, schema) as writer:
                writer.write_batch(batch)
            return _read_index(path, depth), path
    return _view(batch), None
