"""One flipped bit anywhere in a pack or an index: an error, or nothing that anybody reads is another; never other data."""

import shutil
from pathlib import Path

import pytest
from PIL import Image

from facelit.check.scan import scan_images
from facelit.errors import FacelitError
from facelit.storage import folder_listing as listing_module
from facelit.storage.folder import FolderStore
from facelit.storage.folder_index import INDEX_NAME
from facelit.storage.images import BadImageError
from facelit.storage.packed import IDENTITIES, MANIFEST, PackedStore, shard_path
from facelit.storage.packing import pack, verify
from flipped_bits import flip_bits


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    for identity in range(3):
        for number in range(4):
            path = tmp_path / "faces" / f"person_{identity}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (112, 112), (80 * identity, 60 * number, 9)).save(path)
    return tmp_path / "faces"


def everything(store: PackedStore) -> list[object]:
    rows = range(len(store))
    return [*store.identities, *((store.labels[row], store.name(row), store.encoded(row)) for row in rows)]


@pytest.mark.parametrize("file", ["shard-00000.arrow", MANIFEST, IDENTITIES])
def test_packs(faces: Path, tmp_path: Path, file: str) -> None:
    folder = tmp_path / "packed"
    packed = pack(FolderStore(faces), folder)
    before, labels = everything(packed), packed.labels.tolist()
    unseen, unseen_labels, seen = [], [], 0
    for position in flip_bits(folder / file, 400):
        try:
            store = PackedStore(folder)
            unseen_labels += [position] if store.labels.tolist() != labels else []
            store.fingerprint()
            unseen += [position] if everything(store) != before else []
        except FacelitError:
            seen += 1
    assert (unseen, unseen_labels) == ([], [])
    assert seen > 100


def test_a_changed_image_is_named_and_mended(faces: Path, tmp_path: Path) -> None:
    folder = tmp_path / "packed"
    packed = pack(FolderStore(faces), folder)
    path, image = shard_path(folder, 0), packed.encoded(5)
    at = path.read_bytes().index(image) + len(image) // 2
    whole = bytearray(path.read_bytes())
    whole[at] ^= 1
    path.write_bytes(whole)
    damaged = PackedStore(folder)
    with pytest.raises(BadImageError, match=r"row 5 \(person_1/1.png\): its bytes are not those that were packed"):
        damaged.encoded(5)
    assert scan_images(damaged).reasons == {5: "its bytes are not those that were packed (wrong checksum)"}
    assert verify(damaged) == [f"{path}, row 5 (person_1/1.png): the checksum is wrong"]
    with pytest.raises(FacelitError, match="wrong checksum"):
        pack(damaged, tmp_path / "again")
    mended = pack(FolderStore(faces), folder)
    assert mended.encoded(5) == image
    assert verify(mended) == []


def test_damaged_names_are_seen_and_mended(faces: Path, tmp_path: Path) -> None:
    folder = tmp_path / "packed"
    pack(FolderStore(faces), folder)
    path = shard_path(folder, 0)
    path.write_bytes(path.read_bytes().replace(b"person_1/1.png", b"person_0/1.png"))
    with pytest.raises(FacelitError, match=r"shard-00000\.arrow: its names are not those that were packed"):
        PackedStore(folder).fingerprint()
    assert verify(PackedStore(folder)) == [f"{path}: the checksum of its names is wrong"]
    assert verify(pack(FolderStore(faces), folder)) == []


def test_damaged_identities_are_seen_and_mended(faces: Path, tmp_path: Path) -> None:
    folder = tmp_path / "packed"
    pack(FolderStore(faces), folder)
    path = folder / IDENTITIES
    path.write_bytes(path.read_bytes().replace(b"person_0", b"person_9"))
    with pytest.raises(FacelitError, match=r"identities\.arrow: its names are not those that were packed"):
        PackedStore(folder)
    assert list(pack(FolderStore(faces), folder).identities) == ["person_0", "person_1", "person_2"]


def test_packs_of_an_earlier_facelit_open(faces: Path, tmp_path: Path) -> None:
    folder = tmp_path / "packed"
    packed = pack(FolderStore(faces), folder)
    packed.manifest._replace(checksums=(), identity_checksum=None).write(folder)
    assert everything(PackedStore(folder)) == everything(packed)
    assert verify(PackedStore(folder)) == []


def test_an_index_with_a_flipped_bit_is_made_anew(faces: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing_module, "_RACY_NS", 0)  # what has just been written is relied on
    monkeypatch.setattr(listing_module, "_CHANGE_TICK_NS", 0)
    before = FolderStore(faces)
    listed = [(before.name(row), int(before.labels[row])) for row in range(len(before))]
    index = faces / INDEX_NAME
    kept, written = index.read_bytes(), index.stat().st_mtime_ns
    FolderStore(faces)
    assert index.stat().st_mtime_ns == written, "it is not what is read"
    unseen = []
    for position in flip_bits(index, 400):
        store = FolderStore(faces)
        if [(store.name(row), int(store.labels[row])) for row in range(len(store))] != listed:
            unseen.append(position)
    assert unseen == []
    shutil.rmtree(faces / "person_1")
    assert len(FolderStore(faces)) == 8
    assert index.read_bytes() != kept
