"""The files below a folder, each once."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from facelit.errors import FacelitError

_SYSTEMS = frozenset(
    ["__macosx", "@eadir", "@recycle", "@recently-snapshot", "#recycle", "#snapshot", "$recycle.bin", "lost+found"]
) | {"system volume information"}
"""Folders that macOS' archives, network disks (Synology, QNAP), Windows and Linux put among people's: thumbnails and deleted files."""


def is_hidden(name: str) -> bool:
    """Whether a folder of this name is none of the user's: as `.name`, or made by a system. Nothing in it counts, anywhere in facelit."""
    return name.startswith(".") or name.lower() in _SYSTEMS


def is_folder(entry: os.DirEntry[Any]) -> bool:
    """Whether it is a folder, or a link to one; a link that leads round in a circle is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def files_below(root: Path, is_wanted: Callable[[os.DirEntry[str]], bool]) -> list[Path]:
    """Files in any depth, folder by folder in the order of their names.

    Hidden folders are left out (`is_hidden`). Links to folders are followed, but no folder is visited twice: a link to one above, or to one
    that lies below `root` itself, adds nothing.

    Args:
        root: The folder; where there is none, nothing is below it.
        is_wanted: Which files count.

    Raises:
        FacelitError: A folder cannot be listed.
    """
    found: dict[Path, list[str]] = {}
    seen: set[tuple[int, int]] = set()
    waiting = [root] if root.is_dir() else []
    links: list[Path] = []  # these wait until all real folders have been seen
    while waiting or links:
        folder = waiting.pop() if waiting else links.pop()
        try:
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as entries:
                listed = sorted(entries, key=lambda entry: entry.name, reverse=True)  # popped from the end
        except OSError as error:
            raise FacelitError(f"{folder}: cannot list this folder ({error.strerror or error}).") from None
        folders = [entry for entry in listed if is_folder(entry)]
        names = {entry.name for entry in folders}
        found[folder] = sorted(entry.name for entry in listed if entry.name not in names and is_wanted(entry))
        for entry in folders:
            if not is_hidden(entry.name):
                (links if entry.is_symlink() else waiting).append(Path(entry.path))
    return [folder / name for folder in sorted(found, key=lambda folder: folder.parts) for name in found[folder]]
