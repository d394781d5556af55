"""What a download leaves in place of a file that it did not fetch."""

from __future__ import annotations

import os

_BEGINNINGS = {
    b"<": "a web page",
    b"version https://git-lfs": "Git LFS's note on where a file is (`git lfs pull` fetches it)",
}


def left_by_download(path: str | os.PathLike[str]) -> str:
    """Says what lies in a binary file's place: a web page, or Git LFS's note. Empty where it is neither, or cannot be read."""
    try:
        with open(path, "rb") as file:
            start = file.read(100).lstrip()
    except OSError:
        return ""
    found = next((what for beginning, what in _BEGINNINGS.items() if start.startswith(beginning)), "")
    return found and f"this is {found}. Download it again"
