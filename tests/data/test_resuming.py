"""What a resumed run compares: the training set's fingerprint, and the names of what changed."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from facelit.data import IdentityFolder, SyntheticFaces
from facelit.data.resuming import differences, fingerprint
from facelit.storage.packing import pack


@pytest.fixture
def crops(tmp_path: Path) -> Path:
    root = tmp_path / "crops"
    for name in ("ann", "bob", "eve"):
        (root / name).mkdir(parents=True)
        for number in range(2):
            Image.fromarray(np.full((112, 112, 3), 9, np.uint8)).save(root / name / f"{number}.png")
    return root


@pytest.mark.parametrize(
    "change",
    [
        lambda root: (root / "ann" / "0.png").rename(root / "ann" / "2.png"),
        lambda root: (root / "ann").rename(root / "amy"),
        lambda root: (root / "ann" / "0.png").unlink(),
        lambda root: shutil.copytree(root / "eve", root / "zoe"),
    ],
    ids=["image renamed", "identity renamed", "image gone", "identity more"],
)
def test_a_changed_folder_has_another_fingerprint(crops: Path, change: Callable[[Path], object]) -> None:
    before = fingerprint(IdentityFolder(crops))
    assert fingerprint(IdentityFolder(crops)) == before
    change(crops)
    assert fingerprint(IdentityFolder(crops)) != before


def test_so_has_another_selection(crops: Path, tmp_path: Path) -> None:
    found = []
    for name in ("ann", "bob"):
        (tmp_path / name).write_text(name)
        found.append(fingerprint(IdentityFolder(crops, exclude_identities=str(tmp_path / name))))
    assert len({*found, fingerprint(IdentityFolder(crops))}) == 3


def test_a_pack_counts_as_its_source(crops: Path, tmp_path: Path) -> None:
    folder = IdentityFolder(crops)
    pack(folder.store, tmp_path / "packed", jobs=1)
    assert fingerprint(IdentityFolder(tmp_path / "packed")) == fingerprint(folder)


def test_sources_without_files() -> None:
    one, same, other = (fingerprint(SyntheticFaces(count, 3)) for count in (4, 4, 5))
    assert one == same != other


def test_differences() -> None:
    """What only one of them has is not compared: a version may know more than another."""
    assert differences({"seed": 1, "new": 2}, {"seed": 1, "old": 3}) == ""
    assert differences({"seed": 1, "size": 2}, {"seed": 3, "size": 4}) == "seed 1 instead of 3, size 2 instead of 4"
