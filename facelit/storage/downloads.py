"""What a download leaves in place of a file that it did not fetch."""

from __future__ import annotations

import os

_BEGINNINGS = {
    b"<": "a web page, or other XML",
    b"version https://": "a pointer of Git LFS, whose file `git lfs pull` fetches",
}


def left_by_download(content: bytes) -> str:
    """Says what a binary file's first 16 bytes or more belong to: a web page, or Git LFS's pointer. Empty where it is neither."""
    start = content.lstrip()
    return next((what for beginning, what in _BEGINNINGS.items() if start.startswith(beginning)), "")


def why_not_downloaded(path: str | os.PathLike[str]) -> str:
    """What to say where a file is in truth one of those. Empty where it is not, or cannot be read."""
    try:
        with open(path, "rb") as file:
            found = left_by_download(file.read(100))
    except OSError:
        return ""
    return found and f"this is {found}. Download it again"
