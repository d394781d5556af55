"""What an alignment has done so far, so that a run that was stopped goes on where it was.

`DST/.facelit-align/` has `options.json`, which says what the folder was made from and how, and one `journal-*.jsonl` for each
process that worked on it: a line a photo, appended when its crops are in place. A line that was cut off is not
believed, and its photo is done again.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from facelit.errors import FacelitError
from facelit.storage.files import replacing

try:
    import fcntl
except ImportError:  # Windows: two runs at a time are not noticed there
    fcntl = None  # type: ignore[assignment]  # a module, where there is one

FOLDER = ".facelit-align"
"""Below the folder of crops; hidden, so that no listing takes it for an identity."""

_OPTIONS = "options.json"
_VERSION = 1


class Outcome(NamedTuple):
    """What became of a photo.

    Attributes:
        photo: Its path relative to SRC.
        stamp: Its size in bytes and modification time in nanoseconds: a photo that has changed is done again.
        faces: How many faces were found.
        crops: Paths of its crops relative to DST.
        reason: Why it could not be read; empty where it could.
    """

    photo: str
    stamp: tuple[int, int]
    faces: int
    crops: tuple[str, ...]
    reason: str = ""


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
            self._file = os.open(self.path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o666)
        line = json.dumps(outcome).encode() + b"\n"
        if os.write(self._file, line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def close(self) -> None:
        """Lets the file go."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def begin(target: Path, options: dict[str, Any]) -> None:
    """Makes the folder of crops, or makes sure that an existing one was begun with the same options.

    Args:
        target: The folder of crops.
        options: What its contents depend on, by name; JSON values.

    Raises:
        FacelitError: The folder has other things in it, was made with other options, or cannot be written.
    """
    wanted = {"format": "facelit-align", "version": _VERSION, **options}
    path = target / FOLDER / _OPTIONS
    try:
        if path.exists():
            _compare(target, json.loads(path.read_text(encoding="utf-8")), wanted)
            return
        if target.exists() and (not target.is_dir() or any(name for name in os.listdir(target) if name != FOLDER)):
            raise FacelitError(
                f"{target}: exists and is not a folder that `facelit align` began. Name a new or empty folder."
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_bytes(target, path, (json.dumps(wanted, indent=1) + "\n").encode())
    except OSError as error:
        raise FacelitError(f"{target}: cannot write here ({error.strerror or error}).") from None
    except ValueError:
        raise FacelitError(f"{path}: is damaged. Name a new folder for the crops, or delete this one.") from None


@contextmanager
def locked(target: Path) -> Iterator[None]:
    """Keeps other runs away from a folder that was begun, and removes what a killed one left half-written.

    Raises:
        FacelitError: Another run is at work there.
    """
    with open(target / FOLDER / _OPTIONS, "rb") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise FacelitError(
                    f"{target}: another `facelit align` is at work here. Wait until it is done."
                ) from None
            except OSError:
                pass  # a file system without locks
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
                photo, stamp, faces, crops, reason = json.loads(line)
                yield Outcome(str(photo), (int(stamp[0]), int(stamp[1])), int(faces), tuple(map(str, crops)), reason)
            except (ValueError, TypeError, LookupError):
                continue


def _compare(target: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    for name in wanted:
        if found.get(name) != wanted[name]:
            raise FacelitError(
                f"{target}: was aligned with {name} {_shown(found.get(name))}, not {_shown(wanted[name])}. Name another"
                " folder for these crops, or delete that one to start anew."
            )


def _shown(value: Any) -> str:
    return "none" if value is None else str(value)
