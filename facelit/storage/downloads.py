"""What a download leaves in place of a file that it did not fetch."""

from __future__ import annotations

import os

_BEGINNINGS = {
    b"<": "a web page, or other XML: download it again",
    b"version https://": "a pointer of Git LFS: `git lfs pull` fetches the file itself",
}
NUM_BYTES = 100
"""So much of a file says what it is."""


def left_by_download(content: bytes) -> str:
    """Says what a binary file's first bytes (up to `NUM_BYTES`) belong to: a web page, or Git LFS's pointer. Empty where it is neither."""
    start = content.removeprefix(b"\xef\xbb\xbf").lstrip()
    return next((what for beginning, what in _BEGINNINGS.items() if start.startswith(beginning)), "")


def what_lies_instead(path: str | os.PathLike[str]) -> str:
    """What to say of a file that is in truth one of those. Empty where it is not, or cannot be read."""
    try:
        with open(path, "rb") as file:
            found = left_by_download(file.read(NUM_BYTES))
    except OSError:
        return ""
    return found and f"this is {found}"
