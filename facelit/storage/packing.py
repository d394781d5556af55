"""Writing packed shards: in parallel, restartable, and checked before a shard counts as written."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from facelit.errors import FacelitError
from facelit.storage import processes, system
from facelit.storage.arrow import column_of, new_file
from facelit.storage.base import CropStore
from facelit.storage.files import replacing
from facelit.storage.images import BadImageError, decode_crop
from facelit.storage.packed import (
    IDENTITIES,
    MANIFEST,
    SHARD_SCHEMA,
    Manifest,
    PackedStore,
    Shard,
    checksum_of,
    read_identities,
    shard_path,
)
from facelit.storage.processes import run_in_processes
from facelit.storage.progress import progress_bar
from facelit.storage.text import table_of

IMAGES_PER_SHARD = 65_536
"""About 300 MB of JPEG crops: few files, and enough of them for all processes."""
MOST_SHARDS = 128
"""Larger sets get larger shards: each is an open file in every process that reads them."""
SKIPPED = "skipped.tsv"
"""Places and reasons of the images that were left out."""

_LOCK = ".lock"
_KEPT = "What is packed so far is kept: mend that, then run the same command again."

_BATCH_BYTES = 64 << 20


class Skipped(NamedTuple):
    """An image that was left out: its row in the source, where it lies, and what is wrong with it."""

    row: int
    place: str
    reason: str


class _Work(NamedTuple):
    """One shard to write, or to verify."""

    target: Path
    number: int
    manifest: Manifest


def pack(
    source: CropStore,
    target: Path,
    jobs: int = 1,
    images_per_shard: int | None = None,
    any_size: bool = False,
    skip_bad: bool = False,
) -> PackedStore:
    """Packs a store; a target that an earlier call left unfinished, or that has lost a shard, is finished.

    Args:
        source: What is packed.
        target: The folder to write; new or empty, or a pack of the same source.
        jobs: Processes that write.
        images_per_shard: By default 65,536; fewer where every process shall have a shard to write, more where that would make
            over 128 shards.
        any_size: Let images of other sizes than 112x112 in.
        skip_bad: Leave out images that cannot be read, and list them in `skipped.tsv`, instead of stopping.

    Returns:
        The finished pack.

    Raises:
        FacelitError: The target holds something else, another program is packing to it, an image cannot be read, or the
            disk is full.
    """
    try:
        with _held(source, target):
            manifest = _plan(source, target, jobs, images_per_shard, any_size, skip_bad)
            todo = [number for number in range(manifest.num_shards) if not _is_written(target, number, manifest)]
            if todo or not manifest.complete or not _names_are_whole(target, manifest):
                _write_identities(source, target)
                done = len(source) - sum(len(_shard_rows(manifest, number)) for number in todo)
                with progress_bar(f"Packing {source.path}", len(source)) as show:
                    works = [_Work(target, number, manifest) for number in todo]
                    run_in_processes(_write_shard, works, jobs, lambda count: show(done + count), source)
                _finish(target, manifest)
    except OSError as error:
        raise FacelitError(
            f"{error.filename or target}: cannot be written ({error.strerror or error}). {_KEPT}"
        ) from None
    return PackedStore(target)


def verify(packed: PackedStore, source: CropStore | None = None, jobs: int = 1) -> list[str]:
    """Reads every image of a pack again.

    Args:
        packed: The pack.
        source: What it was packed from: every image, name and identity is compared with it.
        jobs: Processes that read.

    Returns:
        What is wrong, a line each; nothing where all is well.
    """
    if source is not None and source.fingerprint() != packed.manifest.source:
        return [
            f"{source.path} is not what {packed.path} was packed from, or has changed since: its list of images differs"
        ]
    works = [_Work(packed.path, number, packed.manifest) for number in range(packed.manifest.num_shards)]
    with progress_bar(f"Verifying {packed.path}", len(packed)) as show:
        found = run_in_processes(_verify_shard, works, jobs, show, source)
    return [line for lines in found for line in lines]


@contextmanager
def _held(source: CropStore, target: Path) -> Iterator[None]:
    """Makes the folder, and keeps other programs from packing to it."""
    if target.resolve().is_relative_to(source.path.resolve()):
        raise FacelitError(
            f"{target} is inside {source.path}, and would be read as an identity. Pack into another folder."
        )
    if not (target / MANIFEST).is_file() and target.exists() and (not target.is_dir() or _has_content(target)):
        raise FacelitError(f"{target}: exists and is no unfinished pack. Pack to a new folder.")
    target.mkdir(parents=True, exist_ok=True)
    with open(target / _LOCK, "wb") as lock:
        if not system.lock(lock, wait=False):
            raise FacelitError(f"{target}: another program is packing to this folder.")
        for leftover in target.glob("*.tmp"):
            leftover.unlink()
        yield
    (target / _LOCK).unlink(missing_ok=True)


def _has_content(target: Path) -> bool:
    return any(path.name != _LOCK and path.suffix != ".tmp" for path in target.iterdir())


def _plan(
    source: CropStore, target: Path, jobs: int, images_per_shard: int | None, any_size: bool, skip_bad: bool
) -> Manifest:
    """What is to be written; a pack that was begun goes on by its own plan."""
    if len(source) == 0:
        raise FacelitError(f"{source.path}: no images to pack.")
    if (target / MANIFEST).is_file():
        manifest = Manifest.read(target)
        _refuse_other_plan(manifest, source, target, images_per_shard, any_size, skip_bad)
        return manifest
    spread = min(IMAGES_PER_SHARD, max(1024, -(-len(source) // jobs)))
    size = images_per_shard or max(spread, -(-len(source) // MOST_SHARDS))
    manifest = Manifest(source.fingerprint(), len(source), len(source.identities), size, any_size, skip_bad)
    manifest.write(target)
    return manifest


def _refuse_other_plan(
    manifest: Manifest, source: CropStore, target: Path, size: int | None, any_size: bool, skip_bad: bool
) -> None:
    if manifest.source != source.fingerprint():
        raise FacelitError(
            f"{target}: was begun from another source than {source.path}, or its list of images has changed since. Delete"
            " it, or pack to a new folder."
        )
    if (manifest.any_size, manifest.skip_bad) != (any_size, skip_bad) or size not in (None, manifest.images_per_shard):
        raise FacelitError(
            f"{target}: was begun with {'' if manifest.any_size else 'no '}any_size, on_bad_image"
            f" {'skip' if manifest.skip_bad else 'error'} and {manifest.images_per_shard} images_per_shard. Give the same"
            " options, or delete it."
        )


def _shard_rows(manifest: Manifest, number: int) -> range:
    start = number * manifest.images_per_shard
    return range(start, min(start + manifest.images_per_shard, manifest.images))


def _is_written(target: Path, number: int, manifest: Manifest) -> bool:
    """Whether an earlier run has written this shard whole: a shard gets its name only once it was read back."""
    path, rows = shard_path(target, number), _shard_rows(manifest, number)
    if not path.is_file():
        return False
    try:
        shard = Shard(path)
    except FacelitError:
        return False  # damaged since
    if manifest.complete:
        if (len(shard), path.stat().st_size) != manifest.shards[number]:
            return False
        return not _wrong_tables(shard, manifest, number) and not _wrong_checksums(shard)
    return len(shard) + len(_skipped(path)) == len(rows)


def _names_are_whole(target: Path, manifest: Manifest) -> bool:
    try:
        read_identities(target, manifest)
    except FacelitError:
        return False
    return True


def _wrong_tables(shard: Shard, manifest: Manifest, number: int) -> list[str]:
    """Whether a shard's labels and names are as they were packed: a line for what is not."""
    if not manifest.checksums:
        return []
    found = {"labels": shard.label_checksum, "names": shard.name_checksum()}
    return [
        f"{shard.path}: the checksum of its {what} is wrong"
        for (what, checksum), packed in zip(found.items(), manifest.checksums[number], strict=True)
        if checksum != packed
    ]


def _skipped_path(shard: Path) -> Path:
    return shard.with_suffix(".skipped.json")


def _skipped(shard: Path) -> list[Skipped]:
    path = _skipped_path(shard)
    return [Skipped(*entry) for entry in json.loads(path.read_text("utf-8"))] if path.is_file() else []


def _finish(target: Path, manifest: Manifest) -> None:
    """Makes the shards a pack."""
    paths = [shard_path(target, number) for number in range(manifest.num_shards)]
    shards = [Shard(path) for path in paths]
    counts = [len(shard) for shard in shards]
    checksums = [(shard.label_checksum, shard.name_checksum()) for shard in shards]
    skipped = [entry for path in paths for entry in _skipped(path)]
    if manifest.complete:  # a shard was mended, from the same images
        skipped = []
    if skipped:
        (target / SKIPPED).write_bytes(table_of((entry.place, entry.reason) for entry in skipped))
    if not any(counts):
        for path in paths:  # so that the same command, once the images are mended, does not find them written
            path.unlink()
        raise FacelitError(f"{target}: no image is left; {SKIPPED} in it says why.")
    written = [(count, path.stat().st_size) for count, path in zip(counts, paths, strict=True)]
    rows_left_out = manifest.skipped if manifest.complete else [entry.row for entry in skipped]
    manifest._replace(
        shards=written,
        skipped=rows_left_out,
        checksums=checksums,
        identity_checksum=checksum_of(read_identities(target, manifest)),
    ).write(target)
    for leftover in target.glob("*.skipped.json"):
        leftover.unlink()


def _write_identities(source: CropStore, target: Path) -> None:
    names = [os.fsencode(name) for name in source.identities]
    schema = pa.schema([("identity", pa.large_binary())])
    column = column_of([len(name) for name in names], b"".join(names))
    with replacing(target / IDENTITIES) as temporary, new_file(temporary, schema) as writer:
        writer.write_batch(pa.record_batch([column], schema=schema))


# What the worker processes run.


def _write_shard(work: _Work) -> None:
    source, path = _checked_source(work.manifest), shard_path(work.target, work.number)
    skipped: list[Skipped] = []
    try:
        _skipped_path(path).unlink(missing_ok=True)
        with replacing(path) as temporary:
            with new_file(temporary, SHARD_SCHEMA) as writer:
                for batch in _batches(source, _shard_rows(work.manifest, work.number), work.manifest, skipped):
                    writer.write_batch(batch)
            wrong = _wrong_checksums(Shard(temporary))
            if wrong:
                raise OSError(0, f"the disk gives back other bytes than were written, at {wrong[0]}")
            if skipped:
                _skipped_path(path).write_text(json.dumps(skipped), encoding="utf-8")
    except OSError as error:
        raise FacelitError(f"{path}: cannot be written ({error.strerror or error}). {_KEPT}") from None


def _verify_shard(work: _Work) -> list[str]:
    shard = Shard(shard_path(work.target, work.number))
    wrong = _wrong_checksums(shard)
    if processes.shared is None or wrong:
        return wrong + _wrong_tables(shard, work.manifest, work.number)
    source, left_out = _checked_source(work.manifest), frozenset(work.manifest.skipped)
    rows = [row for row in _shard_rows(work.manifest, work.number) if row not in left_out]
    if len(rows) != len(shard):
        return [f"{shard.path}: holds {len(shard):,} images instead of {len(rows):,}"]
    for row, original in enumerate(rows):
        if shard.name(row) != source.name(original):
            wrong.append(f"{shard.path}, row {row}: should hold {source.name(original)}")
        elif shard.identity[row] != source.labels[original] or shard.encoded(row) != bytes(source.encoded(original)):
            wrong.append(f"{shard.path}, row {row}: differs from {source.place(original)}")
    return wrong


def _batches(
    source: CropStore, rows: Sequence[int], manifest: Manifest, skipped: list[Skipped]
) -> Iterator[pa.RecordBatch]:
    """The images of a shard, in record batches; every one of them can be decoded."""
    images: list[bytes] = []
    kept: list[int] = []
    size = 0
    for row in rows:
        try:
            data = bytes(source.encoded(row))
            decode_crop(data, source.place(row), resize=manifest.any_size)
        except BadImageError as error:
            if not manifest.skip_bad:
                raise FacelitError(
                    f"{error} Or leave such images out: --on_bad_image skip. (`facelit check {source.path}` finds them all.)"
                ) from None
            skipped.append(Skipped(row, error.place, error.reason))
        else:
            images.append(data)
            kept.append(row)
            size += len(data)
        processes.count_one()
        if size >= _BATCH_BYTES:
            yield _batch(source, images, kept)
            images, kept, size = [], [], 0
    if kept:
        yield _batch(source, images, kept)


def _batch(source: CropStore, images: list[bytes], rows: list[int]) -> pa.RecordBatch:
    names = [os.fsencode(source.name(row)) for row in rows]
    columns = [
        column_of([len(image) for image in images], b"".join(images)),
        column_of([len(name) for name in names], b"".join(names)),
        pa.array(source.labels[rows], pa.int32()),
        pa.array([zlib.crc32(image) for image in images], pa.uint32()),
    ]
    return pa.record_batch(columns, schema=SHARD_SCHEMA)


def _wrong_checksums(shard: Shard) -> list[str]:
    wrong = []
    for row, checksum in enumerate(shard.checksums.tolist()):
        if zlib.crc32(shard.encoded(row)) != checksum:
            wrong.append(f"{shard.path}, row {row} ({shard.name(row)}): the checksum is wrong")
    return wrong


_checked: CropStore | None = None


def _checked_source(manifest: Manifest) -> CropStore:
    """The source, as this process has opened it: still the one that the plan was made for."""
    global _checked
    source: CropStore = processes.shared
    if source is not _checked:  # once in each process: it takes a while for millions of images
        if source.fingerprint() != manifest.source:
            raise FacelitError(f"{source.path}: its list of images has changed while it was being packed.")
        _checked = source
    return source
