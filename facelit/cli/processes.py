"""When one process of a run ends, all do, and the last line says which it was and why."""

from __future__ import annotations

import atexit
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NoReturn

from facelit.callbacks import LastCheckpoint, StopSignals
from facelit.cli.way_on import way_on
from facelit.distributed import rank, world_size
from facelit.errors import FacelitError
from facelit.lightning import default_store, replace_process_observer, separate_restarts
from facelit.storage.system import ASKING_TO_STOP

_KEY = "facelit/cause"
_LAUNCHER = "FACELIT_LAUNCHER"
"""Environment variable: the number of process 0, for those that it starts."""
_SECONDS_TO_FIND_OUT = 10.0
_STOPPED = {128 + signum for signum in ASKING_TO_STOP}
"""The status of a process that ended because of one of these."""
_PEER_IS_GONE = (
    "gloo",
    "nccl",
    "connection closed by peer",
    "connection reset by peer",
    "broken pipe",
    "socket closed",
)


class Processes:
    """The processes that this one started, or was started by.

    Lightning's launcher starts the others of a machine from the first, torchrun and SLURM start all of them.

    Args:
        arguments: What the program was started with.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        self.arguments = arguments
        self.children: Sequence[subprocess.Popen[bytes]] = ()
        self._lock = threading.RLock()
        # Lightning's launcher sets the first variable in the processes it starts; it says what they left word of.
        self._quiet = "LOCAL_RANK" in os.environ and not {"TORCHELASTIC_RUN_ID", "SLURM_PROCID"} & {*os.environ}

    def watch(self) -> None:
        """Ends this process when the one that started it is gone, and all when one that it started fails."""
        replace_process_observer(self._observe)
        restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        if restart != "0" and os.environ.get("GROUP_WORLD_SIZE") == "1":
            separate_restarts(restart)
        if self._quiet and _is_gone(int(os.environ.get(_LAUNCHER, os.getppid()))):
            os._exit(2)  # killed while this process was importing torch
        if not self._quiet:
            os.environ[_LAUNCHER] = str(os.getpid())
        if "LOCAL_RANK" in os.environ or "SLURM_PROCID" in os.environ:
            threading.Thread(target=_follow, args=(os.getppid(),), daemon=True, name="launcher-watch").start()

    def wait(self, seconds: float = 30.0) -> None:
        """Lets the other processes of a run that has agreed to stop come to their end."""
        handlers = ignore_signals()
        end = time.monotonic() + seconds
        for child in self.children:
            try:
                child.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.kill()
        for signum, handler in handlers.items():  # a program that has called `main` goes on
            signal.signal(signum, handler)

    def fail(self, error: BaseException, message: str) -> NoReturn:
        """Ends this process, and those it started, because of an error in a run of several.

        Args:
            error: What was raised.
            message: What to say of it.
        """
        ignore_signals()
        if _lost_peer(error):
            self._blame_another()
        own = f"process {rank()} of {world_size()} stopped: {message}"
        cause = _first_word(own)
        if cause == own and not isinstance(error, FacelitError):
            traceback.print_exception(error)
        status = 2 if isinstance(error, FacelitError) else 1
        with self._lock:
            self._end("" if self._quiet or (cause != own and not self.children) else cause, status)

    def _blame_another(self) -> NoReturn:
        """The launcher learns of it by itself; elsewhere whoever failed may have left word."""
        if self._quiet:
            os._exit(2)
        end = time.monotonic() + (_SECONDS_TO_FIND_OUT if self.children else 3.0)
        word: str | None = ""
        if self.children:  # the watch looks for failures
            while time.monotonic() < end and any(child.poll() != 0 for child in self.children):
                time.sleep(0.1)
            word = _word()
        else:
            while time.monotonic() < end and (word := _word()) == "":
                time.sleep(0.1)
        ended = {number: code for number, child in enumerate(self.children, 1) if (code := child.poll()) is not None}
        number = min(ended, default=0)
        which = f"process {number}" if ended else "another process"
        cause = word or f"{which} of this run ended without saying why (killed? out of memory?)."
        if (status := ended.get(number, 0)) in _STOPPED:
            cause = _obituary(number, status)
        with self._lock:
            self._end(cause, status if status in _STOPPED else 2)

    def _observe(self, children: list[subprocess.Popen[bytes]]) -> None:
        self.children = children
        threading.Thread(target=self._wait_for_failure, daemon=True, name="process-watch").start()

    def _wait_for_failure(self) -> None:
        while not any(child.poll() for child in self.children):
            time.sleep(0.2)
        time.sleep(1.0)  # whoever failed because of another has failed by now, too
        with self._lock:
            if StopSignals.stopping:
                return
            failed = {number: code for number, child in enumerate(self.children, 1) if (code := child.poll())}
            number = min(failed, key=lambda number: failed[number])  # one that was killed rather than one that lost it
            self._end(_word_soon() or _obituary(number, failed[number]), max(failed[number], 0) or 2)

    def _end(self, cause: str, status: int) -> NoReturn:
        """Kills the children, says why, and leaves without waiting for a collective that nobody joins."""
        for child in self.children:
            child.kill()
        if cause:
            sys.stdout.flush()
            fits = [*self.arguments[:1]] == ["fit"]
            rest = f" {way_on(self.arguments, LastCheckpoint.newest)}" if fits else ""
            print(f"facelit: error: {cause}{'' if cause[-1] in '.?!' else '.'}{rest}", file=sys.stderr)
        sys.stderr.flush()
        os._exit(status)


def end_now(status: int) -> NoReturn:
    """Ends the process as `sys.exit` does, but does not take the interpreter down piece by piece.

    With torch and Lightning imported that takes two CPU seconds, one process after the other: on a busy machine half a minute
    each, which nobody has who was told to stop.
    """
    threading._shutdown()  # type: ignore[attr-defined]  # waits for the threads that are not daemons, as the interpreter does
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


def ignore_signals() -> dict[int, Any]:
    """Ignores those that ask a run to stop: its end is near, and says more.

    Returns:
        The handlers so far.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {signum: signal.signal(signum, signal.SIG_IGN) for signum in {*ASKING_TO_STOP} - {signal.SIGTERM}}


def _follow(launcher: int) -> None:
    """A process whose launcher was killed must not train on."""
    while os.getppid() == launcher:
        time.sleep(1.0)
    os._exit(2)


def _is_gone(pid: int) -> bool:
    """Whether a process has ended; False where that cannot be asked."""
    if os.name != "posix":  # elsewhere signal 0 ends the process
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


def _obituary(number: int, status: int) -> str:
    if status in _STOPPED:
        return f"process {number} was stopped by {signal.Signals(status - 128).name}."
    if status >= 0:
        return f"process {number} ended with status {status}; what it said stands above."
    name = signal.Signals(-status).name
    perhaps = " (often because the machine ran out of memory)" if -status == signal.SIGKILL else ""
    return f"process {number} was killed by {name}{perhaps}."


def _lost_peer(error: BaseException) -> bool:
    """Whether an error only says that another process of the run is gone."""
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(sign in text for sign in _PEER_IS_GONE)


def _first_word(own: str) -> str:
    """Leaves this process's word where all others can read it; the first one's counts, and is returned."""
    store = default_store()
    try:
        return own if store is None else store.compare_set(_KEY, "", own).decode()
    except RuntimeError:  # it was in a process that is gone
        return own


def _word() -> str | None:
    """Empty where there is none (yet), None where it was in a process that is gone."""
    store = default_store()
    try:
        return store.get(_KEY).decode() if store is not None and store.check([_KEY]) else ""
    except RuntimeError:
        return None


def _word_soon() -> str:
    """The word, unless the store is busy: the main thread may wait in it for the process that is gone."""
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(_word() or ""), daemon=True)
    thread.start()
    thread.join(2.0)
    return found[0] if found else ""
