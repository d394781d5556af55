"""InsightFace's training sets: written here from their description and read by the store, and the other way round."""

import os
import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow
import pytest

from facelit.errors import FacelitError
from facelit.storage import recordio
from facelit.storage.folder import FolderStore
from facelit.storage.images import BadImageError
from facelit.storage.recordio import RecordStore, write_recordio
from record_oracle import MAGIC, MemoryStore, RecordSet, insightface_set, part, payload, read_set, record, some_image

People = list[tuple[int, list[bytes]]]


def _people(labels: list[int], seed: int = 0, most: int = 5) -> People:
    rng = np.random.default_rng(seed)
    return [
        (label, [some_image(rng, magic_words=int(rng.integers(0, 4))) for _ in range(rng.integers(1, most))])
        for label in labels
    ]


def _read(store: RecordStore) -> list[tuple[str, bytes]]:
    return [(store.identities[store.labels[row]], bytes(store.encoded(row))) for row in range(len(store))]


def _listed(people: People) -> list[tuple[str, bytes]]:
    return [(str(label), image) for label, images in people for image in images]


@pytest.mark.parametrize("labels", [[0, 1, 2, 3], [7, 2, 100_000, 3], [5]], ids=["plain", "gaps-unsorted", "one"])
@pytest.mark.parametrize("as_arrays", [False, True])
@pytest.mark.parametrize("header_last", [False, True])
@pytest.mark.parametrize("with_idx", [False, True])
def test_insightface_sets_are_read(
    tmp_path: Path, labels: list[int], as_arrays: bool, header_last: bool, with_idx: bool
) -> None:
    people = _people(labels)
    insightface_set(people, as_arrays=as_arrays, header_last=header_last).write(tmp_path, with_idx=with_idx)
    store = RecordStore(tmp_path)
    assert list(store.identities) == [str(label) for label in sorted(labels)]
    assert store.labels.dtype == np.int32
    assert _read(store) == _listed(people)


@pytest.mark.parametrize("first_key", [0, 1])
@pytest.mark.parametrize("as_arrays", [False, True])
def test_sets_without_identity_records_are_read(tmp_path: Path, first_key: int, as_arrays: bool) -> None:
    """Shuffled ones too: nothing but each image's own label says whose it is."""
    images = _listed(_people([4, 9, 0, 30]))
    np.random.default_rng(1).shuffle(images)
    records = [
        (first_key + number, [float(label), 0.5] if as_arrays else float(label), image)
        for number, (label, image) in enumerate(images)
    ]
    RecordSet(records, 4).write(tmp_path)
    store = RecordStore(tmp_path)
    assert list(store.identities) == ["0", "4", "9", "30"]
    assert _read(store) == images


@pytest.mark.parametrize("power", [24, 25, 26])
@pytest.mark.parametrize("shift", range(-9, 4))
def test_ranges_that_float32_cannot_hold(tmp_path: Path, power: int, shift: int) -> None:
    """Glint360K has 17 million images: from 16,777,216 on, the ranges in identity records are rounded."""
    people = _people(list(range(6)), seed=shift + 9, most=4)
    records = insightface_set(people, first_key=2**power + shift)
    records.write(tmp_path)
    rounded = [label for _, label, image in records.records if not image]
    assert power == 24 or not np.array_equal(np.float32(rounded), np.float64(rounded))
    store = RecordStore(tmp_path)
    assert _read(store) == _listed(people)
    assert store.name(0).startswith(f"0/{2**power + shift}")


def test_images_in_no_range_have_their_own_label(tmp_path: Path) -> None:
    """InsightFace's current reader takes all images before the identity records, not only those in ranges."""
    people = _people([0, 1, 2, 3])
    records = insightface_set(people)
    first = int(records.records[0][1][0])  # type: ignore[index]
    records.records[first + 1] = (first + 1, [1.0, 1.0], b"")
    records.write(tmp_path)
    assert _read(RecordStore(tmp_path)) == _listed(people)


def test_places_and_names(tmp_path: Path) -> None:
    images = [b"\xff\xd8\xff\xe0 a", b"\x89PNG\r\n\x1a\n b", b"RIFF\0\0\0\0WEBP c", b"what is this"]
    places = insightface_set([(3, images[:1]), (12, images[1:])]).write(tmp_path)
    store = RecordStore(tmp_path)
    assert [store.name(row) for row in range(4)] == [
        "3/00000001.jpg",
        "12/00000002.png",
        "12/00000003.webp",
        "12/00000004.jpg",
    ]
    assert store.place(2) == f"{tmp_path / 'train.rec'}, record 3 (byte {places[3][0]})"


def test_pickled_by_path(tmp_path: Path) -> None:
    insightface_set(_people([0, 1])).write(tmp_path)
    store = RecordStore(tmp_path)
    pickled = pickle.dumps(store)
    assert len(pickled) < 300
    assert _read(pickle.loads(pickled)) == _read(store)


def test_fingerprint_is_of_what_is_listed(tmp_path: Path) -> None:
    people = _people([0, 1, 2])
    others = {
        "same": people,
        "labels": [(label + 1, images) for label, images in people],
        "order": people[::-1],
        "size": [*people[:2], (2, [image + b"abcd" for image in people[2][1]])],
    }
    prints = {}
    for name, listed in others.items():
        insightface_set(listed).write(tmp_path / name, with_property=False)
        prints[name] = RecordStore(tmp_path / name).fingerprint()
        (tmp_path / name / "train.idx").unlink()
        assert RecordStore(tmp_path / name).fingerprint() == prints[name]
    insightface_set(people).write(tmp_path / "again")
    assert prints["same"] == RecordStore(tmp_path / "again").fingerprint()
    assert len(set(prints.values())) == 4


def test_an_image_costs_few_bytes(tmp_path: Path) -> None:
    """No Python object per image: a set of 42 million is opened in under a gigabyte."""
    count = 20_000
    data = b"".join(record(payload(key, float(key // 20), b"image")) for key in range(count))
    (tmp_path / "train.rec").write_bytes(data)
    size = len(data) // count
    (tmp_path / "train.idx").write_text("".join(f"{key}\t{key * size}\n" for key in range(count)))
    RecordStore(tmp_path)  # what is imported late
    before = pyarrow.total_allocated_bytes()
    tracemalloc.start()
    store = RecordStore(tmp_path)
    held = tracemalloc.get_traced_memory()[0] + pyarrow.total_allocated_bytes() - before
    tracemalloc.stop()
    assert len(store) == count
    assert 20 < held / count < 40


# What is refused.


@pytest.mark.parametrize(("text", "reason"), [("5,112,112", "says 5 identities, train.rec has 3"), ("many", "'many'")])
def test_property_of_another_set(tmp_path: Path, text: str, reason: str) -> None:
    insightface_set(_people([0, 1, 2])).write(tmp_path)
    (tmp_path / "property").write_text(text)
    with pytest.raises(FacelitError, match=rf"property: .*{reason}"):
        RecordStore(tmp_path)


@pytest.mark.parametrize("text", ["3,112,112\n", "10, 112, 112", None])
def test_property_may_count_gaps_or_be_absent(tmp_path: Path, text: str | None) -> None:
    insightface_set(_people([0, 9, 4])).write(tmp_path, with_property=False)
    if text is not None:
        (tmp_path / "property").write_text(text)
    assert len(RecordStore(tmp_path).identities) == 3


def test_folders_without_a_set(tmp_path: Path) -> None:
    with pytest.raises(FacelitError, match=r"has no train\.rec"):
        RecordStore(tmp_path)


def _broken(records: RecordSet, key: int, label: float | list[float], image: bytes = b"") -> RecordSet:
    return RecordSet(
        [(key, label, image) if number == key else (number, own, data) for number, own, data in records.records],
        records.num_identities,
    )


_NAN, _INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("key", "label", "reason"),
    [
        (0, [9.0], "record 0 .*neither an image nor InsightFace's first record"),
        (0, 0.0, "record 0 .*neither an image"),
        (0, [_NAN, 5.0], "record 0 .*neither an image"),
        (0, [9.0, _INF], "record 0 .*neither an image"),
        (0, [7.0, 20.0], "record 0 says that identity records have the keys 7 to 19"),
        (0, [8.0, 9.0], "record 7 .* has no image"),
        (0, [50.0, 51.0], "record 0 says"),
        (7, [_NAN, 3.0], "record 7 .* range of one identity's images is expected"),
        (7, [1.0, _INF], "record 7 .* range"),
        (7, [3.0, 1.0], "record 7 .* range"),
        (7, [-3.0, 1.0], "record 7 .* range"),
        (7, [1.0, 99.0], "record 7 .* range"),
        (7, 1.0, "record 7 .* range"),
        (7, [1.0, 5.0], "identity records 7 and 8 share images"),
    ],
)
def test_broken_headers_name_the_record(tmp_path: Path, key: int, label: float | list[float], reason: str) -> None:
    """Records 1 to 6 are images of two identities, 7 and 8 their ranges."""
    good = insightface_set([(0, [b"image"] * 3), (1, [b"image"] * 3)])
    _broken(good, key, label).write(tmp_path)
    with pytest.raises(FacelitError, match=rf"train\.rec.*{reason}"):
        RecordStore(tmp_path)


@pytest.mark.parametrize("label", [0.5, _NAN, _INF, -_INF, 3e9])
def test_labels_that_number_no_identity(tmp_path: Path, label: float) -> None:
    RecordSet([(0, 1.0, b"image"), (1, label, b"image")]).write(tmp_path, with_property=False)
    with pytest.raises(
        FacelitError, match=r"train\.rec, record 1 \(byte 40\): its label .* is not an identity's number"
    ):
        RecordStore(tmp_path)


@pytest.mark.parametrize(
    ("at", "change", "reason"),
    [
        (0, b"\0", "no record at byte"),
        (6, b"\xff", "cut short"),
        (7, b"\x20", "parts are damaged"),
        (7, b"\x60", "does not start a record"),
        (4, b"\x08", "8 bytes are too few"),
        (8, b"\xff", "header is damaged: 255 labels"),
        (8, b"\x01", "is labelled"),
        (15, b"\x41", "is labelled 10, but is stored among the images of identity 1"),
        (4, b"\x18", "has no image"),
    ],
)
def test_an_image_that_is_damaged_names_its_record(tmp_path: Path, at: int, change: bytes, reason: str) -> None:
    people = [(0, [b"first image"]), (1, [b"second image", b"third image", b"fourth"])]
    start, _ = insightface_set(people).write(tmp_path)[3]
    content = bytearray((tmp_path / "train.rec").read_bytes())
    if at == 15:
        content[start + 12 : start + 16] = b"\x00\x00\x20\x41"  # 10 as a float32
    else:
        content[start + at] = change[0]
    (tmp_path / "train.rec").write_bytes(content)
    store = RecordStore(tmp_path)
    with pytest.raises(BadImageError, match=reason) as caught:
        store.encoded(2)
    assert caught.value.place == f"{tmp_path / 'train.rec'}, record 3 (byte {start})"
    assert bytes(store.encoded(3)) == b"fourth"


def test_a_set_whose_labels_must_all_be_read_names_the_damaged_one(tmp_path: Path) -> None:
    places = RecordSet([(key, float(key), b"image") for key in range(5)]).write(tmp_path, with_property=False)
    content = bytearray((tmp_path / "train.rec").read_bytes())
    content[places[3][0]] = 0
    (tmp_path / "train.rec").write_bytes(content)
    with pytest.raises(FacelitError, match=rf"train\.rec, record 3 \(byte {places[3][0]}\): there is no record"):
        RecordStore(tmp_path)


def test_a_set_that_lost_its_first_record_is_not_read_as_another_kind(tmp_path: Path) -> None:
    insightface_set(_people([0, 1, 2])).write(tmp_path, with_property=False)
    lines = (tmp_path / "train.idx").read_text().splitlines(keepends=True)
    (tmp_path / "train.idx").write_text("".join(lines[1:]))
    with pytest.raises(FacelitError, match=r"train\.rec, record \d+ .*no image"):
        RecordStore(tmp_path)


@pytest.mark.parametrize("seed", range(150))
def test_damage_ends_in_a_message_or_not_at_all(tmp_path: Path, seed: int) -> None:
    """Random bytes changed in random files: no other exception than ours, on opening or reading."""
    rng = np.random.default_rng(seed)
    insightface_set(_people([0, 1, 2], seed)).write(tmp_path)
    for _ in range(rng.integers(1, 4)):
        path = tmp_path / ["train.rec", "train.rec", "train.idx", "property"][rng.integers(4)]
        content = bytearray(path.read_bytes())
        content[rng.integers(len(content))] = rng.integers(256)
        path.write_bytes(content)
    messages = []
    try:
        store = RecordStore(tmp_path)
    except FacelitError as error:
        messages.append(str(error))
    else:
        for row in range(len(store)):
            try:
                store.encoded(row)
            except BadImageError as error:
                messages.append(error.place)
    assert all(str(tmp_path) in message for message in messages)


# Writing.


def _store(seed: int = 0, count: int = 40) -> MemoryStore:
    """Four people whose images are mixed; one of them, number 2, has none."""
    rng = np.random.default_rng(seed)
    labels = rng.choice([0, 1, 3], count).tolist()
    images = [some_image(rng, magic_words=int(rng.integers(0, 5))) for _ in range(count)]
    return MemoryStore(["Ann", "Bob", "Cid", "Dot"], labels, images)


def test_what_is_written_is_insightfaces_layout(tmp_path: Path) -> None:
    store = _store()
    write_recordio(store, tmp_path / "set", progress=True)
    found = read_set(tmp_path / "set")
    grouped = [row for identity in range(4) for row in range(40) if store.labels[row] == identity]
    assert list(found) == list(range(44))
    assert found[0] == ([41.0, 44.0], b"")
    for key, row in enumerate(grouped, start=1):
        assert found[key] == ([float(store.labels[row])], store.images[row])
    counts = [list(store.labels).count(identity) for identity in (0, 1, 3)]
    edges = np.cumsum([1, *counts]).tolist()
    assert [found[key] for key in (41, 42, 43)] == [([edges[n], edges[n + 1]], b"") for n in range(3)]
    assert (tmp_path / "set" / "property").read_text() == "4,112,112\n"
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == ["property", "train.idx", "train.rec"]


@pytest.mark.parametrize("exact", [1 << 24, 44, 43], ids=["grouped", "just", "ungrouped"])
def test_what_is_written_is_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exact: int) -> None:
    """Sets of more records than a float32 counts have no identity records."""
    store = _store(seed=3)
    monkeypatch.setattr(recordio, "_EXACT", exact)
    write_recordio(store, tmp_path)
    assert read_set(tmp_path)[0] == (
        ([41.0, 44.0], b"") if exact > 43 else ([0.0], store.images[store.labels.tolist().index(0)])
    )
    order = np.argsort(store.labels, kind="stable")
    assert _read(RecordStore(tmp_path)) == [(str(store.labels[row]), store.images[row]) for row in order]


def test_a_set_is_not_overwritten(tmp_path: Path) -> None:
    write_recordio(_store(), tmp_path)
    before = (tmp_path / "train.rec").read_bytes()
    with pytest.raises(FacelitError, match=r"train\.rec exists"):
        write_recordio(_store(seed=1), tmp_path)
    assert (tmp_path / "train.rec").read_bytes() == before


@pytest.mark.parametrize("image", [b"", None], ids=["empty", "unreadable"])
def test_nothing_is_left_where_an_image_cannot_be_written(tmp_path: Path, image: bytes | None) -> None:
    class Failing(MemoryStore):
        def encoded(self, row: int) -> bytes:
            if self.images[row] is None:
                raise BadImageError(self.place(row), "no such image")
            return self.images[row]

    images = [b"image", image, b"image"]
    store = Failing(["Ann"], [0, 0, 0], images)  # type: ignore[arg-type]
    with pytest.raises(BadImageError, match=r"memory/Ann/1\.jpg"):
        write_recordio(store, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_folders_and_stores_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FacelitError, match="file: cannot be written"):
        write_recordio(_store(), tmp_path / "file")
    with pytest.raises(FacelitError, match="memory: 0 identities"):
        write_recordio(MemoryStore([], [], []), tmp_path)
    monkeypatch.setattr(recordio, "MAX_IMAGE", 5)
    with pytest.raises(BadImageError, match="an image of 6 bytes cannot be in"):
        write_recordio(MemoryStore(["Ann"], [0], [b"images"]), tmp_path)


def test_the_oracle_cuts_records_as_the_worked_case() -> None:
    """By hand: the magic number at byte 4 is left out between two parts; at byte 5 it stays."""
    assert record(b"abcd" + MAGIC + b"ef") == part(1, b"abcd") + part(3, b"ef")
    assert part(1, b"abcd") == bytes.fromhex("0a23d7ce 04000020") + b"abcd"
    assert part(3, b"ef") == bytes.fromhex("0a23d7ce 02000060") + b"ef\0\0"
    assert record(b"abcde" + MAGIC) == bytes.fromhex("0a23d7ce 09000000") + b"abcde" + MAGIC + b"\0\0\0"


def test_a_file_that_is_cut_short_during_a_run_is_an_error(tmp_path: Path) -> None:
    """Not a crash by SIGBUS, as reading through the map would be."""
    source = tmp_path / "source"
    for name in ("a", "b"):
        (source / name).mkdir(parents=True)
        (source / name / "0.jpg").write_bytes(bytes(range(256)) * 40)
    write_recordio(FolderStore(source), tmp_path / "set")
    store = RecordStore(tmp_path / "set")
    assert store.encoded(1) == (source / "b" / "0.jpg").read_bytes()
    os.truncate(tmp_path / "set" / "train.rec", 12_000)
    with pytest.raises(BadImageError, match="cut short: the file ends at byte 12000"):
        store.encoded(1)
