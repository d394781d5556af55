"""Which files are photos, and what their crops are called."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from facelit.align.photo_tree import list_photos
from facelit.errors import FacelitError


def make(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    return root


def test_names_are_kept(tmp_path: Path) -> None:
    make(
        tmp_path, "b/2.PNG", "b/1.jpeg", "a/deep/er/x.y.webp", "loose.jpg", "b/notes.txt", "b/._1.jpg", ".hidden/3.jpg"
    )
    assert list_photos(tmp_path).stems == {
        "loose.jpg": "loose",
        "a/deep/er/x.y.webp": "a/deep/er/x.y",
        "b/1.jpeg": "b/1",
        "b/2.PNG": "b/2",
    }


def test_photos_that_differ_in_their_suffix_keep_it(tmp_path: Path) -> None:
    make(tmp_path, "a/1.jpg", "a/1.png", "a/2.png", "b/1.jpg")
    assert list_photos(tmp_path).stems == {
        "a/1.jpg": "a/1.jpg",
        "a/1.png": "a/1.png",
        "a/2.png": "a/2",
        "b/1.jpg": "b/1",
    }


def test_names_that_would_clash(tmp_path: Path) -> None:
    make(tmp_path, "a/1.jpg", "a/1_face2.jpg")
    assert len(list_photos(tmp_path).stems) == 2
    with pytest.raises(FacelitError, match=r"1_face2.jpg: its crop could have the name of a crop of a/1.jpg"):
        list_photos(tmp_path, several_crops=True)
    make(tmp_path / "other", "1.jpg", "1.png", "1.jpg.webp")
    with pytest.raises(FacelitError, match="Rename one"):
        list_photos(tmp_path / "other")


def test_folders_without_photos(tmp_path: Path) -> None:
    with pytest.raises(FacelitError, match="no photos here"):
        list_photos(tmp_path)
    with pytest.raises(FacelitError, match="folder not found"):
        list_photos(tmp_path / "absent")


def test_a_folder_that_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "a/1.jpg", "b/2.jpg")
    listed = os.scandir

    def refuse(path: str) -> object:
        if os.fspath(path).endswith("b"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(FacelitError, match=r"b: cannot list this folder \(Permission denied\)"):
        list_photos(tmp_path)


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    make(tmp_path, "photos/a/1.jpg", "elsewhere/2.jpg")
    (tmp_path / "photos" / "b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "photos" / "a" / "round").symlink_to(tmp_path / "photos")
    assert set(list_photos(tmp_path / "photos").stems) == {"a/1.jpg", "b/2.jpg"}


def test_photos_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    make(tmp_path, "a/1.jpg", "a/1.CR2", "b/2.jfif", "c/3.nef")
    tree = list_photos(tmp_path)
    assert tree.stems == {"a/1.jpg": "a/1", "b/2.jfif": "b/2"}
    assert list(tree.unreadable) == ["a/1.CR2", "c/3.nef"]
    assert "raw file" in tree.unreadable["c/3.nef"]
    make(tmp_path / "raw", "3.nef")
    with pytest.raises(FacelitError, match=r"no photos here that can be read, for example 3\.nef: a camera's raw file"):
        list_photos(tmp_path / "raw")
