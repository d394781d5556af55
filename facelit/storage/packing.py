"""Writing packed shards: in parallel, restartable, and checked before a shard counts as written."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from facelit import processes
from facelit.errors import FacelitError
from facelit.processes import run_in_processes
from facelit.progress import progress_bar
from facelit.storage.arrow import column_of
from facelit.storage.base import CropStore
from facelit.storage.images import BadImageError, decode_crop
from facelit.storage.packed import IDENTITIES, MANIFEST, SHARD_SCHEMA, Manifest, PackedStore, Shard, shard_path

IMAGES_PER_SHARD = 65_536
"""About 300 MB of JPEG crops: few files, and enough of them for all processes."""
SKIPPED = "skipped.tsv"
"""Names and reasons of the images that were left out."""

_BATCH_BYTES = 64 << 20


class Skipped(NamedTuple):
    """An image that was left out."""

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
    """Packs a store; a target that an earlier call left unfinished is finished.

    Args:
        source: What is packed.
        target: The folder to write; new or empty, or an unfinished pack of the same source.
        jobs: Processes that write.
        images_per_shard: By default 65,536, or less where every process shall have a shard to write.
        any_size: Let images of other sizes than 112x112 in.
        skip_bad: Leave out images that cannot be read, and list them in `skipped.tsv`, instead of stopping.

    Returns:
        The finished pack.

    Raises:
        FacelitError: The target holds something else, an image cannot be read, or the disk is full.
    """
    manifest = _plan(source, target, jobs, images_per_shard, any_size, skip_bad)
    if not manifest.complete:
        _write_identities(source, target)
        todo = [number for number in range(manifest.num_shards) if not _is_written(target, number, manifest)]
        done = len(source) - sum(_shard_rows(manifest, number)[1] - _shard_rows(manifest, number)[0] for number in todo)
        with progress_bar(f"Packing {source.path}", len(source)) as show:
            works = [_Work(target, number, manifest) for number in todo]
            run_in_processes(_write_shard, works, jobs, lambda count: show(done + count), source)
        _finish(target, manifest)
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


def _plan(
    source: CropStore, target: Path, jobs: int, images_per_shard: int | None, any_size: bool, skip_bad: bool
) -> Manifest:
    """What is to be written; an unfinished pack goes on by the plan that it was begun with."""
    if len(source) == 0:
        raise FacelitError(f"{source.path}: no images to pack.")
    if target.resolve().is_relative_to(source.path.resolve()):
        raise FacelitError(
            f"{target} lies inside {source.path}, and would be taken for an identity. Pack to another folder."
        )
    if (target / MANIFEST).is_file():
        return _resume(Manifest.read(target), source, target, any_size, skip_bad)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FacelitError(f"{target}: exists and is no unfinished pack. Pack to a new folder.")
    size = images_per_shard or min(IMAGES_PER_SHARD, max(1024, -(-len(source) // jobs)))
    manifest = Manifest(source.fingerprint(), len(source), len(source.identities), size, any_size, skip_bad)
    try:
        target.mkdir(parents=True, exist_ok=True)
        manifest.write(target)
    except OSError as error:
        raise FacelitError(f"{target}: cannot be written ({error.strerror}).") from None
    return manifest


def _resume(manifest: Manifest, source: CropStore, target: Path, any_size: bool, skip_bad: bool) -> Manifest:
    if manifest.source != source.fingerprint():
        raise FacelitError(
            f"{target}: was begun from another source than {source.path}, or its list of images has changed since. Delete"
            " it, or pack to a new folder."
        )
    if (manifest.any_size, manifest.skip_bad) != (any_size, skip_bad) and not manifest.complete:
        raise FacelitError(
            f"{target}: was begun with any_size={manifest.any_size} and on_bad_image"
            f" {'skip' if manifest.skip_bad else 'error'}. Give the same options, or delete it."
        )
    return manifest


def _shard_rows(manifest: Manifest, number: int) -> tuple[int, int]:
    start = number * manifest.images_per_shard
    return start, min(start + manifest.images_per_shard, manifest.images)


def _is_written(target: Path, number: int, manifest: Manifest) -> bool:
    """Whether an earlier run has written this shard: a shard gets its name only once it was read back."""
    path = shard_path(target, number)
    if not path.is_file():
        return False
    start, stop = _shard_rows(manifest, number)
    return len(Shard(path)) + len(_skipped(path)) == stop - start


def _skipped_path(shard: Path) -> Path:
    return shard.with_suffix(".skipped.json")


def _skipped(shard: Path) -> list[Skipped]:
    path = _skipped_path(shard)
    return [Skipped(*entry) for entry in json.loads(path.read_text("utf-8"))] if path.is_file() else []


def _finish(target: Path, manifest: Manifest) -> None:
    """Makes the shards a pack."""
    shards = [Shard(shard_path(target, number)) for number in range(manifest.num_shards)]
    skipped = [entry for shard in shards for entry in _skipped(shard.path)]
    if skipped:
        rows = "".join(f"{entry.place}\t{entry.reason}\n" for entry in skipped)
        (target / SKIPPED).write_text(rows, encoding="utf-8", errors="surrogateescape")
    if not any(map(len, shards)):
        raise FacelitError(f"{target}: no image is left; {SKIPPED} in it says why.")
    written = [(len(shard), shard.path.stat().st_size) for shard in shards]
    manifest._replace(shards=written, skipped=len(skipped)).write(target)
    for leftover in (*target.glob("*.skipped.json"), *target.glob("*.tmp")):
        leftover.unlink()


def _write_identities(source: CropStore, target: Path) -> None:
    names = [os.fsencode(name) for name in source.identities]
    schema = pa.schema([("identity", pa.large_binary())])
    column = column_of([len(name) for name in names], b"".join(names))
    with pa.OSFile(os.fspath(target / IDENTITIES), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        writer.write_batch(pa.record_batch([column], schema=schema))


# What the worker processes run.


def _write_shard(work: _Work) -> None:
    source, path = _checked_source(work.manifest), shard_path(work.target, work.number)
    temporary = path.with_suffix(".arrow.tmp")
    skipped: list[Skipped] = []
    try:
        with pa.OSFile(os.fspath(temporary), "wb") as file, pa.ipc.new_file(file, SHARD_SCHEMA) as writer:
            for batch in _batches(source, range(*_shard_rows(work.manifest, work.number)), work.manifest, skipped):
                writer.write_batch(batch)
        _sync(temporary)
        wrong = _wrong_checksums(Shard(temporary))
        if wrong:
            raise OSError(0, f"the disk gives back other bytes than were written, at {wrong[0]}")
        if skipped:
            _skipped_path(path).write_text(json.dumps(skipped), encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise FacelitError(
            f"{path}: cannot be written ({error.strerror or error}). What is packed so far is kept: mend that, then run the"
            " same command again."
        ) from None


def _verify_shard(work: _Work) -> list[str]:
    shard = Shard(shard_path(work.target, work.number))
    wrong = _wrong_checksums(shard)
    if processes.shared is None or wrong:
        return wrong
    source = _checked_source(work.manifest)
    left_out = _left_out(work.target)
    row = 0
    for original in range(*_shard_rows(work.manifest, work.number)):
        if source.place(original) in left_out:
            continue
        if row == len(shard) or shard.name(row) != source.name(original):
            wrong.append(f"{shard.path}, row {row}: should hold {source.name(original)}")
            break
        if shard.identity[row] != source.labels[original] or shard.encoded(row) != bytes(source.encoded(original)):
            wrong.append(f"{shard.path}, row {row}: differs from {source.place(original)}")
        row += 1
    return wrong


def _left_out(target: Path) -> frozenset[str]:
    path = target / SKIPPED
    if not path.is_file():
        return frozenset()
    rows = path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    return frozenset(row.split("\t")[0] for row in rows)


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
            skipped.append(Skipped(error.place, error.reason))
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
    for row, checksum in enumerate(shard.checksums().tolist()):
        if zlib.crc32(shard.encoded(row)) != checksum:
            wrong.append(f"{shard.path}, row {row} ({shard.name(row)}): the checksum is wrong")
    return wrong


def _sync(path: Path) -> None:
    """Waits until the disk has the file: its final name must not outlive its contents in a power cut."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _checked_source(manifest: Manifest) -> CropStore:
    """The source, as this process has opened it: still the one that the plan was made for."""
    source: CropStore = processes.shared
    if source.fingerprint() != manifest.source:
        raise FacelitError(f"{source.path}: its list of images has changed while it was being packed.")
    return source
