"""The index of a folder of identities: what it lists, when it is kept, when it is made anew."""

import os
import pickle
import stat
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from facelit.errors import FacelitError
from facelit.storage import folder_index as index_module
from facelit.storage import folder_listing as listing_module
from facelit.storage.folder import FolderStore
from facelit.storage.folder_index import INDEX_NAME
from facelit.storage.folder_listing import index_folder
from facelit.storage.images import BadImageError, decode_crop

OLD = round(time.time() - 1000)


def make_tree(root: Path, counts: dict[str, int]) -> Path:
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            (root / name / f"{number:03d}.jpg").write_bytes(os.fsencode(f"{name}{number}"))
    settle(root)
    return root


def settle(root: Path) -> None:
    """Puts every folder's modification time well into the past, as it is in a set that nobody is writing to."""
    for folder in root.iterdir():
        if folder.is_dir() and folder.stat().st_mtime != OLD:
            os.utime(folder, (OLD, OLD))
    time.sleep(0.06)  # the change time cannot be put back


def literal_listing(root: Path) -> list[tuple[str, str]]:
    """What the store must list, by the plainest code."""
    suffixes = (
        ".jpg",
        ".jpeg",
        ".png",
        ".webp",
        ".jpe",
        ".jfif",
        ".bmp",
        ".tif",
        ".tiff",
        ".ppm",
        ".pgm",
        ".gif",
        ".avif",
    )
    return [
        (folder.name, file.name)
        for folder in sorted(root.iterdir())
        if folder.is_dir() and not folder.name.startswith(".")
        for file in sorted(folder.iterdir())
        if file.name.lower().endswith(suffixes) and not file.name.startswith(".")
    ]


def listed(store: FolderStore) -> list[tuple[str, str]]:
    return [tuple(store.name(row).split("/")) for row in range(len(store))]


@pytest.fixture
def listings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the folders that were really listed."""
    seen: list[str] = []
    original = listing_module._list_folder

    def spy(path: bytes) -> object:
        seen.append(os.path.basename(os.fsdecode(path)))
        return original(path)

    monkeypatch.setattr(listing_module, "_list_folder", spy)
    return seen


def test_lists_what_is_there_in_order(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "faces", {"b": 2, "a": 3, "empty": 0, "ß-ü": 1})
    (root / "a" / "NOTES.txt").write_text("no image")
    (root / "a" / "._001.jpg").write_text("hidden")
    (root / "b" / "UPPER.JPEG").write_bytes(b"x")
    (root / ".hidden").mkdir()
    store = FolderStore(root)
    assert listed(store) == literal_listing(root)
    assert store.identities == ["a", "b", "ß-ü"]
    assert store.labels.tolist() == [0, 0, 0, 1, 1, 1, 2]
    assert store.encoded(3) == b"b0"
    assert store.place(3) == str(root / "b" / "000.jpg")


def test_names_that_are_no_utf_8(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    root = make_tree(tmp_path / "faces", {name: 1, "b": 1})
    store = FolderStore(root)
    assert store.encoded(list(store.identities).index(name)) == os.fsencode(name) + b"0"


def test_second_start_lists_nothing(tmp_path: Path, listings: list[str]) -> None:
    root = make_tree(tmp_path / "faces", {"a": 2, "b": 1, "c": 3})
    first = FolderStore(root)
    assert sorted(listings) == ["a", "b", "c"]
    assert (root / INDEX_NAME).is_file()
    listings.clear()
    again = FolderStore(root)
    assert listings == []
    assert listed(again) == listed(first)
    assert again.fingerprint() == first.fingerprint()


@pytest.mark.parametrize("change", ["add", "remove", "rename"])
def test_only_a_changed_folder_is_listed_again(tmp_path: Path, listings: list[str], change: str) -> None:
    root = make_tree(tmp_path / "faces", {"a": 2, "b": 2, "c": 3})
    before = FolderStore(root).fingerprint()
    listings.clear()
    file = root / "b" / "001.jpg"
    {
        "add": lambda: (root / "b" / "new.png").write_bytes(b"x"),
        "remove": file.unlink,
        "rename": lambda: file.rename(root / "b" / "other.jpg"),
    }[change]()
    store = FolderStore(root)
    assert listings == ["b"]
    assert listed(store) == literal_listing(root)
    assert store.fingerprint() != before


def test_new_and_vanished_identities_are_noticed(tmp_path: Path, listings: list[str]) -> None:
    root = make_tree(tmp_path / "faces", {"a": 2, "b": 2, "c": 3})
    FolderStore(root)
    for file in (root / "a").iterdir():
        file.unlink()
    (root / "a").rmdir()
    make_tree(root, {"d": 1})
    listings.clear()
    store = FolderStore(root)
    assert listed(store) == literal_listing(root)
    assert listings == ["d"]


def test_a_folder_that_just_changed_is_not_relied_on(tmp_path: Path, listings: list[str]) -> None:
    """A second change in the same tick of the clock would leave the same modification time."""
    root = make_tree(tmp_path / "faces", {"a": 2, "b": 2})
    now = time.time()
    os.utime(root / "a", (now, now))
    FolderStore(root)
    listings.clear()
    (root / "a" / "second.jpg").write_bytes(b"x")
    os.utime(root / "a", (now, now))
    assert listed(FolderStore(root)) == literal_listing(root)
    assert listings == ["a"]


@pytest.mark.parametrize("change", ["add", "remove"])
def test_times_that_were_put_back_hide_nothing(tmp_path: Path, listings: list[str], change: str) -> None:
    """As rsync -a, tar -x and cp -a leave them: a folder's modification time is the one it had elsewhere."""
    root = make_tree(tmp_path / "faces", {"a": 2, "b": 2})
    FolderStore(root)
    if change == "add":
        (root / "a" / "new.jpg").write_bytes(b"x")
    else:
        (root / "a" / "000.jpg").unlink()
    settle(root)
    listings.clear()
    assert listed(FolderStore(root)) == literal_listing(root)
    assert "a" in listings


def test_a_file_that_only_the_list_has(tmp_path: Path) -> None:
    """The message names the list: there are disks on which no time of a folder ever changes."""
    root = make_tree(tmp_path / "faces", {"a": 2, "b": 2})
    store = FolderStore(root)
    (root / "a" / "000.jpg").unlink()
    with pytest.raises(
        FacelitError, match=rf"000\.jpg: no such image file\. .*remove {root / INDEX_NAME}, and the folder is listed"
    ):
        store.encoded(0)
    (root / INDEX_NAME).unlink()
    assert listed(FolderStore(root)) == literal_listing(root)


def test_a_read_only_folder_is_indexed_in_the_cache(
    tmp_path: Path, listings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = make_tree(tmp_path / "faces", {"a": 2, "b": 2})
    root.chmod(0o555)  # for root too, who could write all the same
    FolderStore(root)
    assert not (root / INDEX_NAME).exists()
    assert len(list((tmp_path / "cache" / "facelit").iterdir())) == 1
    listings.clear()
    FolderStore(root)
    assert listings == []


def test_where_nothing_can_be_written_the_list_is_made_each_time(
    tmp_path: Path, listings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder can be made below a file")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    root = make_tree(tmp_path / "faces", {"a": 2, "b": 2})
    refuse_writing_to(root, monkeypatch)
    assert listed(FolderStore(root)) == listed(FolderStore(root)) == literal_listing(root)
    assert len(listings) == 4


def refuse_writing_to(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests may run as root, for whom no folder is read-only."""
    original = index_module.new_file

    def refuse(path: Path, schema: object) -> object:
        if path.parent == root:
            raise PermissionError(13, "Permission denied", path)
        return original(path, schema)

    monkeypatch.setattr(index_module, "new_file", refuse)


@pytest.mark.parametrize("damage", [b"", b"not arrow", None], ids=["empty", "text", "cut short"])
def test_a_damaged_index_is_made_anew(tmp_path: Path, damage: bytes | None) -> None:
    root = make_tree(tmp_path / "faces", {"a": 2, "b": 2})
    FolderStore(root)
    path = root / INDEX_NAME
    path.write_bytes(path.read_bytes()[:300] if damage is None else damage)
    assert listed(FolderStore(root)) == literal_listing(root)


def test_an_index_that_leads_out_of_the_folder_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data that comes from a stranger may bring an index along, with the right checksum."""
    monkeypatch.setattr(index_module, "_checksum", lambda index: b"0")
    root = make_tree(tmp_path / "faces", {"a": 1, "b": 1})
    FolderStore(root)
    data = (root / INDEX_NAME).read_bytes()
    assert data.count(b"000.jpg000.jpg") == 1
    (root / INDEX_NAME).write_bytes(data.replace(b"000.jpg000.jpg", b"../b.jpg/00.jp"))
    assert listed(FolderStore(root)) == literal_listing(root)


def test_a_slow_disk_is_listed_by_many_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting is shared out: 300 folders of 10 ms each are not listed one after the other."""
    root = make_tree(tmp_path / "faces", {f"p{number:03d}": 1 for number in range(300)})
    original, at_once, most = listing_module._list_folder, [0], [0]

    def slow(path: bytes) -> object:
        at_once[0] += 1
        most[0] = max(most[0], at_once[0])
        time.sleep(0.01)
        at_once[0] -= 1
        return original(path)

    monkeypatch.setattr(listing_module, "_list_folder", slow)
    assert listed(FolderStore(root)) == literal_listing(root)
    assert most[0] > 2


def test_memory_per_image(tmp_path: Path) -> None:
    """Arrays of a few bytes per image, mapped from the index; a pickled store is its path."""
    root = make_tree(tmp_path / "faces", {f"p{number:02d}": 100 for number in range(20)})
    store = FolderStore(root)
    index, kept = index_folder(root)
    assert kept == root / INDEX_NAME
    parts = (index.starts, index.images.offsets, index.images.blob, index.identities.blob, store.labels)
    assert sum(part.nbytes for part in parts) < 40 * len(store)
    assert (root / INDEX_NAME).stat().st_size < 40 * len(store)
    assert not index.images.blob.flags.owndata
    assert len(pickle.dumps(store)) < 500
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(store)).labels, store.labels)


def test_a_pickled_store_is_the_same_whatever_happens_to_the_folder(tmp_path: Path) -> None:
    """A worker that is not forked must not list anew: its rows would be other images than its parent's."""
    root = make_tree(tmp_path / "faces", {"a": 2, "b": 2, "c": 2})
    store = FolderStore(root)
    before, data = listed(store), pickle.dumps(store)
    (root / "a" / "0000.jpg").write_bytes(b"x")
    assert listed(pickle.loads(data)) == before
    FolderStore(root)  # another program lists the folder, and replaces the list
    with pytest.raises(FacelitError, match="has changed since this program listed it"):
        pickle.loads(data)


def test_the_newest_list_counts(tmp_path: Path, listings: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """One in the folder, which is read-only and has changed since; one in the cache that is true."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = make_tree(tmp_path / "faces", {"a": 2, "b": 2})
    FolderStore(root)
    os.utime(root / INDEX_NAME, (OLD, OLD))
    (root / "a" / "new.jpg").write_bytes(b"x")
    os.utime(root / "a", (OLD + 1, OLD + 1))
    time.sleep(0.06)
    root.chmod(0o555)
    FolderStore(root)
    listings.clear()
    assert listed(FolderStore(root)) == literal_listing(root)
    assert listings == []


def test_the_second_start_on_a_slow_disk_is_shared_out_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_tree(tmp_path / "faces", {f"p{number:03d}": 1 for number in range(300)})
    FolderStore(root)
    at_once, most = [0], [0]

    def slow(path: bytes) -> tuple[int, int]:
        at_once[0] += 1
        most[0] = max(most[0], at_once[0])
        time.sleep(0.01)
        at_once[0] -= 1
        return os.stat(path).st_mtime_ns, os.stat(path).st_ctime_ns

    monkeypatch.setattr(listing_module, "_times_ns", slow)
    FolderStore(root)
    assert most[0] > 2


def test_without_a_home_there_is_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(index_module.Path, "home", no_home)
    root = make_tree(tmp_path / "faces", {"a": 2, "b": 2})
    root.chmod(0o555)
    assert listed(FolderStore(root)) == literal_listing(root)


def test_a_root_that_is_no_utf_8(tmp_path: Path) -> None:
    root = make_tree(tmp_path / os.fsdecode(b"caf\xe9"), {"a": 2, "b": 2})
    assert listed(FolderStore(root)) == listed(FolderStore(root)) == literal_listing(root)
    assert (root / INDEX_NAME).is_file()


def two_levels(root: Path) -> Path:
    make_tree(root / "F1", {"MID2": 1, "MID10": 2})
    make_tree(root / "F.1", {"MID1": 1})
    make_tree(root / "F2", {"empty": 0})
    settle(root)
    return root


def test_identities_of_two_folders(tmp_path: Path, listings: list[str]) -> None:
    root = two_levels(tmp_path / "fiw")
    store = FolderStore(root, identity_depth=2)
    # By the plainest code; bytes sort as "." < "/".
    files = sorted((path.relative_to(root) for path in root.glob("*/*/*.jpg")), key=lambda p: str(p.parent))
    assert [store.name(row) for row in range(len(store))] == list(map(str, files))
    assert store.identities == ["F.1/MID1", "F1/MID10", "F1/MID2"]
    assert store.labels.tolist() == [0, 1, 1, 2]
    assert store.encoded(3) == b"MID20"
    assert store.place(3) == str(root / "F1" / "MID2" / "000.jpg")
    listings.clear()
    assert listed_names(FolderStore(root, 2)) == listed_names(store)
    assert listings == []
    (root / "F1" / "MID2" / "new.jpg").write_bytes(b"x")
    make_tree(root / "F2", {"MID1": 1})
    listings.clear()
    assert "F1/MID2/new.jpg" in listed_names(FolderStore(root, 2))
    assert sorted(listings) == ["MID1", "MID2"]


def listed_names(store: FolderStore) -> list[str]:
    return [store.name(row) for row in range(len(store))]


def test_the_kept_list_of_one_depth_is_not_another_s(tmp_path: Path) -> None:
    root = two_levels(tmp_path / "fiw")
    assert len(FolderStore(root, 2)) == 4
    assert len(FolderStore(root)) == 0
    deep, flat = root / ".facelit-index-2.arrow", root / INDEX_NAME
    flat.write_bytes(deep.read_bytes())
    assert len(FolderStore(root)) == 0
    deep.write_bytes(flat.read_bytes())
    assert len(FolderStore(root, 2)) == 4
    for depth in (1, 3):
        with pytest.raises(ValueError, match="leads elsewhere"):
            index_module.read_index(deep, depth)
    again = pickle.loads(pickle.dumps(FolderStore(root, 2)))
    assert listed_names(again) == listed_names(FolderStore(root, 2))


def test_images_above_the_identities_are_told(tmp_path: Path) -> None:
    root = two_levels(tmp_path / "fiw")
    (root / "F1" / "family.jpg").write_bytes(b"x")
    with pytest.raises(FacelitError, match=r"fiw/F1: 1 image\(s\).*family\.jpg.*identity_depth"):
        FolderStore(root, 2)
    with pytest.raises(FacelitError, match="option identity_depth: at least 1"):
        FolderStore(root, 0)


def test_slips(tmp_path: Path) -> None:
    with pytest.raises(FacelitError, match="folder not found"):
        FolderStore(tmp_path / "absent")
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(FacelitError, match="is a file"):
        FolderStore(tmp_path / "file")
    (tmp_path / "loose.jpg").write_bytes(b"x")
    with pytest.raises(FacelitError, match=r"loose\.jpg.*subfolder"):
        FolderStore(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list any folder")
def test_an_unreadable_identity_is_named(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "faces", {"a": 1, "b": 1})
    (root / "b").chmod(0)
    try:
        with pytest.raises(FacelitError, match=r"faces/b: cannot list"):
            FolderStore(root)
    finally:
        (root / "b").chmod(stat.S_IRWXU)


@pytest.mark.parametrize(
    ("suffix", "form"), [("JFIF", "JPEG"), ("jpe", "JPEG"), ("bmp", "BMP"), ("tif", "TIFF"), ("ppm", "PPM")]
)
def test_crops_of_unusual_kinds_are_in_the_set(tmp_path: Path, suffix: str, form: str) -> None:
    """They were passed over without a word, and their people with them."""
    (tmp_path / "ann").mkdir()
    Image.new("RGB", (112, 112), (200, 100, 50)).save(tmp_path / "ann" / f"1.{suffix}", form)
    store = FolderStore(tmp_path)
    assert listed(store) == [("ann", f"1.{suffix}")]
    np.testing.assert_allclose(decode_crop(store.encoded(0), store.place(0))[56, 56], (200, 100, 50), atol=3)


def test_a_pipe_and_a_folder_are_no_images(tmp_path: Path) -> None:
    """To read from a pipe would take until somebody writes to it."""
    (tmp_path / "ann" / "2.jpg").mkdir(parents=True)
    os.mkfifo(tmp_path / "ann" / "1.jpg")
    (tmp_path / "ann" / "0.jpg").symlink_to(tmp_path / "nowhere.jpg")
    store = FolderStore(tmp_path)
    for row, reason in enumerate(("no such image file", "it is not a file", "it is not a file|Is a directory")):
        with pytest.raises(BadImageError, match=reason):
            store.encoded(row)
