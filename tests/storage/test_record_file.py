"""RecordIO's records: cut where they hold the magic number, joined again, and refused where damaged."""

import struct
from pathlib import Path

import numpy as np
import pytest

from facelit.errors import FacelitError
from facelit.storage.record_file import (
    CutShortError,
    RecordError,
    RecordFile,
    encode_image,
    encode_record,
    read_head,
)
from record_oracle import MAGIC, part, payload, record


def _file(folder: Path, data: bytes) -> RecordFile:
    (folder / "some.rec").write_bytes(data)
    return RecordFile(folder / "some.rec")


def _stuffed(rng: np.random.Generator, size: int) -> bytes:
    """Bytes of which many are the magic number, or pieces of it, at multiples of four and between them."""
    pieces = [MAGIC, MAGIC, MAGIC[:1], MAGIC[1:], b"\0", b"\0\0\0\0", rng.bytes(3), rng.bytes(4)]
    data = b""
    while len(data) < size:
        data += pieces[rng.integers(len(pieces))]
    return data[:size]


@pytest.mark.parametrize("seed", range(20))
def test_any_payload_is_written_as_described_and_read_back(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    payloads = [_stuffed(rng, int(size)) for size in rng.integers(0, 90, 60)]
    encoded = [record(data) for data in payloads]
    assert [encode_record(data) for data in payloads] == encoded
    file = _file(tmp_path, b"".join(encoded))
    starts = np.cumsum([0, *map(len, encoded)])
    assert list(file.walk()) == starts[:-1].tolist()
    for data, start, end in zip(payloads, starts, starts[1:], strict=False):
        assert bytes(file.record(int(start))) == data
        assert file.end(int(start)) == end


def test_a_record_that_was_cut_is_joined(tmp_path: Path) -> None:
    file = _file(tmp_path, record(b"abcde") + record(b"abcd" + MAGIC + b"e"))
    assert file.record(0) == b"abcde"
    assert file.record(16) == b"abcd" + MAGIC + b"e"


def test_headers_of_many_are_the_headers_of_each(tmp_path: Path) -> None:
    """Also where the header itself holds the magic number, so that its words are not where they usually are."""
    magic_label = struct.unpack("<f", MAGIC)[0]
    magic_key = int.from_bytes(MAGIC, "little")
    cases: list[tuple[int, float | list[float], bytes]] = [
        (5, 3.0, b"image"),
        (2**40 + 1, [7.0, 8.0], b""),
        (6, [9.0], b"x"),
        (7, [1.0, 2.0, 3.0, 4.0, 5.0], b"longer than a header"),
        (8, magic_label, b"image"),
        (magic_key, [1.0, magic_label, magic_label], b"image"),
        (9, 4.0, b""),
    ]
    data = [record(payload(*case)) for case in cases]
    file = _file(tmp_path, b"".join(data))
    heads = file.heads(np.cumsum([0, *map(len, data)])[:-1])
    assert heads.keys.tolist() == [case[0] for case in cases]
    assert heads.sizes.tolist() == [len(case[2]) for case in cases]
    labels = [case[1] if isinstance(case[1], list) else [case[1]] for case in cases]
    expected = [[*two, np.nan][:2] for two in labels]
    np.testing.assert_array_equal(heads.labels, np.array(expected, np.float32))


@pytest.mark.parametrize("label", [[3.0], [4.0, 5.0], [1.5, 2.0, 3.0]])
def test_what_a_record_holds_is_written_as_described(label: list[float]) -> None:
    expected = payload(77, label if len(label) > 1 else label[0], b"image")
    assert encode_image(77, tuple(label), b"image") == expected
    assert read_head(expected, 0)[:2] == (
        77,
        (label[0], pytest.approx(label[1] if len(label) > 1 else np.nan, nan_ok=True)),
    )


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\1" + record(b"a" * 24)[1:], "no record at byte 0"),
        (part(2, b"abcd"), "does not start"),
        (part(3, b"abcd"), "does not start"),
        (part(4, b"abcd"), "does not start"),
        (part(1, b"abcd") + part(0, b"abcd"), "parts are damaged"),
        (part(1, b"abcd") + part(1, b"abcd"), "parts are damaged"),
        (part(1, b"abcd") + b"abcdefgh", "no record at byte 12"),
    ],
)
def test_damaged_records_are_refused(tmp_path: Path, data: bytes, reason: str) -> None:
    file = _file(tmp_path, data)
    for read in (
        file.record,
        file.end,
        lambda offset: list(file.walk()),
        lambda offset: file.heads(np.array([offset])),
    ):
        with pytest.raises(RecordError, match=reason) as caught:
            read(0)
        assert not isinstance(caught.value, CutShortError)
        assert caught.value.offset == 0


@pytest.mark.parametrize("image", [b"abcdefghi", b"abcd" + MAGIC + b"efg"], ids=["whole", "parts"])
def test_a_record_is_cut_short_wherever_the_file_ends_in_it(tmp_path: Path, image: bytes) -> None:
    content = record(payload(1, 2.0, image))
    for size in range(8, len(content)):
        file = _file(tmp_path, content[:size])
        with pytest.raises(CutShortError, match=f"ends at byte {size}"):
            file.record(0)
        with pytest.raises(CutShortError, match=f"ends at byte {size}"):
            file.heads(np.array([0]))
    assert _file(tmp_path, content).end(0) == len(content)


def test_headers_that_do_not_fit_are_refused() -> None:
    with pytest.raises(RecordError, match="23 bytes are too few"):
        read_head(b"a" * 23, 0)
    with pytest.raises(RecordError, match="100 labels in 28 bytes"):
        read_head(struct.pack("<IfQQ", 100, 0, 1, 0) + b"abcd", 0)


def test_files_that_cannot_be_opened_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty.rec").write_bytes(b"")
    for name in ("empty.rec", "absent.rec"):
        with pytest.raises(FacelitError, match=name):
            RecordFile(tmp_path / name)
