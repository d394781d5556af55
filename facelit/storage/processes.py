"""Work spread over processes, with a count of how far it is."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from facelit.errors import FacelitError

Task = TypeVar("Task")
Result = TypeVar("Result")

shared: Any = None
"""In a process that works: what `run_in_processes` was told to share."""

_POLL_SECONDS = 0.2
_counter: Any = None


def default_jobs() -> int:
    """As many processes as there are cores that this program may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def count_one() -> None:
    """Called by the function that works, for each item it has done."""
    if _counter is not None:
        _counter.add(1)


def run_in_processes(
    function: Callable[[Task], Result],
    tasks: Sequence[Task],
    jobs: int,
    show: Callable[[int], None],
    to_share: Any = None,
) -> list[Result]:
    """Calls a function on each task, in new processes where there are several jobs and tasks.

    The processes are not forked (the program may have threads), so a script that calls this must run below
    `if __name__ == "__main__":`. The first exception ends the work.

    Args:
        function: At the top level of its module. It may call `count_one` as it goes, and finds `to_share` in `processes.shared`.
        tasks: Its arguments; pickled.
        jobs: How many processes, at most.
        show: Told how many items were counted so far.
        to_share: Pickled to each process once.

    Returns:
        The results, in the order of the tasks.

    Raises:
        FacelitError: A process died.
    """
    if jobs <= 1 or len(tasks) <= 1:
        _start(_LocalCounter(show), to_share)
        try:
            return [function(task) for task in tasks]
        finally:
            _start(None, None)
    context = multiprocessing.get_context("spawn")
    value = context.Value("q", 0)
    with ProcessPoolExecutor(min(jobs, len(tasks)), context, _start_process, (value, to_share)) as pool:
        futures = [pool.submit(function, task) for task in tasks]
        try:
            running = set(futures)
            while running:
                finished, running = wait(running, _POLL_SECONDS, FIRST_EXCEPTION)
                show(value.value)
                for future in finished:
                    future.result()
            return [future.result() for future in futures]
        except BrokenProcessPool as error:
            raise FacelitError(
                'a worker process died. In a script of your own, put what runs under `if __name__ == "__main__":`;'
                " otherwise the machine may be short of memory: lower the number of jobs."
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


class _LocalCounter:
    """Counts for the process that also shows the count."""

    def __init__(self, show: Callable[[int], None]) -> None:
        self._count = 0
        self._show = show

    def add(self, count: int) -> None:
        self._count += count
        self._show(self._count)


class _SharedCounter:
    """Counts together with other processes."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def add(self, count: int) -> None:
        with self._value.get_lock():
            self._value.value += count


def _start(counter: Any, to_share: Any) -> None:
    global _counter, shared
    _counter, shared = counter, to_share


def _start_process(value: Any, to_share: Any) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _start(_SharedCounter(value), to_share)


def _end_with_parent() -> None:
    """A process whose parent was killed must not go on writing beside the parent's successor, or wait for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
