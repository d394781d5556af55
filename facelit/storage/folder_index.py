"""The list of a folder's images, as an Arrow file that processes share.

It has one row per identity (name, times of its folder, names of its images) and lies beside the data or, where that is read-only, in
the user's cache folder.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from facelit.storage.arrow import names_of, new_file, open_mapped
from facelit.storage.files import replacing
from facelit.storage.names import Names

INDEX_NAME = ".facelit-index.arrow"
"""The index beside the data; hidden, so that no listing takes it for an identity."""

SCHEMA = pa.schema(
    [
        ("identity", pa.large_binary()),
        ("modified_ns", pa.int64()),
        ("changed_ns", pa.int64()),
        ("images", pa.large_list(pa.large_binary())),
    ]
)
UNREADABLE = (pa.ArrowException, OSError, ValueError, KeyError)
"""What reading a damaged or foreign index may raise."""

_VERSION = b"3"


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


def view_of(batch: pa.RecordBatch) -> FolderIndex:
    """An index over the columns of a record batch of `SCHEMA`, without a copy."""
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


def read_kept(root: Path, depth: int) -> tuple[FolderIndex | None, Path | None]:
    """The newest list that was kept of a folder, if there is one, and where."""
    found: list[tuple[int, Path]] = []
    for path in _places(root, depth):
        with suppress(OSError):
            found.append((path.stat().st_mtime_ns, path))
    for _, path in sorted(found, reverse=True):
        with suppress(*UNREADABLE):  # another version's, or damaged: the folder is listed again
            return read_index(path, depth), path
    return None, None


def read_index(path: Path, depth: int) -> FolderIndex:
    """Maps an index file.

    Raises:
        One of `UNREADABLE`: The file is missing, damaged, another version's, or of another `identity_depth`.
    """
    reader, _ = open_mapped(path)
    if (reader.schema.metadata or {}).get(b"facelit-index") != _VERSION or reader.num_record_batches != 1:
        raise ValueError("not an index of this version")
    batch = reader.get_batch(0)
    batch.validate(full=True)  # the file may come from a stranger, with the data
    index = view_of(batch)
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


def keep(batch: pa.RecordBatch, root: Path, depth: int) -> tuple[FolderIndex, Path | None]:
    """Writes the list and maps it; where nothing can be written it stays in memory, and is made anew next time."""
    # A folder without any write permission is meant to stay as it is, even where this user (root) could write.
    may_write = bool(root.stat().st_mode & 0o222)
    for path in _places(root, depth)[0 if may_write else 1 :]:
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            schema = batch.schema.with_metadata({b"facelit-index": _VERSION, b"crc32": _checksum(view_of(batch))})
            with replacing(path) as temporary, new_file(temporary, schema) as writer:
                writer.write_batch(batch)
            return read_index(path, depth), path
    return view_of(batch), None
