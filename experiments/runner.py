"""Trainings that a study needs: one folder each, restartable, several at once; they end with the program that started them."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

from facelit.errors import FacelitError

ROOT = Path(__file__).resolve().parents[1]


class Job(ABC):
    """One training and its tests: its folder, its commands, and its progress.

    Args:
        name: The name in messages.
        folder: The folder for everything of it.
        threads: CPU threads of its processes.
    """

    def __init__(self, name: str, folder: Path, threads: int) -> None:
        self.name, self.folder, self.threads = name, folder, threads
        self.log = folder / "log.txt"
        self.checkpoint = folder / "training" / "checkpoints" / "last.ckpt"

    @abstractmethod
    def result(self) -> dict[str, Any] | None:
        """The result, `seconds` of training among it, if the job and all its tests are done."""

    @abstractmethod
    def do(self, runner: Runner) -> float:
        """Trains, tests and saves the result; returns the seconds of training."""

    @abstractmethod
    def fit_command(self) -> list[str]:
        """Arguments of python that train, or continue the training."""

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Locks out other programs; the lock ends with this program, however it ends."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise FacelitError(f"{self.name}: another program is working on it ({self.folder}).") from None
            yield


class Runner:
    """Runs jobs, several at once, each in its own processes, which end with this one.

    Args:
        jobs: The number of jobs to run at once.
    """

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._stopped = False
        self._lock = threading.Lock()

    def run(self, jobs: Sequence[Job]) -> list[str]:
        """Runs all jobs and prints a line about each; a failed job does not stop the others.

        Returns:
            The names of the failed jobs.
        """
        failed = []
        pool = ThreadPoolExecutor(self.jobs)
        try:
            running = {pool.submit(self._do, job): job for job in jobs}
            for future in as_completed(running):
                try:
                    print(f"{running[future].name}: {future.result()}", flush=True)
                except FacelitError as error:
                    print(f"{running[future].name}: FAILED: {error}", file=sys.stderr, flush=True)
                    failed.append(running[future].name)
        finally:
            self._stop()
            pool.shutdown(cancel_futures=True)
        return failed

    def _do(self, job: Job) -> str:
        """Does a job unless it is done; returns a line about it."""
        with job.locked():
            if (found := job.result()) is not None:
                return f"done already ({found['seconds'] / 60:.1f} min then)"
            return f"done in {job.do(self) / 60:.1f} min"

    def train(self, job: Job) -> dict[str, Any]:
        """Trains to the end, unless that is done; returns the seconds it took and the command."""
        state_file = job.folder / "trained.json"
        state: dict[str, Any] = read_json(state_file) or {"seconds": 0.0, "done": False, "command": []}
        if state["done"]:
            return dict(state)
        resumed = " (from its last epoch)" if job.checkpoint.is_file() else ""
        print(f"{job.name}: training{resumed}; {job.log}", flush=True)
        start = perf_counter()
        try:
            command = self.execute(job, job.fit_command(), "fit")
            state |= {"done": True, "command": state["command"] or command}
        finally:
            state["seconds"] += perf_counter() - start
            write_json(state_file, state)
        return state

    def execute(self, job: Job, command: list[str], what: str) -> list[str]:
        """Runs python with these arguments to its end, its output in the job's log; returns the whole command.

        Raises:
            FacelitError: It failed, or the program is stopping.
        """
        with job.log.open("ab") as log, self._lock:
            if self._stopped:
                raise FacelitError("stopped.")
            log.write(f"$ python {shlex.join(command)}\n".encode())
            log.flush()
            threads = {"OMP_NUM_THREADS": str(job.threads)}
            process = subprocess.Popen(
                [sys.executable, *command], stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **threads}
            )
            self._processes.add(process)
        status = process.wait()
        with self._lock:
            self._processes.discard(process)
        if self._stopped:
            raise FacelitError("stopped.")
        if status:
            last = job.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1]
            raise FacelitError(f"{what} ended with status {status}: {last[:300]} ({job.log})")
        return ["python", *command]

    def _stop(self) -> None:
        with self._lock:
            self._stopped = True
            for process in self._processes:
                process.terminate()


def guarded(study: Callable[[], int]) -> int:
    """Calls a study's program; a user error and an interruption end in a line.

    Returns:
        Its exit status, 2 after a user error, 130 if it was stopped.
    """
    try:
        return study()
    except FacelitError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped; the same command continues from here.", file=sys.stderr)
        return 130


def stop_at_sigterm() -> None:
    """Makes SIGTERM end the trainings too; not with SIGINT, which a shell's background jobs ignore."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)


def check_json(path: Path | None) -> None:
    """Rejects `--json FILE` before hours of training, if there is no folder for it.

    Raises:
        FacelitError: There is none.
    """
    if path and not path.resolve().parent.is_dir():
        raise FacelitError(f"--json {path}: there is no folder {path.parent}.")


def read_json(path: Path) -> Any:
    """Reads a JSON file; None if it does not exist."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file atomically."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, path)
