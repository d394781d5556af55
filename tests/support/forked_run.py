"""The command line on two processes without their start-up: forked from this one, which has imported everything.

Importing torch and Lightning takes six CPU seconds a process, twice for each run. A forked process has done that, and is a
process all the same: it is signalled, killed and waited for as any other, and Lightning's launcher starts process 1 from process 0,
as always. What it cannot show is what happens while a program is being imported.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from lightning_fabric.utilities.rank_zero import _get_rank
from pytorch_lightning.strategies.launchers import subprocess_script
from pytorch_lightning.utilities.rank_zero import rank_zero_only

import facelit.callbacks
import facelit.cli.training  # imported once, for all


class Forked:
    """What the launcher and the tests need of a `subprocess.Popen`, for a process that was forked."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._lock = threading.Lock()

    def poll(self) -> int | None:
        """The exit status, negative for a signal; None while the process lives."""
        with self._lock:  # the launcher's threads ask too, and a process can be waited for once
            if self.returncode is None:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                self.returncode = os.waitstatus_to_exitcode(status) if pid else None
            return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Waits for the end, and raises as `Popen.wait` does."""
        end = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if end is not None and time.monotonic() >= end:
                raise subprocess.TimeoutExpired("forked", timeout or 0.0)
            time.sleep(0.02)
        return code

    def send_signal(self, signum: int) -> None:
        """Nothing happens to one that has ended."""
        if self.poll() is None:
            os.kill(self.pid, signum)

    def kill(self) -> None:
        """As `Popen.kill`."""
        self.send_signal(signal.SIGKILL)


class _Standby:
    """Forked before the launcher does anything, it becomes process 1 when Lightning's launcher starts that."""

    def __init__(self, arguments: Sequence[str]) -> None:
        reader, self._writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(self._writer)
            with os.fdopen(reader, "rb") as file:
                told = file.read()
            if not told:  # process 0 has ended without it
                os._exit(0)
            os.environ.update(json.loads(told))
            _run(arguments)
        os.close(reader)
        self.process = Forked(pid)

    def start(self, command: Sequence[str], env: Mapping[str, str], cwd: str | None = None) -> Forked:
        """In the place of `subprocess.Popen`."""
        with os.fdopen(self._writer, "wb") as file:
            file.write(json.dumps(dict(env)).encode())
        return self.process


def fork_run(
    arguments: Sequence[str], folder: Path, output: int, prepare: Callable[[], object] | None = None
) -> Forked:
    """Starts `main.py ARGUMENTS` with `folder` as the current one, in a session of its own.

    Args:
        arguments: Of the command line; with `--trainer.devices 2` and `ddp` for two processes.
        folder: Where it runs.
        output: File descriptor for what it prints.
        prepare: Called in process 0 before anything else.

    Returns:
        Process 0.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return Forked(pid)
    try:
        os.setsid()
        os.chdir(folder)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", 1), os.fdopen(2, "w", 1)
        os.environ.update(CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1")
        for signum in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(signum, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        atexit._clear()
        if prepare is not None:
            prepare()
        standby = _Standby(arguments)
        launcher: Any = subprocess_script
        launcher.subprocess = _Only(standby.start)
    except KeyboardInterrupt:  # as while a program is being imported
        os._exit(130)
    except BaseException:
        traceback.print_exc()
        os._exit(70)
    _run(arguments)


def living(leader: int) -> list[int]:
    """Processes of a session that live, by number."""
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit():
                state, _, _, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
                if int(session) == leader and state != "Z":
                    found.append(int(entry.name))
    return sorted(found)


class _Only:
    """Lightning's launcher asks its `subprocess` for nothing else."""

    def __init__(self, popen: Callable[..., Forked]) -> None:
        self.Popen = popen


def _run(arguments: Sequence[str]) -> NoReturn:
    """The program, to its end as the interpreter would end it."""
    status = 1
    try:
        sys.path.insert(0, os.getcwd())
        rank_zero_only.rank = _get_rank() or 0
        sys.argv = [str(Path(__file__).resolve().parents[2] / "main.py"), *arguments]
        facelit.cli.main()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(bool(end.code))
    except BaseException as error:
        traceback.print_exc()
        status = 130 if isinstance(error, KeyboardInterrupt) else 1
    finally:
        threading._shutdown()  # type: ignore[attr-defined]  # waits for the threads that are no daemons
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
