"""Packing: everything is kept, nothing half-written counts, and a killed run goes on."""

import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from facelit.align.photo_tree import list_photos
from facelit.cli import main
from facelit.data.datamodule import FaceDataModule
from facelit.data.pairs import PairsFolder
from facelit.errors import FacelitError
from facelit.inference.console import photos_in
from facelit.inference.enrolment import list_people
from facelit.storage import packing
from facelit.storage.folder import FolderStore
from facelit.storage.images import BadImageError
from facelit.storage.open import open_store
from facelit.storage.packed import MANIFEST, PackedStore, Shard, shard_path
from facelit.storage.packing import SKIPPED, pack, verify
from facelit.storage.recordio import write_recordio
from tiny_run import ROOT, write_pairs


def make_faces(root: Path, identities: int = 5, images: int = 7) -> Path:
    rng = np.random.default_rng(0)
    for identity in range(identities):
        (root / f"person_{identity}").mkdir(parents=True)
        for number in range(images):
            suffix = ("jpg", "png", "webp")[number % 3]
            pixels = rng.integers(0, 255, (112, 112, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / f"person_{identity}" / f"{number}.{suffix}")
    return root


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_faces(tmp_path_factory.mktemp("source") / "faces")


def assert_same(packed: PackedStore, source: Path) -> None:
    """Against the files themselves, not against the store that was packed."""
    files = sorted((path for path in source.glob("*/*") if path.is_file()), key=os.fspath)
    assert [packed.name(row) for row in range(len(packed))] == [path.relative_to(source).as_posix() for path in files]
    assert [packed.identities[label] for label in packed.labels] == [path.parent.name for path in files]
    for row, path in enumerate(files):
        assert packed.encoded(row) == path.read_bytes()


@pytest.mark.parametrize(("jobs", "images_per_shard"), [(1, 1), (1, 8), (2, 8), (1, 35), (1, 36)])
def test_keeps_bytes_names_and_identities(faces: Path, tmp_path: Path, jobs: int, images_per_shard: int) -> None:
    packed = pack(FolderStore(faces), tmp_path / "packed", jobs, images_per_shard)
    assert len(packed.shards) == -(-35 // images_per_shard)
    assert_same(packed, faces)
    assert verify(packed, FolderStore(faces)) == []
    assert verify(packed) == []
    assert_same(pickle.loads(pickle.dumps(packed)), faces)
    assert isinstance(open_store(tmp_path / "packed"), PackedStore)


def test_any_arrow_reader_reads_a_shard(faces: Path, tmp_path: Path) -> None:
    pack(FolderStore(faces), tmp_path / "packed", images_per_shard=20)
    table = pa.ipc.open_file(pa.memory_map(str(tmp_path / "packed" / "shard-00000.arrow"))).read_all()
    assert table.num_rows == 20
    first = table.slice(0, 1).to_pylist()[0]
    assert first["image"] == (faces / "person_0" / "0.jpg").read_bytes()
    assert (first["name"], first["identity"]) == (b"person_0/0.jpg", 0)
    assert first["crc32"] == zlib.crc32(first["image"])


def test_several_record_batches(faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "_BATCH_BYTES", 60_000)
    packed = pack(FolderStore(faces), tmp_path / "packed", images_per_shard=20)
    assert pa.ipc.open_file(pa.memory_map(str(shard_path(packed.path, 0)))).num_record_batches > 2
    assert_same(packed, faces)


def test_a_pack_of_a_pack(faces: Path, tmp_path: Path) -> None:
    first = pack(FolderStore(faces), tmp_path / "first", images_per_shard=9)
    assert_same(pack(first, tmp_path / "second", images_per_shard=16), faces)


def test_kill_9_then_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The real command, killed half-way; the second run keeps what the first one finished, and ends complete."""
    source, target = make_faces(tmp_path / "faces", 15, 12), tmp_path / "packed"
    command = [sys.executable, ROOT / "main.py", "pack", source, target, "--images_per_shard", "9", "--jobs", "2"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while len(list(target.glob("shard-*.arrow"))) < 3 and time.monotonic() < deadline:
            time.sleep(0.001)
    finally:
        process.send_signal(signal.SIGKILL)  # it alone: its workers must notice
        process.wait()
    time.sleep(0.5)
    kept = {path: path.stat().st_mtime_ns for path in target.glob("shard-*.arrow")}
    assert 3 <= len(kept) < 20  # nobody went on writing
    with pytest.raises(FacelitError, match="was not finished"):
        PackedStore(target)
    again = [str(word) for word in command[2:]]
    main(again)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert not list(target.glob("*.tmp"))
    assert_same(PackedStore(target), source)
    main([*again, "--verify"])
    printed = capsys.readouterr().out
    assert "180 images of 15 identities" in printed
    assert "no difference" in printed


def test_a_finished_pack_is_left_alone(faces: Path, tmp_path: Path) -> None:
    packed = pack(FolderStore(faces), tmp_path / "packed", images_per_shard=10)
    before = {path: path.stat().st_mtime_ns for path in packed.path.iterdir()}
    pack(FolderStore(faces), tmp_path / "packed", images_per_shard=10)
    assert {path: path.stat().st_mtime_ns for path in packed.path.iterdir()} == before


@pytest.mark.parametrize("column", ["image", "name", "identity"])
def test_verify_finds_a_changed_shard(faces: Path, tmp_path: Path, column: str) -> None:
    packed = pack(FolderStore(faces), tmp_path / "packed", images_per_shard=10)
    path = shard_path(packed.path, 2)
    table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    rows = table.to_pylist()
    rows[3][column] = {"image": b"\xff" + rows[3]["image"][1:], "name": b"person_1/9.jpg", "identity": 4}[column]
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(pa.Table.from_pylist(rows, table.schema))
    wrong = verify(packed, FolderStore(faces))
    assert len(wrong) == 1
    assert "shard-00002.arrow, row 3" in wrong[0]
    assert len(verify(packed)) == 1


def test_verify_against_another_source(faces: Path, tmp_path: Path) -> None:
    packed = pack(FolderStore(faces), tmp_path / "packed")
    other = make_faces(tmp_path / "other", 4)
    assert "has changed since" in verify(packed, FolderStore(other))[0]


@pytest.mark.parametrize("jobs", [1, 2])
def test_bad_images_stop_or_are_listed(tmp_path: Path, jobs: int) -> None:
    source = make_faces(tmp_path / "faces", 4, 6)
    broken, small = source / "person_1" / "2.webp", source / "person_3" / "0.jpg"
    broken.write_bytes(b"RIFF no image")
    Image.new("RGB", (80, 80)).save(small)
    # Of two processes either may be the first to find one.
    with pytest.raises(FacelitError, match=r"(person_1/2\.webp|person_3/0\.jpg).*--on_bad_image skip"):
        pack(FolderStore(source), tmp_path / "strict", jobs, images_per_shard=6)
    packed = pack(FolderStore(source), tmp_path / "lenient", jobs, images_per_shard=6, skip_bad=True)
    assert len(packed) == 22
    assert list(packed.manifest.skipped) == [8, 18]
    rows = [line.split("\t") for line in (packed.path / SKIPPED).read_text().splitlines()]
    assert [row[0] for row in rows] == [str(broken), str(small)]
    assert "80x80" in rows[1][1]
    assert verify(packed, FolderStore(source)) == []
    any_size = pack(FolderStore(source), tmp_path / "any", jobs, 6, any_size=True, skip_bad=True)
    assert len(any_size) == 23
    broken.unlink()
    small.unlink()
    assert_same(packed, source)


def test_a_full_disk_loses_nothing(faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, written = os.fsync, []

    def full(file: int) -> None:
        written.append(file)
        if len(written) == 4:  # the identities, two shards, and then
            raise OSError(28, "No space left on device")
        original(file)

    monkeypatch.setattr(packing.os, "fsync", full)
    with pytest.raises(FacelitError, match=r"No space left.*kept.*same command again"):
        pack(FolderStore(faces), tmp_path / "packed", images_per_shard=10)
    assert len(list((tmp_path / "packed").glob("shard-*.arrow"))) == 2
    assert not list((tmp_path / "packed").glob("*.tmp"))
    assert_same(pack(FolderStore(faces), tmp_path / "packed"), faces)


def test_a_disk_that_gives_back_other_bytes_is_noticed(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Shard.encoded
    monkeypatch.setattr(Shard, "encoded", lambda shard, row: original(shard, row)[:-1] + b"x")
    with pytest.raises(FacelitError, match="other bytes than were written"):
        pack(FolderStore(faces), tmp_path / "packed", images_per_shard=10)
    assert not list((tmp_path / "packed").glob("shard-*.arrow"))


def test_damaged_packs_are_named(faces: Path, tmp_path: Path) -> None:
    packed = pack(FolderStore(faces), tmp_path / "packed", images_per_shard=10)
    path = shard_path(packed.path, 1)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(FacelitError, match=r"shard-00001\.arrow: .* bytes instead of"):
        PackedStore(packed.path)
    path.write_bytes(whole[:-100] + bytes(100))
    with pytest.raises(FacelitError, match=r"shard-00001\.arrow: not a shard"):
        PackedStore(packed.path)
    path.unlink()
    with pytest.raises(FacelitError, match=r"shard-00001\.arrow: this shard is missing.*same `facelit pack"):
        PackedStore(packed.path)
    pack(FolderStore(faces), packed.path)
    assert path.read_bytes() == whole
    (packed.path / MANIFEST).write_text("{}")
    with pytest.raises(FacelitError, match=re.escape(MANIFEST)):
        PackedStore(packed.path)


def test_a_shard_that_is_cut_short_during_a_run_is_an_error(faces: Path, tmp_path: Path) -> None:
    """Not a crash by SIGBUS, as reading through the map would be."""
    packed = pack(FolderStore(faces), tmp_path / "packed", images_per_shard=10)
    os.truncate(shard_path(packed.path, 3), 2000)
    with pytest.raises(BadImageError, match=r"shard-00003\.arrow, row 4.*cut short"):
        packed.encoded(34)


def test_a_damaged_shard_of_an_unfinished_pack_is_written_again(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(packing, "_finish", lambda target, manifest: None)
        with pytest.raises(FacelitError, match="was not finished"):
            pack(FolderStore(faces), tmp_path / "packed", images_per_shard=10)
    os.truncate(shard_path(tmp_path / "packed", 1), 1000)
    assert_same(pack(FolderStore(faces), tmp_path / "packed"), faces)


def test_an_image_that_is_mended_between_two_runs_is_not_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The list of a shard that was killed before it got its name does not outlive it."""
    source = make_faces(tmp_path / "faces", 2, 6)
    path = source / "person_0" / "2.webp"
    whole = path.read_bytes()
    path.write_bytes(b"RIFF no image")
    original = os.replace
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda old, new: "shard-" in str(new) or original(old, new))
        with pytest.raises(FacelitError):
            pack(FolderStore(source), tmp_path / "packed", skip_bad=True)
    path.write_bytes(whole)
    packed = pack(FolderStore(source), tmp_path / "packed", skip_bad=True)
    assert len(packed.manifest.skipped) == 0
    assert_same(packed, source)


def test_nothing_left_can_be_mended(tmp_path: Path) -> None:
    source = make_faces(tmp_path / "faces", 2, 1)
    good = {path: path.read_bytes() for path in source.glob("*/*.jpg")}
    for path in good:
        path.write_bytes(b"broken")
    with pytest.raises(FacelitError, match="no image is left"):
        pack(FolderStore(source), tmp_path / "packed", skip_bad=True)
    for path, data in good.items():
        path.write_bytes(data)
    assert_same(pack(FolderStore(source), tmp_path / "packed", skip_bad=True), source)


def test_one_program_at_a_time(faces: Path, tmp_path: Path) -> None:
    store = FolderStore(faces)
    with packing._held(store, tmp_path / "packed"), pytest.raises(FacelitError, match="another program"):
        pack(store, tmp_path / "packed")
    assert_same(pack(FolderStore(faces), tmp_path / "packed"), faces)


def test_a_source_by_another_name_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names with tabs and line ends too."""
    source = make_faces(tmp_path / "faces", 2, 4)
    odd = source / "person_0" / "a\tb\nc.jpg"
    odd.write_bytes(b"no image")
    monkeypatch.chdir(tmp_path)
    pack(FolderStore("faces"), tmp_path / "packed", skip_bad=True)
    assert verify(PackedStore(tmp_path / "packed"), FolderStore(source.resolve())) == []
    (line,) = (tmp_path / "packed" / SKIPPED).read_text().splitlines()
    assert line.split("\t")[0] == "faces/person_0/a\\tb\\nc.jpg"


def test_names_of_folders_that_are_no_utf_8(tmp_path: Path) -> None:
    source = make_faces(tmp_path / os.fsdecode(b"caf\xe9"), 2, 2)
    assert_same(pack(FolderStore(source), tmp_path / os.fsdecode(b"pack\xe9")), source)


def test_large_sets_have_no_more_shards(monkeypatch: pytest.MonkeyPatch, faces: Path, tmp_path: Path) -> None:
    monkeypatch.setattr(packing, "IMAGES_PER_SHARD", 2)
    monkeypatch.setattr(packing, "MOST_SHARDS", 5)
    assert len(pack(FolderStore(faces), tmp_path / "packed").shards) == 5


def test_slips(faces: Path, tmp_path: Path) -> None:
    with pytest.raises(FacelitError, match="inside"):
        pack(FolderStore(faces), faces / "packed")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "something").touch()
    with pytest.raises(FacelitError, match="exists"):
        pack(FolderStore(faces), tmp_path / "full")
    pack(FolderStore(faces), tmp_path / "packed")
    other = FolderStore(make_faces(tmp_path / "other", 2))
    with pytest.raises(FacelitError, match="another source"):
        pack(other, tmp_path / "packed")
    manifest = json.loads((tmp_path / "packed" / MANIFEST).read_text())
    (tmp_path / "packed" / MANIFEST).write_text(json.dumps({**manifest, "version": 99}))
    with pytest.raises(FacelitError, match="version 99"):
        PackedStore(tmp_path / "packed")
    (tmp_path / "packed" / MANIFEST).write_text(json.dumps({**manifest, "images_per_shard": 0}))
    with pytest.raises(FacelitError, match="damaged"):
        PackedStore(tmp_path / "packed")
    (tmp_path / "packed" / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(FacelitError, match="Give the same options"):
        pack(FolderStore(faces), tmp_path / "packed", images_per_shard=3)


@pytest.mark.parametrize("kind", ["a folder that `facelit pack` wrote", "an InsightFace set"])
def test_where_image_files_are_wanted_other_sets_are_named(faces: Path, tmp_path: Path, kind: str) -> None:
    root = tmp_path / "set"
    pack(FolderStore(faces), root, 1) if "pack" in kind else write_recordio(FolderStore(faces), root)
    pairs = write_pairs(tmp_path / "pairs.txt")
    for read in (
        photos_in,
        list_people,
        list_photos,
        lambda folder: FaceDataModule(predict=str(folder)).predict_paths(),
        lambda folder: PairsFolder(folder, pairs),
    ):
        with pytest.raises(FacelitError, match=f"It is {kind}, with its images in"):
            read(root)
