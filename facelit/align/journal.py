"""What an alignment has done so far, so that a run that was stopped goes on where it was.

`DST/.facelit-align/` has `options.json`, which says what the folder was made from and how, and one `journal-*.jsonl` for each
process that worked on it: a line a photo, appended when its crops are in place. A line that was cut off is ignored, and its
photo done again.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from facelit.align.landmark_file import LANDMARKS, Lines
from facelit.errors import FacelitError
from facelit.storage import system
from facelit.storage.files import replacing

FOLDER = ".facelit-align"
"""Below the folder of crops; hidden, so that no listing takes it for an identity."""

_OPTIONS, _LOCK = "options.json", "lock"
_VERSION = 2
"""2: the search repeats the photo's edge pixels around it; the journal keeps landmarks."""


class Outcome(NamedTuple):
    """What became of a photo.

    Attributes:
        photo: Its path relative to SRC.
        stamp: Its size in bytes and modification time in nanoseconds: a photo that has changed is done again.
        found: Its faces, also those without a crop; see `facelit.align.landmark_file`.
        crops: Paths of its crops relative to DST.
        made: How the crops were made (`Options.made`); empty if there are none.
        beyond: The share of the crops' pixels, 0 to 1, that lies beyond the photo's edge.
        reason: Why the photo could not be read; empty if it could.
    """

    photo: str
    stamp: tuple[int, int]
    found: Lines = ()
    crops: tuple[str, ...] = ()
    made: str = ""
    beyond: float = 0.0
    reason: str = ""

    @property
    def faces(self) -> int:
        """How many faces were found."""
        return len(self.found)


class Journal:
    """Written by one process, in a file of its own.

    Args:
        target: The folder of crops.
    """

    def __init__(self, target: Path) -> None:
        self.path = target / FOLDER / f"journal-{os.getpid()}-{os.urandom(4).hex()}.jsonl"
        self._file = -1

    def write(self, outcome: Outcome) -> None:
        """Appends a line, in one go: what a kill leaves of it is the last line of its file.

        Raises:
            OSError: It cannot be written in full.
        """
        if self._file < 0:
            self._file = os.open(self.path, os.O_CREAT | os.O_APPEND | os.O_WRONLY | system.BINARY, 0o666)
        line = json.dumps(outcome).encode() + b"\n"
        if os.write(self._file, line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def close(self) -> None:
        """Lets the file go."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def begin(target: Path, search: dict[str, Any], crops: dict[str, Any], recrop: bool = False) -> None:
    """Makes the folder of crops, or makes sure that an existing one was begun with the same options.

    Args:
        target: The folder of crops.
        search: Options that decide which faces are found, by name; JSON values.
        crops: Options that decide how crops are made of them.
        recrop: Whether an existing folder may have been made with other values of `crops`; see `remember`.

    Raises:
        FacelitError: The folder has other things in it, was made with other options, or cannot be written.
    """
    path = target / FOLDER / _OPTIONS
    try:
        if path.exists():
            _compare(target, json.loads(path.read_text(encoding="utf-8")), search, {} if recrop else crops)
            return
        if target.exists() and (not target.is_dir() or any(name for name in os.listdir(target) if name != FOLDER)):
            raise FacelitError(
                f"{target}: exists and is not a folder that `facelit align` began. Name a new or empty folder."
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        remember(target, search, crops)
    except OSError as error:
        raise _cannot_write(target, error) from None
    except (ValueError, AttributeError):
        raise FacelitError(f"{path}: is damaged. Name a new folder for the crops, or delete this one.") from None


def remember(target: Path, search: dict[str, Any], crops: dict[str, Any]) -> None:
    """Writes down the options that a folder is made with from now on; see `begin`.

    Raises:
        FacelitError: They cannot be written.
    """
    content = {"format": "facelit-align", "version": _VERSION, **search, **crops}
    try:
        replace_bytes(target, target / FOLDER / _OPTIONS, (json.dumps(content, indent=1) + "\n").encode())
    except OSError as error:
        raise _cannot_write(target, error) from None


@contextmanager
def locked(target: Path) -> Iterator[None]:
    """Keeps other runs away from a folder that was begun, and removes what a killed one left half-written.

    Raises:
        FacelitError: Another run is at work there.
    """
    with open(target / FOLDER / _LOCK, "ab") as file:  # not the options: they are replaced
        if not system.lock(file, wait=False):
            raise FacelitError(f"{target}: another `facelit align` is at work here. Wait until it is done.")
        for left in (target / FOLDER).glob(".*.tmp"):
            left.unlink(missing_ok=True)
        yield


def read(target: Path) -> dict[str, Outcome]:
    """The last outcome of each photo, by its path; lines that make no sense are left out."""
    known: dict[str, Outcome] = {}
    for path in sorted((target / FOLDER).glob("journal-*.jsonl"), key=lambda p: p.stat().st_mtime_ns):
        known.update((outcome.photo, outcome) for outcome in _lines(path))
    return known


def compact(target: Path, outcomes: list[Outcome]) -> None:
    """Puts one file, with these lines, in the place of all."""
    folder = target / FOLDER
    old = list(folder.glob("journal-*.jsonl"))
    if len(old) < 2:
        return
    merged = folder / f"journal-0-{os.urandom(4).hex()}.jsonl"
    replace_bytes(target, merged, b"".join(json.dumps(outcome).encode() + b"\n" for outcome in outcomes))
    for path in old:
        path.unlink(missing_ok=True)


def replace_bytes(target: Path, path: Path, data: bytes) -> None:
    """Writes a file in the hidden folder of `target` and moves it to its place: nobody sees half of it.

    Raises:
        OSError: It cannot be written.
    """
    with replacing(path, staging=target / FOLDER) as temporary, open(temporary, "wb") as file:
        file.write(data)


def _lines(path: Path) -> Iterator[Outcome]:
    with open(path, "rb") as file:
        for line in file:
            try:
                photo, (size, time), found, crops, made, beyond, reason = json.loads(line)
                yield Outcome(photo, (size, time), tuple(found), tuple(crops), made, float(beyond), reason)
            except (ValueError, TypeError, LookupError):
                continue


def _compare(target: Path, found: dict[str, Any], search: dict[str, Any], crops: dict[str, Any]) -> None:
    if found.get("version") != _VERSION:
        raise FacelitError(
            f"{target}: was aligned by another version of facelit, which looked for faces in another way. Name another folder for"
            " these crops, or delete that one to start anew."
        )
    for name, value in {**search, **crops}.items():
        if found.get(name) != value:
            way_out = "delete that one to start anew."
            if name in crops:
                way_out = "add --recrop to make all crops there anew, from the landmarks found before."
            kept = target / FOLDER / LANDMARKS
            if name == "src" and kept.is_file():
                way_out += (
                    f" If the photos were only moved, their faces need not be looked for again: --landmarks {kept}"
                )
            raise FacelitError(
                f"{target}: was aligned with {name} {_shown(found.get(name))}, not {_shown(value)}. Name another folder for"
                f" these crops, or {way_out}"
            )


def _cannot_write(target: Path, error: OSError) -> FacelitError:
    return FacelitError(f"{target}: cannot write here ({error.strerror or error}).")


def _shown(value: Any) -> str:
    return "none" if value is None else str(value)
