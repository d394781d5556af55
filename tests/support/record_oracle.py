"""RecordIO and InsightFace's layout, written and read from their description alone, slowly and literally."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from facelit.storage.base import CropStore

MAGIC = bytes.fromhex("0a23d7ce")


def part(kind: int, data: bytes) -> bytes:
    return MAGIC + struct.pack("<I", kind * 2**29 + len(data)) + data + b"\0" * (-len(data) % 4)


def record(payload: bytes) -> bytes:
    """A record in the file: cut at every magic number that stands at a multiple of four."""
    pieces, start = [], 0
    for at in range(0, len(payload) // 4 * 4, 4):
        if payload[at : at + 4] == MAGIC:
            pieces.append(payload[start:at])
            start = at + 4
    pieces.append(payload[start:])
    if len(pieces) == 1:
        return part(0, payload)
    return part(1, pieces[0]) + b"".join(part(2, piece) for piece in pieces[1:-1]) + part(3, pieces[-1])


def payload(key: int, label: float | list[float], image: bytes) -> bytes:
    if isinstance(label, list):
        return struct.pack("<IfQQ", len(label), 0, key, 0) + struct.pack(f"<{len(label)}f", *label) + image
    return struct.pack("<IfQQ", 0, label, key, 0) + image


@dataclass
class RecordSet:
    """Records in the order of the file: key, label or labels, image."""

    records: list[tuple[int, float | list[float], bytes]] = field(default_factory=list)
    num_identities: int = 0

    def write(self, folder: Path, with_idx: bool = True, with_property: bool = True) -> dict[int, tuple[int, int]]:
        """Writes the files, and says where each key's record starts and ends."""
        folder.mkdir(parents=True, exist_ok=True)
        places, data, lines = {}, b"", ""
        for key, label, image in self.records:
            encoded = record(payload(key, label, image))
            places[key] = len(data), len(data) + len(encoded)
            lines += f"{key}\t{len(data)}\n"
            data += encoded
        (folder / "train.rec").write_bytes(data)
        if with_idx:
            (folder / "train.idx").write_text(lines)
        if with_property:
            (folder / "property").write_text(f"{self.num_identities},112,112")
        return places


def insightface_set(
    people: list[tuple[int, list[bytes]]], first_key: int = 1, as_arrays: bool = False, header_last: bool = False
) -> RecordSet:
    """InsightFace's layout over (label, images) of each identity; `first_key` other than 1 where keys are large."""
    images: list[tuple[int, float | list[float], bytes]] = []
    ranges = []
    key = first_key
    for label, files in people:
        ranges.append([float(key), float(key + len(files))])
        for file in files:
            images.append((key, [float(label), float(key)] if as_arrays else float(label), file))
            key += 1
    identities = [(key + number, limits, b"") for number, limits in enumerate(ranges)]
    header = [(0, [float(key), float(key + len(people))], b"")]
    # face2rec2 writes record 0 after the images
    records = images + header + identities if header_last else header + images + identities
    return RecordSet(records, len(people))  # type: ignore[arg-type]


def read_set(folder: Path) -> dict[int, tuple[list[float], bytes]]:
    """Labels and image of every record by its key in train.idx; the whole of train.rec must be accounted for."""
    data = (folder / "train.rec").read_bytes()
    found, at_end = {}, set()
    offsets = dict(tuple(map(int, line.split("\t"))) for line in (folder / "train.idx").read_text().splitlines())
    for key, offset in offsets.items():
        joined, kind, at = b"", None, offset
        while kind not in (0, 3):
            assert data[at : at + 4] == MAGIC
            word = int.from_bytes(data[at + 4 : at + 8], "little")
            kind, length = divmod(word, 2**29)
            assert kind in ((0, 1) if at == offset else (2, 3))
            joined += (b"" if at == offset else MAGIC) + data[at + 8 : at + 8 + length]
            at += 8 + length + -length % 4
        at_end.add(at)
        flag, label, number, upper = struct.unpack("<IfQQ", joined[:24])
        assert (number, upper) == (key, 0)
        labels = list(struct.unpack(f"<{flag}f", joined[24 : 24 + 4 * flag])) if flag else [label]
        found[key] = labels, joined[24 + 4 * flag :]
    assert at_end == {*offsets.values(), len(data)} - {0}
    return found


class MemoryStore(CropStore):
    """Images in a list."""

    def __init__(self, identities: list[str], labels: list[int], images: list[bytes]) -> None:
        self.path = Path("memory")
        self.identities = identities
        self.labels = np.array(labels, np.int32)
        self.images = images

    def encoded(self, row: int) -> bytes:
        return self.images[row]

    def name(self, row: int) -> str:
        return f"{self.identities[self.labels[row]]}/{row}.jpg"

    def fingerprint(self) -> str:
        return "memory"


def some_image(rng: np.random.Generator, magic_words: int = 0) -> bytes:
    """Random bytes that start as a JPEG, with the magic number in some places, most of them multiples of four."""
    data = bytearray(b"\xff\xd8\xff\xe0" + rng.bytes(int(rng.integers(0, 60))))
    for _ in range(magic_words):
        at = int(rng.integers(0, len(data) // 4 + 1)) * 4 + (int(rng.integers(0, 4)) if rng.random() < 0.3 else 0)
        data[at : at + 4] = MAGIC
    return bytes(data)
