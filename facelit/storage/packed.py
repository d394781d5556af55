"""Crops in packed shards: Arrow IPC files that any Arrow library reads.

A packed folder holds `facelit-pack.json` (what it is, and its shards), `identities.arrow` (column `identity`, a row per number)
and `shard-00000.arrow`, ... with the columns `image` (the file's bytes, as they were), `name` (`identity/file`), `identity` (its number)
and `crc32` (of `image`).
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from facelit.errors import FacelitError
from facelit.storage.arrow import names_of, open_mapped
from facelit.storage.base import CropStore
from facelit.storage.files import replacing
from facelit.storage.images import BadImageError
from facelit.storage.names import Names
from facelit.storage.system import BINARY, allow_open_files, read_at

MANIFEST = "facelit-pack.json"
IDENTITIES = "identities.arrow"
VERSION = 1
AGAIN = "Fetch it again; or run the same `facelit pack SRC DST` again, which writes what is missing or damaged."
SHARD_SCHEMA = pa.schema(
    [
        ("image", pa.large_binary()),
        ("name", pa.large_binary()),
        ("identity", pa.int32()),
        ("crc32", pa.uint32()),
    ]
)


class Manifest(NamedTuple):
    """What `facelit-pack.json` says.

    Attributes:
        source: Fingerprint of the store that was packed.
        images: How many images the source lists.
        identities: How many identities it has.
        images_per_shard: Images of the source that each shard but the last stands for.
        any_size: Whether images of other sizes than 112x112 were let in.
        skip_bad: Whether images that cannot be read were left out.
        shards: Images and bytes of each shard; empty until all are written.
        skipped: Rows of the source that were left out.
        checksums: Of each shard two CRC-32, of its labels and of its names (`Shard.label_checksum`, `name_checksum`); empty
            in packs that an earlier facelit wrote.
        identity_checksum: CRC-32 of the identities' names; None likewise.
    """

    source: str
    images: int
    identities: int
    images_per_shard: int
    any_size: bool = False
    skip_bad: bool = False
    shards: Sequence[tuple[int, int]] = ()
    skipped: Sequence[int] = ()
    checksums: Sequence[tuple[int, int]] = ()
    identity_checksum: int | None = None

    @property
    def complete(self) -> bool:
        """Whether all shards were written."""
        return bool(self.shards)

    @property
    def num_shards(self) -> int:
        """How many shards there are, or will be."""
        return -(-self.images // self.images_per_shard)

    def write(self, folder: Path) -> None:
        """Replaces the file in one move."""
        path = folder / MANIFEST
        text = json.dumps(
            {"format": "facelit-pack", "version": VERSION, "complete": self.complete, **self._asdict()}, indent=1
        )
        with replacing(path) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Reads it; raises `FacelitError` where it is damaged, or of another version."""
        path = folder / MANIFEST
        try:
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if found["version"] != VERSION:
                raise FacelitError(f"{path}: version {found['version']} of the format; this facelit reads {VERSION}.")
            shards = [(int(images), int(size)) for images, size in found["shards"]]
            checksums = [(int(labels), int(names)) for labels, names in found.get("checksums", ())]
            others = {name: found[name] for name in cls._fields[: cls._fields.index("shards")]}
            manifest = cls(**others, shards=shards, skipped=found["skipped"], checksums=checksums)
            manifest = manifest._replace(identity_checksum=found.get("identity_checksum"))
            if checksums and len(checksums) != len(shards):
                raise ValueError(f"checksums of {len(checksums)} shards, and {len(shards)} shards")
            if min(manifest.images, manifest.identities, manifest.images_per_shard) < 1:
                raise ValueError("sizes below 1")
            return manifest
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise FacelitError(f"{path}: not a packed folder's description, or a damaged one ({error}).") from None


def shard_path(folder: Path, number: int) -> Path:
    """Where shard `number` lies."""
    return folder / f"shard-{number:05d}.arrow"


class Shard:
    """One shard, opened: where its images and names lie, and whose they are.

    It is mapped only while it is opened. Images and names are then read with `pread`: a disk that fails, or a file that is cut
    short while a run uses it, is an error and not a crash, and the memory of a run does not seem to grow to the size of its
    data.

    Args:
        path: The file.

    Raises:
        FacelitError: It is absent, damaged, or no shard.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = os.open(path, os.O_RDONLY | BINARY)
        except OSError as error:
            raise FacelitError(f"{path}: cannot open this shard ({error.strerror}).") from None
        with _read_batches(path) as batches:
            self.identity: npt.NDArray[np.int32] = _joined(batches.columns("identity"), np.int32)
            self._images = [_Blob.of(column, batches.address) for column in batches.columns("image")]
            self._names = [_Blob.of(column, batches.address) for column in batches.columns("name")]
            self.checksums: npt.NDArray[np.uint32] = _joined(batches.columns("crc32"), np.uint32)
        self.label_checksum = zlib.crc32(self.checksums.data, zlib.crc32(self.identity.data))
        """CRC-32 of the identity numbers, and of the images' own checksums."""
        self._starts: list[int] = np.cumsum([0, *(len(blob.offsets) - 1 for blob in self._images)]).tolist()

    def __len__(self) -> int:
        return len(self.identity)

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)

    def name(self, row: int) -> str:
        """`identity/file` of image `row`; raises as `encoded`."""
        return os.fsdecode(self._read(self._names, row))

    def encoded(self, row: int) -> bytes:
        """The bytes of image `row`; raises `OSError` or `EOFError` where they cannot be had."""
        return self._read(self._images, row)

    def name_checksum(self) -> int:
        """CRC-32 of the names and their lengths; reads them all."""
        checksum = 0
        with _read_batches(self.path) as batches:
            for names in map(names_of, batches.columns("name")):
                checksum = checksum_of(names, checksum)
        return checksum

    def _read(self, blobs: list[_Blob], row: int) -> bytes:
        batch = bisect_right(self._starts, row) - 1
        start, size = blobs[batch].place(row - self._starts[batch])
        data = read_at(self._file, size, start)
        if len(data) != size:
            raise EOFError(f"the shard is cut short: byte {start + len(data):,} is missing")
        return data


class PackedStore(CropStore):
    """A folder that `facelit pack` wrote.

    Args:
        folder: The folder.

    Raises:
        FacelitError: Packing was not finished, or a shard is absent or damaged.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.path = Path(folder)
        self.manifest = Manifest.read(self.path)
        if not self.manifest.complete:
            raise FacelitError(
                f"{self.path}: packing was not finished. Run the same `facelit pack SRC {self.path}` again: it goes on where it"
                " stopped."
            )
        self.identities: Sequence[str] = read_identities(self.path, self.manifest)
        allow_open_files(len(self.manifest.shards))
        self.shards = [self._open(number, *shard) for number, shard in enumerate(self.manifest.shards)]
        self._starts: list[int] = np.cumsum([0, *map(len, self.shards)]).tolist()
        self.labels = np.concatenate([shard.identity for shard in self.shards])
        if len(self.labels) and not 0 <= self.labels.min() <= self.labels.max() < len(self.identities):
            raise FacelitError(f"{self.path}: an identity number without a name in {IDENTITIES}. {AGAIN}")

    def __reduce__(self) -> tuple[Callable[..., PackedStore], tuple[Path, Manifest]]:
        return _reopen, (self.path, self.manifest)

    def encoded(self, row: int) -> bytes:
        """The image's bytes, as they were packed: compared with their checksum, which takes 2 % of the time of decoding."""
        number = bisect_right(self._starts, row) - 1
        shard, row_in_shard = self.shards[number], row - self._starts[number]
        try:
            data = shard.encoded(row_in_shard)
        except (OSError, EOFError) as error:
            raise BadImageError(self.place(row), f"cannot read this image ({error})") from None
        if zlib.crc32(data) != shard.checksums[row_in_shard]:
            raise BadImageError(self.place(row), "its bytes are not those that were packed (wrong checksum)", AGAIN)
        return data

    def name(self, row: int) -> str:
        """`identity/file`, as in the source."""
        number = bisect_right(self._starts, row) - 1
        return self.shards[number].name(row - self._starts[number])

    def place(self, row: int) -> str:
        """Shard, row and name."""
        number = bisect_right(self._starts, row) - 1
        try:
            name = f" ({self.name(row)})"
        except (OSError, EOFError):
            name = ""
        return f"{self.shards[number].path}, row {row - self._starts[number]}{name}"

    def fingerprint(self) -> str:
        """A hash over all names and checksums, in their order; raises `FacelitError` where names are damaged."""
        digest = hashlib.blake2b(digest_size=16)
        for number, shard in enumerate(self.shards):
            if self.manifest.checksums and shard.name_checksum() != self.manifest.checksums[number][1]:
                raise FacelitError(f"{shard.path}: its names are not those that were packed (wrong checksum). {AGAIN}")
            digest.update(shard.identity.tobytes())
            digest.update(shard.checksums.tobytes())
        digest.update("\0".join(self.identities).encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def _open(self, number: int, images: int, size: int) -> Shard:
        path = shard_path(self.path, number)
        if not path.is_file():
            raise FacelitError(f"{path}: this shard is missing. {AGAIN}")
        if path.stat().st_size != size:
            raise FacelitError(f"{path}: {path.stat().st_size:,} bytes instead of {size:,}. {AGAIN}")
        shard = Shard(path)
        if len(shard) != images:
            raise FacelitError(f"{path}: {len(shard):,} images instead of {images:,}. {AGAIN}")
        if self.manifest.checksums and shard.label_checksum != self.manifest.checksums[number][0]:
            raise FacelitError(f"{path}: its labels are not those that were packed (wrong checksum). {AGAIN}")
        return shard


def _reopen(folder: Path, manifest: Manifest) -> PackedStore:
    """The store of another process: still the same pack."""
    store = PackedStore(folder)
    if store.manifest != manifest:
        raise FacelitError(f"{folder}: was packed anew while this program was running. Start it again.")
    return store


class _Blob(NamedTuple):
    """Where a column of a record batch lies in its file: the first value's byte, and offsets from there."""

    start: int
    offsets: npt.NDArray[np.integer[Any]]

    @classmethod
    def of(cls, column: pa.LargeBinaryArray, file_address: int) -> _Blob:
        offsets, data = names_of(column).offsets, column.buffers()[2]
        narrow = np.uint32 if not len(column) or offsets[-1] < 2**32 else np.int64
        return cls(0 if data is None else data.address - file_address, offsets.astype(narrow))

    def place(self, row: int) -> tuple[int, int]:
        """Byte of the file, and number of bytes, of one value."""
        start, stop = int(self.offsets[row]), int(self.offsets[row + 1])
        return self.start + start, stop - start


class _Batches(NamedTuple):
    """The record batches of a mapped file, and the address that it is mapped to."""

    batches: list[pa.RecordBatch]
    address: int

    def columns(self, name: str) -> list[pa.Array]:
        return [batch.column(name) for batch in self.batches]


@contextmanager
def _read_batches(path: Path) -> Iterator[_Batches]:
    """Maps a shard; what lies in it is checked, as it may come from a stranger."""
    try:
        reader, address = open_mapped(path)
        if not reader.schema.equals(SHARD_SCHEMA):
            raise ValueError("other columns than a shard's")
        batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        for batch in batches:
            batch.validate(full=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise FacelitError(f"{path}: not a shard, or a damaged one ({error}). {AGAIN}") from None
    yield _Batches(batches, address)


def _joined(columns: list[pa.Array], dtype: type[np.generic]) -> npt.NDArray[Any]:
    return np.concatenate([np.empty(0, dtype), *map(np.asarray, columns)])


def checksum_of(names: Names, start: int = 0) -> int:
    """CRC-32 of names and their lengths, going on from another."""
    checksum = zlib.crc32(np.diff(names.offsets).astype("<i8").data, start)
    return zlib.crc32(names.blob[names.offsets[0] : names.offsets[-1]].data, checksum)


def read_identities(folder: Path, manifest: Manifest) -> Names:
    """The names of a pack's identities; raises `FacelitError` where the file is absent or damaged."""
    path = folder / IDENTITIES
    try:
        reader, _ = open_mapped(path)
        batch = reader.get_batch(0)
        batch.validate(full=True)
        names = names_of(batch.column("identity"))
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise FacelitError(f"{path}: cannot read the names of the identities ({error}). {AGAIN}") from None
    if len(names) != manifest.identities:
        raise FacelitError(f"{path}: {len(names):,} identities instead of {manifest.identities:,}. {AGAIN}")
    if manifest.identity_checksum not in (None, checksum_of(names)):
        raise FacelitError(f"{path}: its names are not those that were packed (wrong checksum). {AGAIN}")
    return names
