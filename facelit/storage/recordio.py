"""InsightFace's training sets: `train.rec`, `train.idx` and `property`, read and written without MXNet.

In InsightFace's layout record 0 has two labels and no image: the keys of the first identity record and past the last.
Keys from 1 up to there are images, each labelled with its identity's number; each identity record has two labels and no
image: the keys of the identity's first image and past its last. Sets without those records exist too (MXNet's `im2rec`
writes them): every record is an image.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from facelit.errors import FacelitError
from facelit.storage.base import CropStore
from facelit.storage.files import replacing
from facelit.storage.images import BadImageError
from facelit.storage.names import Names
from facelit.storage.progress import progress_bar
from facelit.storage.record_file import MAX_IMAGE, RecordError, RecordFile, encode_image, encode_record, read_head
from facelit.storage.record_index import (
    CHUNK,
    DOWNLOAD_AGAIN,
    Index,
    Int64s,
    check_whole,
    heads_of,
    read_index,
    walk_index,
)
from facelit.storage.text import read_text

_WORTH_A_BAR = 1_000_000
"""Fewer labels than this are read without a progress bar."""
_EXACT = 1 << 24
"""Up to here a float32 holds every whole number."""


class RecordStore(CropStore):
    """A folder with `train.rec` and, usually, `train.idx` and `property`.

    What it keeps of an image is its key, its offset and its identity's number: 20 bytes. Identities are numbered in the
    order of their labels, and are called by them; images are in the order of their keys. Without `train.idx` the records
    are walked through, which reads a page of each.

    Args:
        root: The folder.

    Raises:
        FacelitError: A file is missing, damaged, cut short, or of another set than its neighbours.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.path = Path(root)
        if not (self.path / "train.rec").is_file():
            raise FacelitError(f"{self.path}: has no train.rec. Point at the folder that contains the InsightFace set.")
        self._file = RecordFile(self.path / "train.rec")
        index_path = self.path / "train.idx"
        index = read_index(index_path) if index_path.is_file() else walk_index(self._file)
        check_whole(self._file, index)
        self._index, values = _images(self._file, index)
        self._values = np.unique(values)
        self.labels = np.searchsorted(self._values, values).astype(np.int32)
        self.identities: Sequence[str] = Names.of(str(value) for value in self._values)
        _check_property(self.path / "property", self._values)

    def __reduce__(self) -> tuple[Callable[..., RecordStore], tuple[Path, str]]:
        return _reopen, (self.path, self.fingerprint())

    def encoded(self, row: int) -> bytes:
        """The image's bytes.

        Raises:
            BadImageError: The record is damaged, has no image, or its label is not that of its identity.
        """
        offset = int(self._index.offsets[row])
        try:
            record = self._file.record(offset)
            head = read_head(record, offset)
        except RecordError as error:
            raise BadImageError(self.place(row), error.reason, DOWNLOAD_AGAIN) from None
        expected = int(self._values[self.labels[row]])
        if head.labels[0] != expected:
            reason = f"it is labelled {head.labels[0]:.8g}, but is stored among the images of identity {expected}"
            raise BadImageError(self.place(row), reason, DOWNLOAD_AGAIN)
        if head.image_at == len(record):
            raise BadImageError(self.place(row), "the record has no image", DOWNLOAD_AGAIN)
        return record[head.image_at :]

    def name(self, row: int) -> str:
        """`label/key`, with the suffix that the image's first bytes ask for; raises `BadImageError` as `encoded` does."""
        start = bytes(self.encoded(row)[:12])
        suffix = ".png" if start.startswith(b"\x89PNG") else ".webp" if start[8:] == b"WEBP" else ".jpg"
        return f"{self.identities[int(self.labels[row])]}/{self._index.keys[row]:08d}{suffix}"

    def place(self, row: int) -> str:
        """`.../train.rec, record 17 (byte 123456)`."""
        return self._file.place(int(self._index.keys[row]), int(self._index.offsets[row]))

    def fingerprint(self) -> str:
        """A hash over keys, offsets and labels, and the size of `train.rec`."""
        digest = hashlib.blake2b(self._file.size.to_bytes(8, "little"), digest_size=16)
        for array in (*self._index, self.labels, self._values):
            digest.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
        return digest.hexdigest()


def _reopen(root: Path, fingerprint: str) -> RecordStore:
    """The store of another process: still the same set."""
    store = RecordStore(root)
    if store.fingerprint() != fingerprint:
        raise FacelitError(f"{root}: has changed since this program opened it. Start it again.")
    return store


def write_recordio(store: CropStore, folder: Path, progress: bool = False) -> None:
    """Writes a store as an InsightFace set, the images' bytes as they are.

    Identities are written as their numbers, in order, the images of each in the store's order; the format has no room for
    names. A set of more than some 16.7 million records is written without identity records, as `im2rec` does: their
    labels, float32, could not hold the keys. InsightFace's own readers take both.

    Args:
        store: What is written.
        folder: Where `train.rec`, `train.idx` and `property` go; made where it is absent.
        progress: Show a progress bar.

    Raises:
        FacelitError: The folder has a `train.rec`, an image cannot be read or is too large, or the disk is full.
    """
    if (folder / "train.rec").exists():
        raise FacelitError(f"{folder / 'train.rec'} exists: remove it, or write to another folder.")
    if len(store) == 0 or len(store.identities) > _EXACT:
        raise FacelitError(f"{store.path}: {len(store.identities):,} identities; a .rec file holds 1 to {_EXACT:,}.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Moved into place from the last to the first: train.rec, by which readers know such a folder, comes last.
        with (
            replacing(folder / "train.rec") as rec,
            replacing(folder / "property") as header,
            replacing(folder / "train.idx") as idx,
        ):
            _write_records(store, idx, rec, progress)
            header.write_text(f"{store.labels.max() + 1},112,112\n", encoding="utf-8")
    except OSError as error:
        raise FacelitError(f"{folder}: cannot be written ({error.strerror or error}).") from None


def _write_records(store: CropStore, idx_path: Path, rec_path: Path, progress: bool) -> None:
    counts = np.bincount(store.labels)
    present = np.flatnonzero(counts)
    is_grouped = 1 + len(store) + len(present) <= _EXACT
    first = int(is_grouped)
    identities = first + len(store)
    with open(idx_path, "w", encoding="ascii") as idx, open(rec_path, "wb") as rec:

        def write(key: int, labels: tuple[float, ...], image: bytes | memoryview = b"") -> None:
            idx.write(f"{key}\t{rec.tell()}\n")
            rec.write(encode_record(encode_image(key, labels, image)))

        if is_grouped:
            write(0, (identities, identities + len(present)))
        with progress_bar(f"Writing {rec_path.parent}", len(store), 0 if progress else len(store) + 1) as show:
            for number, row in enumerate(np.argsort(store.labels, kind="stable").tolist()):
                write(first + number, (float(store.labels[row]),), _writable(store, row))
                show(number + 1)
        if is_grouped:
            ends = (first + np.cumsum(counts))[present]
            for number, (end, count) in enumerate(zip(ends.tolist(), counts[present].tolist(), strict=True)):
                write(identities + number, (end - count, end))


def _writable(store: CropStore, row: int) -> bytes | memoryview:
    """An image's bytes, if they are as many as a record can hold and not none, which would make it no image's."""
    image = store.encoded(row)
    if not 0 < len(image) <= MAX_IMAGE:
        raise BadImageError(store.place(row), f"an image of {len(image):,} bytes cannot be in a .rec file")
    return image


# Which records are images, and whose.


def _images(file: RecordFile, index: Index) -> tuple[Index, npt.NDArray[np.int32]]:
    """The images among the records, and the label of each."""
    head = heads_of(file, index.part(slice(0, 1)))
    if head.sizes[0] > 0:
        return index, _whole_numbers(file, index, _labels(file, index))
    first, end = head.labels[0]
    if not 1 < first <= end < _EXACT**2:
        place = file.place(int(index.keys[0]), int(index.offsets[0]))
        raise FacelitError(f"{place}: neither an image nor InsightFace's first record. {DOWNLOAD_AGAIN}")
    split = _first_identity_record(file, index, head.labels[0])
    images, identities = index.part(slice(1, split)), index.part(slice(split, None))
    return images, _whole_numbers(file, images, _labels_by_range(file, images, identities))


def _first_identity_record(file: RecordFile, index: Index, labels: npt.NDArray[np.float32]) -> int:
    """Row of the first identity record, from the labels of record 0: the keys of the first and past the last."""
    (first, end), slack = labels.astype(np.int64), _rounding(labels)
    row = int(np.searchsorted(index.keys, first - slack[0]))
    last_row = int(np.searchsorted(index.keys, first + slack[0]))
    while row < last_row and heads_of(file, index.part(slice(row, row + 1))).sizes[0] > 0:
        row += 1  # a float32 may not hold the key itself: the first record without an image is meant
    if row < 2 or row == len(index.keys) or abs(int(index.keys[-1]) + 1 - end) > slack[1]:
        raise FacelitError(
            f"{file.path}: record 0 says that identity records have the keys {first} to {end - 1}; train.idx has the keys"
            f" {index.keys[0]} to {index.keys[-1]}. One of the two is of another set, or cut short. {DOWNLOAD_AGAIN}"
        )
    return row


def _labels_by_range(file: RecordFile, images: Index, identities: Index) -> npt.NDArray[np.float32]:
    """Labels of all images, float32, from the first image in the range of each identity.

    From 16,777,216 on a float32 does not hold every key, so that ranges overlap or leave gaps by an image or two. Where that
    may be, and where an image is in no range, the image's own label is read.
    """
    rows, keys = _ranges(file, images, identities)
    overlap = np.flatnonzero(rows[1:, 0] < rows[:-1, 1])
    if len(overlap):
        one, other = keys[overlap[0] : overlap[0] + 2]
        raise FacelitError(f"{file.path}: identity records {one} and {other} share images. {DOWNLOAD_AGAIN}")
    edges = np.concatenate([[0], rows.ravel(), [len(images.keys)]])
    values = np.full(len(edges) - 1, np.nan, np.float32)  # of gaps, and between them of ranges
    values[1::2] = _labels(file, images.part(rows[:, 0]))
    labels = np.repeat(values, np.diff(edges))
    unsure = np.flatnonzero(np.isnan(labels))
    labels[unsure] = _labels(file, images.part(unsure))
    return labels


def _ranges(file: RecordFile, images: Index, identities: Index) -> tuple[Int64s, Int64s]:
    """Rows of each identity's first image and past its last, shape (n, 2), and the identity records' keys, shape (n,).

    In the images' order, without the images that a rounded number may wrongly count in, and without what is then empty.
    """
    heads = [heads_of(file, identities.part(slice(at, at + CHUNK))) for at in range(0, len(identities.keys), CHUNK)]
    labels = np.concatenate([head.labels for head in heads])
    is_range = (labels[:, 0] >= 1) & (labels[:, 0] <= labels[:, 1]) & (labels[:, 1] < _EXACT**2)
    bad = np.flatnonzero(~is_range | (np.concatenate([head.sizes for head in heads]) > 0))
    slack = _rounding(np.where(is_range[:, None], labels, np.float32(1)))
    if not len(bad):
        inner = labels.astype(np.int64) + slack * np.array([1, -1])
        bad = np.flatnonzero(inner[:, 1] > identities.keys[0])
    if len(bad):
        place = file.place(int(identities.keys[bad[0]]), int(identities.offsets[bad[0]]))
        raise FacelitError(f"{place}: the range of one identity's images is expected here. {DOWNLOAD_AGAIN}")
    rows = np.searchsorted(images.keys, inner)
    filled = np.flatnonzero(rows[:, 0] < rows[:, 1])
    order = filled[np.argsort(rows[filled, 0], kind="stable")]
    return rows[order], identities.keys[order]


def _rounding(keys: npt.NDArray[np.float32]) -> Int64s:
    """By how much a key may have been rounded: 0 below 16,777,216."""
    return np.spacing(keys).astype(np.int64) // 2


def _labels(file: RecordFile, index: Index) -> npt.NDArray[np.float32]:
    """The first label of each image, from its own record; float32, shape (num_records,).

    Raises:
        FacelitError: One of the records is not an image.
    """
    labels = np.empty(len(index.keys), np.float32)
    with progress_bar(f"Reading labels of {file.path}", len(labels), quiet_below=_WORTH_A_BAR) as show:
        for start in range(0, len(labels), CHUNK):
            part = slice(start, start + CHUNK)
            heads = heads_of(file, index.part(part))
            labels[part] = heads.labels[:, 0]
            if (heads.sizes == 0).any():
                row = start + int(np.argmin(heads.sizes))
                place = file.place(int(index.keys[row]), int(index.offsets[row]))
                raise FacelitError(f"{place}: the record has no image. {DOWNLOAD_AGAIN}")
            show(start)
    return labels


def _whole_numbers(file: RecordFile, images: Index, labels: npt.NDArray[np.float32]) -> npt.NDArray[np.int32]:
    """Labels as int32; raises `FacelitError` naming the first image whose label is not an identity's number."""
    bad = np.flatnonzero(~(np.abs(labels) <= _EXACT) | (labels != np.floor(labels)))
    if len(bad):
        place = file.place(int(images.keys[bad[0]]), int(images.offsets[bad[0]]))
        raise FacelitError(f"{place}: its label {labels[bad[0]]} is not an identity's number. {DOWNLOAD_AGAIN}")
    return labels.astype(np.int32)


def _check_property(path: Path, values: npt.NDArray[np.int32]) -> None:
    """`property` says how many identities there are, or how many a classifier needs where labels have gaps."""
    if not path.is_file():
        return
    text = read_text(path, "property file", "data.train", errors="replace").strip()
    count = text.split(",")[0].strip()
    if not count.isdecimal():
        raise FacelitError(f"{path}: `identities,height,width` is expected, found {text[:40]!r}. Mend or remove it.")
    if int(count) not in (len(values), int(values[-1]) + 1):
        raise FacelitError(
            f"{path}: says {int(count):,} identities, train.rec has {len(values):,}. One of the two is of another set: get"
            " the set again, or remove `property` if train.rec is right."
        )
