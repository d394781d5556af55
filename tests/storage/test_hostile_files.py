"""Pairs files and folders that somebody has made up: one line, and nothing outside the folder is read."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from facelit.errors import FacelitError
from facelit.storage.folder import FolderStore
from facelit.storage.images import list_images
from facelit.storage.pairs_file import read_pairs
from facelit.storage.people import read_people


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a\t\u00b2\t2", r"line 2: expected the genuine pair `name i j`, found 'a\\t\u00b2\\t2'"),
        (f"a\t1\t{'9' * 5000}", r"line 2: expected the genuine pair `name i j`, found 'a\\t1\\t999"),
        ("../../etc\t1\t2", r"line 2: '\.\./\.\./etc' is not a folder's name"),
        ("..\t1\t2", r"line 2: '\.\.' is not a folder's name"),
        ("/etc\t1\t2", r"line 2: '/etc' is not a folder's name"),
        ("a\0b\t1\t2", r"not a text file"),
    ],
)
def test_rows_of_pairs(tmp_path: Path, row: str, message: str) -> None:
    path = tmp_path / "pairs.txt"
    path.write_text(f"1\t1\n{row}\na\t1\tb\t1\n", encoding="utf-8")
    with pytest.raises(FacelitError, match=message) as raised:
        read_pairs(path)
    assert len(str(raised.value)) < 300


def test_the_second_name_of_a_pair(tmp_path: Path) -> None:
    path = tmp_path / "pairs.txt"
    path.write_text("1\t1\na\t1\t2\na\t1\t../b\t1\n", encoding="utf-8")
    with pytest.raises(FacelitError, match=r"line 3: '\.\./b' is not a folder's name"):
        read_pairs(path)


@pytest.mark.parametrize("header", ["\u00b2 3", "9" * 5000, f"1 {'9' * 5000}"])
def test_headers_of_pairs(tmp_path: Path, header: str) -> None:
    path = tmp_path / "pairs.txt"
    path.write_text(f"{header}\na\t1\t2\n", encoding="utf-8")
    with pytest.raises(FacelitError, match=r"line 1: expected the number of folds") as raised:
        read_pairs(path)
    assert len(str(raised.value)) < 350 + len(str(path))


def test_counts_of_people(tmp_path: Path) -> None:
    path = tmp_path / "people.txt"
    path.write_text(f"2\n1\nname\t1\n{'9' * 5000}\nname\t1\n", encoding="utf-8")
    with pytest.raises(FacelitError, match="expected a fold's number of people, found '999") as raised:
        read_people(path)
    assert len(str(raised.value)) < 400


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """A folder of one identity; pytest could not remove what the tests make of it."""
    (tmp_path / "root" / "person").mkdir(parents=True)
    Image.new("RGB", (112, 112)).save(tmp_path / "root" / "person" / "0.png")
    yield tmp_path / "root"
    subprocess.run(["rm", "-rf", str(tmp_path / "root")], check=True)


def make_deep(root: Path, depth: int) -> None:
    """Folders within each other, deeper than a path may be long."""
    here = os.open(root, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("deeper", dir_fd=here)
        inner = os.open("deeper", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)


@pytest.mark.parametrize("depth", [500, 1000])
def test_deep_folders(root: Path, depth: int) -> None:
    make_deep(root / "person", depth)
    assert len(FolderStore(root)) == 1
    if depth == 500:
        assert list_images(root) == [root / "person" / "0.png"]
    else:  # 7,000 characters
        with pytest.raises(FacelitError, match=r"cannot list this folder \(File name too long\)"):
            list_images(root)


def test_links_to_themselves(root: Path) -> None:
    for link in (root / "loop", root / "person" / "loop", root / "person" / "loop.png"):
        link.symlink_to(link)
    (root / "person" / "up").symlink_to(root)
    assert list_images(root) == [root / "person" / "0.png", root / "person" / "loop.png"]
    with pytest.raises(FacelitError, match="folder not found"):
        FolderStore(root / "loop")
    store = FolderStore(root)
    assert [store.name(row) for row in range(len(store))] == ["person/0.png", "person/loop.png"]
    with pytest.raises(FacelitError, match=r"loop\.png: cannot read this image \(Too many levels of symbolic links\)"):
        store.encoded(1)
