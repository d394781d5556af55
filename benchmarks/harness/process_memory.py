"""How much memory this process holds, and the most it has held: bytes, read without a package."""

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
    """Resident memory now; where the system does not say, the most it has been."""
    if _STATM.is_file():
        return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return peak_resident_bytes()


def peak_resident_bytes() -> int:
    """The most resident memory there has been, of this program: `ru_maxrss` counts its parent's too, where that started it."""
    if _STATUS.is_file():
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def release_free_memory() -> None:
    """Gives what the allocator keeps of freed memory back to the system (glibc), so that what is taken next counts as taken."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


def available_bytes() -> int:
    """Memory that can still be had, or 8 GiB where the system does not say."""
    if _MEMINFO.is_file():
        for line in _MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 8 * 2**30
