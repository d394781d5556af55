"""Work spread over processes: results, counts, errors, and workers that do not outlive their parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from facelit.errors import FacelitError
from facelit.storage import processes
from facelit.storage.processes import run_in_processes

SCRIPT = """
import os, sys, time
from pathlib import Path
from facelit.storage.processes import run_in_processes

def work(folder):
    Path(folder, str(os.getpid())).touch()
    time.sleep(60)

if __name__ == "__main__":
    run_in_processes(work, [sys.argv[1]] * 2, 2, lambda count: None)
"""


def double(number: int) -> int:
    processes.count_one()
    if number < 0:
        raise FacelitError("a negative number")
    return processes.shared * number


@pytest.mark.parametrize("jobs", [1, 2])
def test_results_counts_and_errors(jobs: int) -> None:
    counts: list[int] = []
    assert run_in_processes(double, [3, 1, 2], jobs, counts.append, to_share=2) == [6, 2, 4]
    assert counts[-1] == 3
    with pytest.raises(FacelitError, match="a negative number"):
        run_in_processes(double, [1, -1], jobs, counts.append, to_share=2)


def is_running(pid: int) -> bool:
    """Whether there is such a process, and it is not just waiting to be buried."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return bool(state) and not state.startswith("Z")


def test_workers_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    """They would go on writing beside its successor, or wait for ever."""
    script, started = tmp_path / "script.py", tmp_path / "started"
    script.write_text(SCRIPT)
    started.mkdir()
    root = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": root}
    parent = subprocess.Popen([sys.executable, script, started], env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(list(started.iterdir())) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    workers = [int(path.name) for path in started.iterdir()]
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert len(workers) == 2
    deadline = time.monotonic() + 20
    while any(map(is_running, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_running, workers))
