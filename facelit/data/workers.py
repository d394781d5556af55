"""What a loader's workers need, and what becomes of a run when one of them dies or is stuck."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable

from facelit.errors import FacelitError
from facelit.storage.images import CROP_SIZE
from facelit.storage.system import spare_open_files

SHARED_MEMORY = "/dev/shm"
"""Where Linux keeps the memory through which workers hand over their batches."""

_CROP_BYTES = CROP_SIZE * CROP_SIZE * 3
_AHEAD = 2
"""Batches that torch's loaders let each worker read ahead."""
_FILES_OF_A_WORKER, _FILES_OF_A_BATCH, _FILES_OF_A_LOADER, _OTHER_FILES = 3, 3, 2, 8
"""A worker's queue and process; a batch's tensors, each a file in shared memory; the queue of results; logs, checkpoints, sockets."""


class Load:
    """A loader, as far as its workers' memory goes.

    Args:
        option: What sets the size of its batches, for messages.
        batch_size: Images in a batch.
        batches: Batches in an epoch.
    """

    def __init__(self, option: str, batch_size: int, batches: int) -> None:
        self.option, self.batch_size, self.batches = option, batch_size, batches

    def bytes(self, workers: int) -> int:
        """What its batches take in shared memory."""
        return self.ahead(workers) * self.batch_size * _CROP_BYTES

    def ahead(self, workers: int) -> int:
        """Batches that are read ahead, and the one that is being used."""
        return min(self.batches, _AHEAD * workers + 1)


def check_shared_memory(loads: Iterable[Load], workers: int, processes: int) -> None:
    """Refuses a run whose workers would fill the machine's shared memory, and then hang or die.

    Args:
        loads: Loaders whose workers are ahead at the same time.
        workers: Of each loader.
        processes: Processes of the run on this machine.

    Raises:
        FacelitError: There is too little; Docker gives its containers 64 MB.
    """
    loads, free = list(loads), free_shared_memory()
    if not workers or not loads or free is None:
        return

    def needed(count: int) -> int:
        return processes * sum(load.bytes(count) for load in loads)

    if needed(workers) <= free:
        return
    fitting = max((count for count in range(1, workers) if needed(count) <= free), default=0)
    options = " and ".join(dict.fromkeys(f"{load.option} {load.batch_size}" for load in loads))
    raise FacelitError(
        f"data.num_workers {workers} with {options} keep up to {needed(workers) / 2**20:,.0f} MB in shared memory, and {SHARED_MEMORY}"
        f" has {free / 2**20:,.0f} MB free. Give the container more (docker run --shm-size 8g, or --ipc host), or lower"
        f" data.num_workers to {fitting}{'' if fitting else ' (reading in the main process)'}, or the batches."
    )


def check_open_files(loads: Iterable[Load], workers: int, idle: int = 0) -> None:
    """Refuses a run whose workers would run out of open files: a batch that one cannot hand over is waited for without end.

    Args:
        loads: Loaders whose workers are ahead at the same time.
        workers: Of each loader.
        idle: Loaders whose workers have read all they had to, and are kept for the next time.

    Raises:
        FacelitError: The system allows too few, even with this process's own limit raised.
    """
    if not workers:
        return
    loads = list(loads)
    needed = sum(load.ahead(workers) * _FILES_OF_A_BATCH for load in loads)
    needed += (len(loads) + idle) * (workers * _FILES_OF_A_WORKER + _FILES_OF_A_LOADER) + _OTHER_FILES
    spare = spare_open_files(needed)
    if spare is not None and spare < needed:
        raise FacelitError(
            f"the system lets this process open only {spare} more files, and data.num_workers {workers} needs up to {needed}. Lower"
            " data.num_workers (0 reads in the main process), or have the hard limit raised (/etc/security/limits.conf, docker run"
            " --ulimit nofile=65536)."
        )


def free_shared_memory() -> int | None:
    """Bytes; None where the system does not say."""
    try:
        status = os.statvfs(SHARED_MEMORY)
    except (AttributeError, OSError):  # Windows has no such call, macOS no such folder
        return None
    return status.f_bavail * status.f_frsize


def explain_lost_worker(error: Exception) -> FacelitError | None:
    """What to say where a worker died, none has answered, or the system has no room for one; None about another error."""
    if "combined_loader" in str(error) and isinstance(error.__context__, Exception):
        error = error.__context__  # Lightning fails once more as it puts away loaders that have not begun
    if isinstance(error, OSError) and error.errno == errno.EAGAIN:
        return FacelitError(
            f"the system refuses another process ({error.strerror}). Lower data.num_workers (0 reads in the main process), or raise the limit:"
            " ulimit -u, a container's --pids-limit."
        )
    out_of_files = isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)
    if not out_of_files and not isinstance(error, RuntimeError):
        return None
    text = str(error)
    if text.startswith("DataLoader timed out"):
        return FacelitError(
            f"{text.splitlines()[0]}: the workers that read images have not delivered a batch in all that time. Is the disk still there? If it is only"
            " slow, raise data.worker_timeout (0 waits for ever); data.num_workers 0 reads in the main process."
        )
    if out_of_files or "too many open files" in text.lower() or "items of ancdata" in text:
        return FacelitError(
            "the system's limit of open files is too low for the workers that read images. Raise it (ulimit -n 4096), or lower"
            " data.num_workers (0 reads in the main process)."
        )
    if text.startswith("DataLoader worker (pid"):
        return FacelitError(
            f"a worker that reads images died ({text.splitlines()[0]}). Usually memory has run out: lower data.num_workers or the"
            f" batches, or give a container more shared memory (docker run --shm-size 8g; {SHARED_MEMORY})."
        )
    return None
