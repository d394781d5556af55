"""Processes of their own that need not import torch and Lightning, which takes longer than all the rest of a tiny run.

A server imports them once a test session, and forks. What it forks runs a script as Python does: with an id, arguments, environment,
folder, output, signals and exit status of its own. Only what is imported, and when, cannot be
tested so.
"""

from __future__ import annotations

import atexit
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile, mkdtemp
from typing import IO, Any, NoReturn

ROOT = Path(__file__).resolve().parents[2]
PRELOADED = (
    "pytorch_lightning",
    "facelit.cli.training",
    "facelit.callbacks",
    "facelit.verification.figures",
    "tensorboard.summary",
)


class WarmProcess:
    """A script that runs in a process of its own; as `subprocess.Popen`, as far as tests need it.

    Args:
        argv: Script and arguments.
        cwd: Where it runs; here by default.
        env: All of its environment; this process's by default.
        stdout: An open file; nowhere by default.
        stderr: Likewise.
        taken_down: Whether the interpreter is, at the end, which takes CPU seconds with all that is imported. Otherwise the process
            only waits for threads, calls what is registered with `atexit`, and writes out what was printed.
    """

    def __init__(
        self,
        *argv: object,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        stdout: IO[Any] | None = None,
        stderr: IO[Any] | None = None,
        taken_down: bool = False,
    ) -> None:
        request = {
            "argv": [str(each) for each in argv],
            "cwd": str(cwd or Path.cwd()),
            "env": dict(os.environ if env is None else env),
            "taken_down": taken_down,
        }
        with open(os.devnull, "r+b") as nothing:
            streams = [nothing, stdout or nothing, stderr or nothing]
            self._connection = _ask(_address(), request, [stream.fileno() for stream in streams])
        self._answers = self._connection.makefile("r")
        self.pid = int(self._answers.readline())
        self.returncode: int | None = None
        self._waits = threading.Thread(target=self._wait, daemon=True)
        self._waits.start()

    def _wait(self) -> None:
        self.returncode = int(self._answers.readline())

    def poll(self) -> int | None:
        """The exit status, or minus the signal; None while it runs."""
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Waits for the end, and returns the status."""
        self._waits.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("a warm process", timeout or 0)
        return self.returncode

    def send_signal(self, signum: int) -> None:
        """Sends it, unless the process has ended."""
        if self.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signum)

    def kill(self) -> None:
        """As `Popen.kill`."""
        self.send_signal(signal.SIGKILL)


def run(*argv: object, timeout: float = 600, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs a script to its end, as `subprocess.run` does."""
    with TemporaryFile("w+") as stdout, TemporaryFile("w+") as stderr:
        process = WarmProcess(*argv, stdout=stdout, stderr=stderr, **options)
        try:
            status = process.wait(timeout)
        finally:
            process.kill()
        for file in (stdout, stderr):
            file.seek(0)
        return subprocess.CompletedProcess(argv, status, stdout.read(), stderr.read())


def living(folder: Path) -> list[int]:
    """Processes that live and have `folder` as the current one, by number; without those that stand in for others."""
    found, place = [], os.path.realpath(folder)
    for name in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            if os.readlink(f"/proc/{name}/cwd") == place and int(name) != os.getpid():
                command = Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0")
                if command[1:2] != [_STANDS_IN]:
                    found.append(int(name))
    return sorted(found)


def executable() -> str:
    """What starts a warm process in place of `sys.executable`, for programs that start others themselves."""
    return str(Path(_address()).with_name("python"))


_STANDS_IN = b"-IS"
_servers: list[subprocess.Popen[bytes]] = []
_addresses: list[str] = []


def _address() -> str:
    """Of the server, which is started if there is none."""
    if not _servers:
        folder = mkdtemp(prefix="facelit-warm-")
        stand_in = Path(folder, "python")
        stand_in.write_text(
            f"#!{sys.executable} {_STANDS_IN.decode()}\n{_STAND_IN.format(python=sys.executable, support=str(Path(__file__).parent))}"
        )
        stand_in.chmod(0o755)
        _addresses.append(f"{folder}/socket")
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, __file__, _addresses[0]]
        server = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            cwd=ROOT,
            start_new_session=True,
        )
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n"
        _servers.append(server)
    return _addresses[0]


@atexit.register
def _end_server() -> None:
    while _servers:
        server = _servers.pop()
        server.kill()
        server.wait()


# Ends the way the process ended that it stands for, and takes it along when killed. If whoever started it is gone it goes, and leaves that
# process without a parent: see `_keep`.
_STAND_IN = """
import os, sys
if sys.argv[1] == "-u":
    del sys.argv[1]
if sys.argv[1].startswith("-"):
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
sys.path.append({support!r})
import warm_processes
warm_processes.stand_in()
"""


def stand_in() -> None:
    """Runs in a process that a program under test has started as `sys.executable`."""
    launcher = os.getppid()
    request = {"argv": sys.argv[1:], "cwd": os.getcwd(), "env": dict(os.environ), "taken_down": False}
    connection = _ask(str(Path(sys.argv[0]).with_name("socket")), request, [0, 1, 2])
    answers = connection.makefile("r")
    pid = int(answers.readline())

    def hand_on(signum: int, frame: object) -> None:
        with suppress(ProcessLookupError):
            os.kill(pid, signum)

    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
        signal.signal(signum, hand_on)
    while not select.select([answers], [], [], 0.2)[0]:
        if os.getppid() != launcher:
            connection.sendall(b"!")
            sys.exit(1)
    status = int(answers.readline())
    if status < 0:
        signal.signal(-status, signal.SIG_DFL) if -status not in (signal.SIGKILL, signal.SIGSTOP) else None
        os.kill(os.getpid(), -status)
    os._exit(status)


def _ask(address: str, request: dict[str, Any], streams: list[int]) -> socket.socket:
    """Sends a request, with the files that become the process's streams; its id and its status can be read from the result.

    The process is killed when the result is closed, as by the end of whoever asked, unless a byte was sent before.
    """
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(address)
    socket.send_fds(connection, [b"!"], streams)
    connection.sendall(json.dumps(request).encode() + b"\n")
    return connection


def _serve(address: str) -> tuple[dict[str, Any], list[int]]:
    """Waits for requests; returns in the forked processes alone."""
    for name in PRELOADED:
        __import__(name)
    signal.signal(signal.SIGCHLD, _bury)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    print("ready", flush=True)
    while True:
        readable, _, _ = select.select([listener, 0], [], [])
        if 0 in readable:  # the tests are over
            os._exit(0)
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            return _keep(connection)
        connection.close()


def _bury(*_: object) -> None:
    """Waits for the children that have ended; what they took is counted as the server's."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


def _keep(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """The parent of the process that was asked for. It goes when whoever asked is gone, and kills the process or leaves it an orphan."""
    _, streams, _, _ = socket.recv_fds(connection, 1, 3)
    request = json.loads(connection.makefile("r").readline())
    pid = os.fork()
    if pid == 0:
        connection.close()
        return request, streams

    def wait() -> None:
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        connection.sendall(f"{status}\n".encode())
        os._exit(0)

    for stream in streams:
        os.close(stream)
    connection.sendall(f"{pid}\n".encode())
    threading.Thread(target=wait).start()
    if not connection.recv(1):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    os._exit(0)


def _become(executable: Path, request: dict[str, Any], streams: list[int]) -> bool:
    """Gives a forked process all that a new one would have; returns whether its interpreter is taken down."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    sys.argv = request["argv"]
    sys.executable = str(executable)
    sys.path[0] = str(Path(sys.argv[0]).resolve().parent)
    sys.path[1:1] = [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]
    sys.path.append(str(Path(__file__).parent))  # has tiny_net
    return bool(request["taken_down"])


def _leave(status: int) -> NoReturn:
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


if __name__ == "__main__":
    taken_down = _become(Path(sys.argv[1]).with_name("python"), *_serve(sys.argv[1]))
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        if taken_down or not isinstance(end.code, int | None):
            raise
        _leave(end.code or 0)
    if not taken_down:
        _leave(0)
