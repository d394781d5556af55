"""Every file below a folder, once, whatever links there are; and no folder passed over in silence."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from facelit.align.photo_tree import list_photos
from facelit.check.ignored import find_ignored
from facelit.errors import FacelitError
from facelit.inference.enrolment import list_people
from facelit.storage import walking
from facelit.storage.folder import FolderStore
from facelit.storage.images import list_images
from facelit.storage.photo_files import photo_files
from facelit.storage.walking import files_below


def tree(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def relative(root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in list_images(root)]


def test_order(tmp_path: Path) -> None:
    names = ["0.jpg", "z.jpg", "a/1.jpg", "a/2.png", "a-b/1.jpg", "a/x/1.webp", "b/1.jpg"]
    tree(tmp_path, *names, ".hidden/1.jpg", "a/._1.jpg", "a/notes.txt")
    by_walk = [
        os.path.relpath(os.path.join(folder, file), tmp_path)
        for folder, subfolders, files in os.walk(tmp_path)
        if not subfolders.sort() and "hidden" not in folder
        for file in sorted(files)
        if file.endswith(("jpg", "png", "webp")) and not file.startswith(".")
    ]
    assert relative(tmp_path) == by_walk
    assert len(by_walk) == len(names)


@pytest.mark.parametrize("name", ["@eaDir", "__MACOSX", "#recycle", "$RECYCLE.BIN", "lost+found", ".AppleDouble"])
def test_folders_that_systems_make_are_nobody_s(tmp_path: Path, name: str) -> None:
    """Thumbnails became a person of their own, deleted photos came back, and a gallery missed the photos of a person `__MACOSX`."""
    tree(tmp_path, "a/1.jpg", f"{name}/x.jpg", f"{name}/a/1.jpg", f"a/{name}/1.jpg")
    assert relative(tmp_path) == ["a/1.jpg"]
    assert photo_files(tmp_path) == [tmp_path / "a" / "1.jpg"]
    assert list(list_photos(tmp_path).stems) == ["a/1.jpg"]
    assert list(FolderStore(tmp_path).identities) == ["a"]
    assert [str(person) for person in list_people(tmp_path)] == ["a"]
    ignored = find_ignored(tmp_path)
    assert (ignored.subfolders, ignored.empty, len(ignored.files)) == ([], [], 0)


@pytest.mark.parametrize("target", [".", "..", "a", "../other"])
def test_links_add_nothing_twice(tmp_path: Path, target: str) -> None:
    """`latest -> .` gave 164 embeddings of 4 crops."""
    root = tree(tmp_path / "crops", "a/1.jpg", "b/1.jpg", "b/2.jpg", "c.jpg")
    tree(tmp_path / "other", "9.jpg")
    (root / "0-latest").symlink_to(target, target_is_directory=True)
    found = list_images(root)
    assert (
        len(found) == len({path.resolve() for path in found}) == (5 if "other" in str(target) or target == ".." else 4)
    )
    assert {"a/1.jpg", "b/1.jpg", "b/2.jpg", "c.jpg"} <= set(relative(root))
    for path in photo_files(root), list(list_photos(root).stems):
        assert len(path) == len(found)


def test_two_links_at_each_other(tmp_path: Path) -> None:
    tree(tmp_path, "crops/a/1.jpg", "other/2.jpg")
    (tmp_path / "crops" / "there").symlink_to(tmp_path / "other")
    (tmp_path / "other" / "back").symlink_to(tmp_path / "crops")
    assert relative(tmp_path / "crops") == ["a/1.jpg", "there/2.jpg"]


@pytest.mark.parametrize("reader", [list_images, photo_files, list_photos, list_people])
def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reader) -> None:
    root = tree(tmp_path, "a/1.jpg", "b/1.jpg")
    original = os.scandir

    def closed(folder: Path) -> object:
        if Path(folder).name == "b":
            raise PermissionError(13, "Permission denied", str(folder))
        return original(folder)

    monkeypatch.setattr(walking.os, "scandir", closed)
    with pytest.raises(FacelitError, match=r"/b: cannot list this folder \(Permission denied\)"):
        reader(root)


def test_no_folder(tmp_path: Path) -> None:
    assert files_below(tmp_path / "absent", lambda entry: True) == []
