"""Which files are photos, and which of them can be read here.

A training set's images are JPEG, PNG or WebP (`facelit.storage.images`). People's photos are whatever their cameras, phones and
browsers have written: everything that Pillow reads counts, and what looks like a photo but cannot be read is told, not passed over.
"""

from __future__ import annotations

import os
from functools import cache
from importlib import import_module
from pathlib import Path

from PIL import Image, features

from facelit.storage.walking import files_below

_FORMATS = {
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".mpo"), "JPEG"),
    **dict.fromkeys((".png", ".apng"), "PNG"),
    **dict.fromkeys((".tif", ".tiff"), "TIFF"),
    **dict.fromkeys((".bmp", ".dib"), "BMP"),
    **dict.fromkeys((".ppm", ".pgm", ".pnm"), "PPM"),
    **dict.fromkeys((".jp2", ".j2k"), "JPEG2000"),
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


def photo_files(root: Path) -> list[Path]:
    """All photos below `root`; see `facelit.storage.walking.files_below`."""
    return files_below(root, is_photo)


def why_unreadable(filename: str) -> str:
    """Why photos with such a name cannot be read here, for messages; empty if they can."""
    suffix = os.path.splitext(filename)[1].lower()
    if suffix in _CLOSED:
        return f"{_CLOSED[suffix]} ({suffix}), which is not read: convert it to JPEG or PNG"
    return _why_unreadable(_FORMATS.get(suffix, "JPEG"))


def why_unidentified(data: bytes) -> str:
    """What to say about a file that is none of `readable_formats`."""
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
    if name in _CODECS and not features.check(_CODECS[name]):
        return False
    try:
        module = import_module(_PLUGINS[name])
        if name == "HEIF":
            module.register_heif_opener()
    except ImportError:
        return False
    return name in Image.OPEN
