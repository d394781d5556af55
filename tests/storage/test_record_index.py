"""train.idx: read, made anew where it is absent, and the first record named that is not all there."""

from pathlib import Path

import numpy as np
import pytest

from facelit.errors import FacelitError
from facelit.storage import record_index
from facelit.storage.record_file import RecordFile
from facelit.storage.record_index import check_whole, read_index, walk_index
from record_oracle import MAGIC, insightface_set, record, some_image


def _people(seed: int = 0) -> list[tuple[int, list[bytes]]]:
    rng = np.random.default_rng(seed)
    return [(label, [some_image(rng, magic_words=number) for number in range(3)]) for label in range(4)]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_keys_are_sorted_whatever_their_order(tmp_path: Path, end: str) -> None:
    path = tmp_path / "train.idx"
    path.write_text(f"7\t400{end}0\t8{end}20000000000\t0")
    index = read_index(path)
    assert index.keys.tolist() == [0, 7, 20_000_000_000]
    assert index.offsets.tolist() == [8, 400, 0]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1\t\n",
        "1 2\n",
        "1\t8\n2\t",
        "1\t8\n2",
        "1\t8\t9\n",
        "1\tx\n",
        "1\t2\n",
        "1\t-8\n",
        "5\t0\n5\t8\n",
        "\xff\n",
    ],
)
def test_damaged_indexes_are_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "train.idx").write_bytes(text.encode("latin-1"))
    with pytest.raises(FacelitError, match=r"train\.idx: .*Download"):
        read_index(tmp_path / "train.idx")


@pytest.mark.parametrize("header_last", [False, True])
@pytest.mark.parametrize("chunk", [3, 1 << 16])
def test_walking_gives_what_the_index_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, header_last: bool, chunk: int
) -> None:
    monkeypatch.setattr(record_index, "CHUNK", chunk)
    insightface_set(_people(), header_last=header_last).write(tmp_path)
    walked, read = walk_index(RecordFile(tmp_path / "train.rec")), read_index(tmp_path / "train.idx")
    assert walked.keys.tolist() == read.keys.tolist()
    assert walked.offsets.tolist() == read.offsets.tolist()


def test_records_of_one_id_cannot_be_told_apart(tmp_path: Path) -> None:
    (tmp_path / "train.rec").write_bytes(record(b"\0" * 30) * 2)
    with pytest.raises(FacelitError, match=r"train\.rec: key 0 stands for two"):
        walk_index(RecordFile(tmp_path / "train.rec"))


def test_a_cut_file_names_the_first_record_that_is_not_whole(tmp_path: Path) -> None:
    """Cut after every possible byte: inside headers, inside images, inside later parts, inside padding, between records."""
    places = insightface_set(_people(), header_last=True).write(tmp_path)
    assert (tmp_path / "train.rec").read_bytes().count(MAGIC) > len(places)  # some records have parts
    content, index = (tmp_path / "train.rec").read_bytes(), read_index(tmp_path / "train.idx")
    for size in range(8, len(content)):
        (tmp_path / "train.rec").write_bytes(content[:size])
        key, start = next((key, start) for key, (start, end) in places.items() if end > size)
        with pytest.raises(FacelitError) as caught:
            check_whole(RecordFile(tmp_path / "train.rec"), index)
        message = str(caught.value)
        assert f"train.rec, record {key} (byte {start}): it is " in message
        assert f"the file ends at byte {size}" in message
        if size > start:
            assert f"cut short: the file ends at byte {size}, after {list(places).index(key)} of 17 records" in message
            with pytest.raises(FacelitError, match=rf"byte {start}\): it is cut short: the file ends at byte {size}"):
                walk_index(RecordFile(tmp_path / "train.rec"))
    (tmp_path / "train.rec").write_bytes(content)
    check_whole(RecordFile(tmp_path / "train.rec"), index)


def test_an_index_that_ends_before_its_file_is_refused(tmp_path: Path) -> None:
    places = insightface_set(_people()).write(tmp_path)
    index = read_index(tmp_path / "train.idx")
    last = places[16][1] - places[16][0]
    with pytest.raises(FacelitError, match=rf"record 15 .*{last} bytes follow: train\.idx is cut short"):
        check_whole(RecordFile(tmp_path / "train.rec"), index.part(slice(0, -1)))


def test_an_index_of_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train.rec").write_bytes(record(b"\0" * 30))
    (tmp_path / "train.idx").write_text("0\t4\n")
    with pytest.raises(FacelitError, match=r"record 0 \(byte 4\).*no record at byte 4"):
        check_whole(RecordFile(tmp_path / "train.rec"), read_index(tmp_path / "train.idx"))
    (tmp_path / "train.idx").write_text("0\t400\n")
    with pytest.raises(FacelitError, match="before its first record"):
        check_whole(RecordFile(tmp_path / "train.rec"), read_index(tmp_path / "train.idx"))
