"""This process's current and peak memory in bytes, read without a package."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from pathlib import Path

_STATM = Path("/proc/self/statm")
_STATUS = Path("/proc/self/status")
_MEMINFO = Path("/proc/meminfo")


def resident_bytes() -> int:
    """Resident memory now, or its peak if the system does not tell."""
    if _STATM.is_file():
        return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return peak_resident_bytes()


def peak_resident_bytes() -> int:
    """The peak resident memory of this program; unlike `ru_maxrss`, not including that of the parent that started it."""
    if _STATUS.is_file():
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def release_free_memory() -> None:
    """Returns freed memory that the allocator (glibc) still holds to the system, so that later allocations count as growth."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


def available_bytes() -> int:
    """Available memory, or 8 GiB if the system does not tell."""
    if _MEMINFO.is_file():
        for line in _MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 8 * 2**30
