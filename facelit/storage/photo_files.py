"""Which files are photos, and which of them can be read here.

A training set's images are JPEG, PNG or WebP (`facelit.storage.images`). People's photos are whatever their cameras, phones and
browsers have written, under whatever name: what ends or begins as a photo does counts, and what cannot be read is told, not passed over.
"""

from __future__ import annotations

import os
import warnings
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from PIL import Image, features

from facelit.storage.downloads import left_by_download
from facelit.storage.walking import files_below

_FORMATS = {
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".mpo"), "JPEG"),
    **dict.fromkeys((".png", ".apng"), "PNG"),
    **dict.fromkeys((".tif", ".tiff"), "TIFF"),
    **dict.fromkeys((".bmp", ".dib"), "BMP"),
    **dict.fromkeys((".ppm", ".pgm", ".pnm"), "PPM"),
    **dict.fromkeys((".jp2", ".j2k", ".jpx", ".jpf", ".j2c", ".jpc"), "JPEG2000"),
    **dict.fromkeys((".avif", ".avifs"), "AVIF"),
    **dict.fromkeys((".heic", ".heif", ".heics", ".heifs", ".hif"), "HEIF"),
    ".webp": "WEBP",
    ".gif": "GIF",
    ".jxl": "JXL",
}
"""Pillow's formats by what a file's name ends in."""

_PLUGINS = {
    "JPEG": "PIL.JpegImagePlugin",
    "PNG": "PIL.PngImagePlugin",
    "WEBP": "PIL.WebPImagePlugin",
    "TIFF": "PIL.TiffImagePlugin",
    "BMP": "PIL.BmpImagePlugin",
    "PPM": "PIL.PpmImagePlugin",
    "GIF": "PIL.GifImagePlugin",
    "JPEG2000": "PIL.Jpeg2KImagePlugin",
    "AVIF": "PIL.AvifImagePlugin",
    "HEIF": "pillow_heif",
    "JXL": "pillow_jxl",
}
"""Modules that teach Pillow each format. Its others are not tried on a stranger's file."""

_CODECS = {"WEBP": "webp", "JPEG2000": "jpg_2000", "AVIF": "avif"}
"""Formats that Pillow may have been built without."""

_STARTS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51")
"""How JPEG, PNG, GIF, TIFF and JPEG 2000 begin."""
_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
"""What follows `ftyp` in AVIF and HEIF; a film's are others."""

_RAW = (".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".rw2", ".raf", ".pef", ".srw")
_CLOSED = dict.fromkeys(_RAW, "a camera's raw file") | {
    ".psd": "a Photoshop file",
    ".svg": "a drawing",
    ".eps": "a drawing",
}
"""Files that look like photos and are never read. Raw files open as TIFF, but as a thumbnail."""

_WAYS_OUT = {
    "HEIF": "HEIC needs a plugin for Pillow: pip install pillow-heif",
    "JXL": "JPEG XL needs a plugin for Pillow: pip install pillow-jxl-plugin",
}


def is_photo(filename: str) -> bool:
    """Whether a name ends as a photo's does, in any case, whether it can be read or not; hidden files are not photos."""
    suffix = os.path.splitext(filename)[1].lower()
    return not filename.startswith(".") and (suffix in _FORMATS or suffix in _CLOSED)


def begins_as_photo(path: str | os.PathLike[str]) -> bool:
    """Whether a file's first bytes are a photo's: browsers, mail and phones leave some as `x.jpg_large`, `x.jpg.download` or without a suffix."""
    try:
        with open(path, "rb", buffering=0) as file:
            data = file.read(16)
    except OSError:
        return False
    if data[4:8] == b"ftyp":
        return data[8:12] in _BRANDS
    is_windows_s = data.startswith(b"BM") and data[6:10] == bytes(4)
    return is_windows_s or (data.startswith(b"RIFF") and data[8:12] == b"WEBP") or data.startswith(_STARTS)


class Found(NamedTuple):
    """The files below a folder: photos, by name or by content, and the others; hidden ones are neither."""

    photos: list[Path]
    others: list[Path]


def find_photos(root: Path) -> Found:
    """All files below `root`; see `facelit.storage.walking.files_below`. Opens those whose names are not a photo's."""
    others: list[Path] = []

    def is_wanted(entry: os.DirEntry[str]) -> bool:
        if entry.name.startswith("."):
            return False
        is_one = is_photo(entry.name) or (entry.is_file() and begins_as_photo(entry.path))
        if not is_one:
            others.append(Path(entry.path))
        return is_one

    return Found(files_below(root, is_wanted), sorted(others))


def photo_files(root: Path) -> list[Path]:
    """All photos below `root`; see `find_photos`."""
    return find_photos(root).photos


def why_unreadable(filename: str) -> str:
    """Why photos with such a name cannot be read here, for messages; empty if they can."""
    suffix = os.path.splitext(filename)[1].lower()
    if suffix in _CLOSED:
        return f"{_CLOSED[suffix]} ({suffix}), which is not read: convert it to JPEG or PNG"
    return _why_unreadable(_FORMATS.get(suffix, "JPEG"))


def why_unidentified(data: bytes) -> str:
    """What to say about a file that is none of `readable_formats`."""
    if found := left_by_download(data):
        return f"not an image, but {found}"
    brand = data[8:12] if data[4:8] == b"ftyp" else b""
    kind = {b"avif": "AVIF", b"avis": "AVIF"}.get(brand, "HEIF" if brand else "")
    return (kind and _why_unreadable(kind)) or "not an image, or of an unknown format"


@cache
def readable_formats() -> tuple[str, ...]:
    """The formats that Pillow reads here, among those that photos have, by Pillow's names."""
    return tuple(name for name in _PLUGINS if _load(name))


def _why_unreadable(name: str) -> str:
    if name in readable_formats():
        return ""
    return _WAYS_OUT.get(name, f"this Pillow cannot read {name}: pip install --upgrade pillow")


def _load(name: str) -> bool:
    """Makes a format known to Pillow, if it can be."""
    if codec := _CODECS.get(name):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a Pillow that has never heard of it says so
            if not features.check(codec):
                return False
    try:
        module = import_module(_PLUGINS[name])
        if name == "HEIF":
            module.register_heif_opener()
    except ImportError:
        return False
    return name in Image.OPEN
