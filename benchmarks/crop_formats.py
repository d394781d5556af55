"""The formats that `pack_formats.py` compares: how crops are written into each, and read again."""

from __future__ import annotations

import mmap
import os
import struct
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from facelit.storage.folder import FolderStore
from facelit.storage.packed import PackedStore
from facelit.storage.packing import pack
from jpeg_decoders import module

SHARD_BYTES = 64 << 20
"""Size of a record batch, a tar file, a LitData chunk."""
PARQUET_ROWS = 100
"""Images of a Parquet row group: the smallest piece that can be read alone."""
SHUFFLE_BUFFER = 1_000
"""Images among which WebDataset draws the next."""
SOURCE = "source"
"""The plain folder that `facelit pack` packs, among the written files."""

Encoded = bytes | memoryview
Read = Callable[[Sequence[int]], Iterable[Encoded]]
"""Gives the images of these rows, in this order; a format that only streams gives all, in its own."""


class Crops(NamedTuple):
    """What is packed: names (`identity/file`), identity numbers and encoded images, a row each."""

    names: Sequence[str]
    identities: Sequence[int]
    images: Sequence[bytes]

    @classmethod
    def of(cls, jpegs: Mapping[str, bytes]) -> Crops:
        """Numbers the identities in the order of their names."""
        people = [name.split("/")[0] for name in jpegs]
        numbers = {person: number for number, person in enumerate(sorted(set(people)))}
        return cls(list(jpegs), [numbers[person] for person in people], list(jpegs.values()))

    def batches(self, max_bytes: int) -> Iterator[slice]:
        """Runs of rows of about so many bytes."""
        start = size = 0
        for row, image in enumerate(self.images):
            size += len(image)
            if size >= max_bytes:
                yield slice(start, row + 1)
                start, size = row + 1, 0
        if size:
            yield slice(start, len(self.images))


class Format(NamedTuple):
    """One way of keeping crops in files.

    Attributes:
        write: Writes all crops into a new folder.
        open: Opens what `write` wrote.
        modules: What must be importable, beyond facelit's own dependencies.
        random_access: Whether any row can be read at any time.
    """

    write: Callable[[Path, Crops], None]
    open: Callable[[Path], Read]
    modules: Sequence[str] = ()
    random_access: bool = True

    def check(self) -> None:
        """Imports what the format needs; raises `UnavailableError` where it is not installed."""
        for name in self.modules:
            module(name)


# The plain folder: identity/file, as the images come.


def write_folder(folder: Path, crops: Crops) -> None:
    for person in {name.split("/")[0] for name in crops.names}:
        (folder / person).mkdir(parents=True)
    for name, image in zip(crops.names, crops.images, strict=True):
        (folder / name).write_bytes(image)


def open_folder(folder: Path) -> Read:
    paths = sorted(os.path.join(where, file) for where, _, files in os.walk(folder) for file in files)

    def read(row: int) -> bytes:
        with open(paths[row], "rb", buffering=0) as file:
            return file.read()

    return partial(map, read)


# Arrow IPC: an uncompressed file, mapped; an image is a slice of the map.


def write_arrow(folder: Path, crops: Crops) -> None:
    pa = module("pyarrow")
    schema = pa.schema(
        [("image", pa.large_binary()), ("name", pa.large_binary()), ("identity", pa.int32()), ("crc32", pa.uint32())]
    )
    folder.mkdir()
    with pa.OSFile(str(folder / "shard.arrow"), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        for rows in crops.batches(SHARD_BYTES):
            names = [os.fsencode(name) for name in crops.names[rows]]
            checksums = [zlib.crc32(image) for image in crops.images[rows]]
            columns = [crops.images[rows], names, crops.identities[rows], checksums]
            writer.write_batch(pa.record_batch(list(map(pa.array, columns, schema.types)), schema=schema))


def open_arrow(folder: Path) -> Read:
    pa = module("pyarrow")
    reader = pa.ipc.open_file(pa.memory_map(str(folder / "shard.arrow")))
    columns = [reader.get_batch(number).column("image") for number in range(reader.num_record_batches)]
    offsets = [np.frombuffer(column.buffers()[1], np.int64) for column in columns]
    blobs = [memoryview(column.buffers()[2]).cast("B") for column in columns]
    firsts = np.cumsum([0, *map(len, columns)]).tolist()

    def read(row: int) -> memoryview:
        batch = bisect_right(firsts, row) - 1
        start, stop = offsets[batch][row - firsts[batch] : row - firsts[batch] + 2].tolist()
        return blobs[batch][start:stop]

    return partial(map, read)


# What facelit ships: Arrow IPC, read with `pread`. Packing decodes every image, syncs the disk and reads back.


def write_facelit_pack(folder: Path, crops: Crops) -> None:
    pack(FolderStore(folder.parent / SOURCE), folder)


def open_facelit_pack(folder: Path) -> Read:
    return partial(map, PackedStore(folder).encoded)


# Parquet: an uncompressed file; to read an image is to read its row group.


def write_parquet(folder: Path, crops: Crops) -> None:
    pa, parquet = module("pyarrow"), module("pyarrow.parquet")
    folder.mkdir()
    images, identities = pa.array(crops.images, pa.large_binary()), pa.array(crops.identities, pa.int32())
    table = pa.table({"image": images, "name": list(crops.names), "identity": identities})
    parquet.write_table(
        table, folder / "crops.parquet", PARQUET_ROWS, compression="none", use_dictionary=False, write_statistics=False
    )


def open_parquet(folder: Path) -> Read:
    file = module("pyarrow.parquet").ParquetFile(folder / "crops.parquet", memory_map=True)

    def read(row: int) -> memoryview:
        group = file.read_row_group(row // PARQUET_ROWS, columns=["image"], use_threads=False)
        return memoryview(group.column(0)[row % PARQUET_ROWS].as_buffer()).cast("B")

    return partial(map, read)


# LMDB: a database whose keys are row numbers.


def write_lmdb(folder: Path, crops: Crops) -> None:
    room = 4 * sum(map(len, crops.images)) + (64 << 20)
    with (
        module("lmdb").open(str(folder), map_size=room, sync=False) as environment,
        environment.begin(write=True) as transaction,
    ):
        for row, (name, identity, image) in enumerate(zip(*crops, strict=True)):
            transaction.put(struct.pack(">Q", row), image, append=True)
            transaction.put(struct.pack(">QB", row, 0), f"{identity}\t{name}".encode(), append=True)


def open_lmdb(folder: Path) -> Read:
    environment = module("lmdb").open(str(folder), readonly=True, lock=False, readahead=False)
    get = environment.begin(buffers=True).get
    key = struct.Struct(">Q").pack
    return lambda rows: (get(key(row)) for row in rows)


# MXNet's .rec and .idx, as InsightFace's sets are kept: label and image, no names; mapped.

RECORD_MAGIC = 0xCED7230A
RECORD_HEADER = struct.Struct("<IIIfQQ")  # magic, length, flag, label, two ids


def write_recordio(folder: Path, crops: Crops) -> None:
    folder.mkdir()
    with open(folder / "train.rec", "wb") as records, open(folder / "train.idx", "w") as index:
        for row, (identity, image) in enumerate(zip(crops.identities, crops.images, strict=True)):
            index.write(f"{row}\t{records.tell()}\n")
            length = RECORD_HEADER.size - 8 + len(image)
            records.write(RECORD_HEADER.pack(RECORD_MAGIC, length, 0, identity, row, 0) + image)
            records.write(bytes(-length % 4))


def open_recordio(folder: Path) -> Read:
    starts = np.loadtxt(folder / "train.idx", np.int64, delimiter="\t", ndmin=2)[:, 1]
    blob = mapped(folder / "train.rec")

    def read(row: int) -> memoryview:
        start = int(starts[row])
        length = int.from_bytes(blob[start + 4 : start + 8], "little")
        return blob[start + RECORD_HEADER.size : start + 8 + length]

    return partial(map, read)


# WebDataset: tar files, streamed; random only within a buffer of images. (Without a whole `mtime`, tar adds a kilobyte a file.)


def write_webdataset(folder: Path, crops: Crops) -> None:
    folder.mkdir()
    pattern = str(folder / "shard-%05d.tar")
    with module("webdataset").ShardWriter(pattern, maxsize=SHARD_BYTES, verbose=0, mtime=0) as writer:
        for name, identity, image in zip(*crops, strict=True):
            writer.write({"__key__": name.rpartition(".")[0], "jpg": image, "cls": identity})


def open_webdataset(folder: Path) -> Read:
    shards = sorted(map(str, folder.glob("*.tar")))
    stream = module("webdataset").WebDataset(shards, shardshuffle=len(shards), seed=0).shuffle(SHUFFLE_BUFFER)
    return lambda rows: (sample["jpg"] for sample in stream)


# LitData: chunks; by index, or in the order of its own shuffling (of chunks, and of blocks within a chunk).


def write_litdata(folder: Path, crops: Crops) -> None:
    cache = module("litdata.streaming").Cache(str(folder), chunk_bytes=SHARD_BYTES)
    for row, (name, identity, image) in enumerate(zip(*crops, strict=True)):
        cache[row] = (image, name, identity)  # a dict would be stored twice, the second time as Arrow
    cache.done()
    cache.merge()


def open_litdata_by_index(folder: Path) -> Read:
    # By default it decodes 256 neighbours for each image that is asked for: 40 times slower in a random order.
    dataset = module("litdata").StreamingDataset(str(folder), batch_decode=0)
    return lambda rows: (dataset[row][0] for row in rows)


def open_litdata_stream(folder: Path) -> Read:
    dataset = module("litdata").StreamingDataset(str(folder), shuffle=True)
    return lambda rows: (sample[0] for sample in dataset)


# All images end to end, mapped, and numpy arrays of their offsets and identities.


def write_blob(folder: Path, crops: Crops) -> None:
    folder.mkdir()
    with open(folder / "images.bin", "wb") as file:
        file.writelines(crops.images)
    np.save(folder / "offsets.npy", np.cumsum([0, *map(len, crops.images)]))
    np.save(folder / "identities.npy", np.array(crops.identities, np.int32))
    (folder / "names.txt").write_text("\n".join(crops.names))


def open_blob(folder: Path) -> Read:
    offsets = np.load(folder / "offsets.npy", mmap_mode="r").view(np.ndarray)
    blob = mapped(folder / "images.bin")

    def read(row: int) -> memoryview:
        start, stop = offsets[row : row + 2].tolist()
        return blob[start:stop]

    return partial(map, read)


def mapped(path: Path) -> memoryview:
    """A file's bytes, mapped."""
    with open(path, "rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


BASELINE = "plain folder"
LITDATA = ("litdata", "litdata.streaming")
FORMATS: dict[str, Format] = {
    BASELINE: Format(write_folder, open_folder),
    "Arrow IPC, mapped": Format(write_arrow, open_arrow),
    "Arrow IPC, `facelit pack`": Format(write_facelit_pack, open_facelit_pack),
    f"Parquet, row groups of {PARQUET_ROWS}": Format(write_parquet, open_parquet),
    "LMDB": Format(write_lmdb, open_lmdb, ("lmdb",)),
    "MXNet RecordIO": Format(write_recordio, open_recordio),
    f"WebDataset, shuffle buffer of {SHUFFLE_BUFFER:,}": Format(
        write_webdataset, open_webdataset, ("webdataset",), random_access=False
    ),
    "LitData, by index": Format(write_litdata, open_litdata_by_index, LITDATA),
    "LitData, its own shuffle": Format(write_litdata, open_litdata_stream, LITDATA, random_access=False),
    "blob and numpy offsets": Format(write_blob, open_blob),
}
