"""What Linux and macOS have, and Windows has not: locks, positioned reads, signals, limits of a process.

Without them everything works, a little slower or less guarded: this is the one place that knows.
"""

from __future__ import annotations

import errno
import os
import signal
import threading
from contextlib import suppress
from typing import IO, Any

try:
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]  # a module, where there is one
try:
    import resource
except ImportError:
    resource = None  # type: ignore[assignment]  # likewise

BINARY: int = getattr(os, "O_BINARY", 0)
"""For `os.open`: line ends stay as they are."""

ASKING_TO_STOP: tuple[int, ...] = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
    if hasattr(signal, name)
)
"""Signals by which users, terminals that are closed, and schedulers (before they kill) ask a process to end, as far as the system has them."""

_seeking = threading.Lock()


def read_at(file: int, size: int, start: int) -> bytes:
    """So many bytes from a place in an open file (a descriptor), whatever other threads read from it."""
    if hasattr(os, "pread"):
        return os.pread(file, size, start)
    with _seeking:
        os.lseek(file, start, os.SEEK_SET)
        return os.read(file, size)


def lock(file: IO[Any] | int, wait: bool) -> bool:
    """Locks an open file until it is closed, if the system and its disk have such locks.

    Returns:
        False where another program holds the lock, and this one is not to wait.
    """
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return False
        except OSError:
            pass  # a file system without locks
    return True


def times_waited() -> int:
    """How often this thread has given up its core of its own accord (only Linux says so for a thread); 0 where nobody counts."""
    if resource is None:
        return 0
    return resource.getrusage(getattr(resource, "RUSAGE_THREAD", resource.RUSAGE_SELF)).ru_nvcsw


def allow_open_files(count: int) -> None:
    """Raises this process's own limit of open files by `count`, where there is one and the system lets it."""
    if resource is None:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if count > soft // 4:
        _raise_open_files(soft, hard, soft + count)


def spare_open_files(wanted: int) -> int | None:
    """How many files this process may still open, its own limit raised where `wanted` takes that; None where nobody says."""
    if resource is None:
        return None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return None
    try:
        num_open = len(os.listdir("/dev/fd"))
    except OSError as error:
        if error.errno != errno.EMFILE:
            return None
        num_open = soft
    return _raise_open_files(soft, hard, num_open + wanted) - num_open


def _raise_open_files(soft: int, hard: int, wanted: int) -> int:
    """The limit of open files, raised from `soft` to what is wanted, as far as `hard` and the system let it."""
    raised = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
    if raised > soft:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
            return raised
    return soft
