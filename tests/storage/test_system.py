"""Where the system lacks what Windows lacks."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from facelit.storage import system
from tiny_run import ROOT
from warm_processes import run


def test_nothing_needs_what_windows_lacks(tmp_path: Path) -> None:
    """Packing, listing, RecordIO, align's journal and all the rest of storage are imported without these modules and functions."""
    code = """
import os, pkgutil, sys
for name in [name for name in sys.modules if name.startswith("facelit")]:
    del sys.modules[name]
sys.modules.update(fcntl=None, resource=None)
del os.pread, os.sched_getaffinity
import facelit.storage, facelit.align.journal, facelit.callbacks.bad_images, facelit.check.scan
for module in pkgutil.iter_modules(facelit.storage.__path__):
    __import__(f"facelit.storage.{module.name}")
from facelit.storage.system import allow_open_files, lock, read_at, times_waited
allow_open_files(100_000)
with open(sys.argv[1], "rb") as file:
    assert lock(file, wait=False) and times_waited() == 0
    assert [read_at(file.fileno(), 3, start) for start in (2, 0, 9)] == [b"cde", b"abc", b""]
"""
    path = tmp_path / "letters.txt"
    path.write_text("abcdef")
    (tmp_path / "script.py").write_text(code)
    done = run(tmp_path / "script.py", path, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr


def test_training_is_imported_without_unixs_signals_and_calls(tmp_path: Path) -> None:
    """Also what stops a run, waits for its processes, counts cores and looks for shared memory."""
    code = """
import os, signal, sys
sys.modules.update(fcntl=None, resource=None, pwd=None, grp=None, termios=None)
for name in ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU", "SIGKILL", "sigwaitinfo", "pthread_sigmask"):
    delattr(signal, name)
for name in ("pread", "sched_getaffinity", "statvfs", "getuid", "geteuid", "fork", "mkfifo", "killpg", "setsid", "sysconf"):
    delattr(os, name)
for name in [name for name in sys.modules if name.startswith("facelit")]:
    del sys.modules[name]
import facelit.cli.training, facelit.tools.align
from facelit.callbacks import StopSignals
from facelit.data.worker_signals import leave_signals_to_main
from facelit.data.workers import Load, check_shared_memory
from facelit.storage.processes import default_jobs
from facelit.storage.system import ASKING_TO_STOP
assert ASKING_TO_STOP == (signal.SIGINT, signal.SIGTERM)
assert StopSignals(command_line=True)._signals == [signal.SIGINT, signal.SIGTERM]
leave_signals_to_main(0)
check_shared_memory([Load("data.batch_size", 10**6, 9)], 4, 1)
assert default_jobs() == os.cpu_count()
"""
    (tmp_path / "script.py").write_text(code)
    done = run(tmp_path / "script.py", env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr


def test_locks_keep_others_out(tmp_path: Path) -> None:
    with open(tmp_path / "lock", "wb") as one, open(tmp_path / "lock", "ab") as other:
        assert system.lock(one, wait=False)
        assert not system.lock(other, wait=False)
        one.close()
        assert system.lock(other, wait=True)


@pytest.mark.skipif("not hasattr(os, 'pread')")
def test_positioned_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"abcdef")
    file = os.open(tmp_path / "file", os.O_RDONLY | system.BINARY)
    assert system.read_at(file, 3, 2) == b"cde"
    monkeypatch.delattr(os, "pread")
    assert system.read_at(file, 3, 2) == b"cde"
    os.close(file)
