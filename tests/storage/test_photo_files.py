"""Which files count as photos, and what is said about those that cannot be read."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from facelit.storage import photo_files as module
from facelit.storage.photo_files import (
    find_photos,
    is_photo,
    photo_files,
    readable_formats,
    why_unidentified,
    why_unreadable,
)


@pytest.fixture(autouse=True)
def _asked_anew() -> Iterator[None]:
    readable_formats.cache_clear()
    yield
    readable_formats.cache_clear()


def test_names_of_photos() -> None:
    for name in (
        "a.jpg",
        "a.JPE",
        "a.jfif",
        "a.heic",
        "a.AVIF",
        "a.tiff",
        "a.b.gif",
        "a.bmp",
        "a.CR2",
        "a.psd",
        "a.jxl",
    ):
        assert is_photo(name), name
    for name in ("a.txt", "a", "._a.jpg", ".jpg", "a.mp4", "a.npz", "a.zip"):
        assert not is_photo(name), name


def test_files_below_a_folder(tmp_path: Path) -> None:
    for name in ("b/2.jfif", "b/1.HEIC", "a/x/3.nef", "0.gif", "a/notes.txt", ".hidden/4.jpg", "a/._3.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = [path.relative_to(tmp_path).as_posix() for path in photo_files(tmp_path)]
    assert found == ["0.gif", "a/x/3.nef", "b/1.HEIC", "b/2.jfif"]


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000"])
def test_photos_are_known_by_their_content(tmp_path: Path, form: str) -> None:
    """As browsers, mail programs and phones leave them."""
    if form not in readable_formats():
        pytest.skip(f"this Pillow has no {form}")
    names = ["Cy.jpg_large", "IMG_0001", "k.JPG ", "m.jpg.part"]
    for name in names:
        Image.new("RGB", (8, 8), "red").save(tmp_path / name, form)
    Image.new("RGB", (8, 8)).save(tmp_path / ".hidden", form)
    (tmp_path / "film.mp4").write_bytes(b"\0\0\0\x18ftypisom" + bytes(50))
    (tmp_path / "BMW.txt").write_text("BMW, Mini and others")
    (tmp_path / "empty").touch()
    os.mkfifo(tmp_path / "pipe")  # to open it would hang
    photos, others = find_photos(tmp_path)
    assert [path.name for path in photos] == sorted(names)
    assert [path.name for path in others] == ["BMW.txt", "empty", "film.mp4", "pipe"]


def test_what_cannot_be_read_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.setitem(sys.modules, "pillow_jxl", None)
    monkeypatch.setattr(module.features, "check", lambda name: name != "avif")
    assert why_unreadable("a/b.HEIC") == "HEIC needs a plugin for Pillow: pip install pillow-heif"
    assert why_unreadable("b.jxl") == "JPEG XL needs a plugin for Pillow: pip install pillow-jxl-plugin"
    assert why_unreadable("b.avif") == "this Pillow cannot read AVIF: pip install --upgrade pillow"
    assert why_unreadable("b.CR2") == "a camera's raw file (.cr2), which is not read: convert it to JPEG or PNG"
    for name in ("b.jpg", "b.JFIF", "b.tiff", "b.gif", "b.unknown", "b"):
        assert why_unreadable(name) == ""
    assert why_unidentified(b"\0\0\0\x18ftypheic") == why_unreadable("a.heic")
    assert why_unidentified(b"\0\0\0\x18ftypavif") == why_unreadable("a.avif")
    assert "git lfs pull" in why_unidentified(b"version https://")
    assert why_unidentified(b"<!DOCTYPE html>\n") == "not an image, but a web page, or other XML: download it again"
    assert why_unidentified(b"hello") == "not an image, or of an unknown format"


def test_every_format_that_is_promised_is_known_to_pillow() -> None:
    assert {"JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM"} <= set(readable_formats())
    assert set(readable_formats()) <= set(Image.OPEN)
    assert "EPS" not in readable_formats()
    assert set(module._FORMATS.values()) == set(module._PLUGINS)
