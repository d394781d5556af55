"""Signals to a loader's worker: only those of the process it works for count."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from torch.utils.data import DataLoader, Dataset

from facelit.data.worker_signals import leave_signals_to_main


class Pids(Dataset[int]):
    def __len__(self) -> int:
        return 100

    def __getitem__(self, index: int) -> int:
        return os.getpid()


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="not on this system")
def test_a_signal_to_the_group_leaves_workers_alone() -> None:
    loader = DataLoader(Pids(), batch_size=1, num_workers=1, worker_init_fn=leave_signals_to_main, prefetch_factor=1)
    batches = iter(loader)
    worker = int(next(batches))
    for name in ("TERM", "INT", "HUP", "USR1", "USR2", "XCPU"):
        subprocess.run(["kill", f"-{name}", str(worker)], check=True)
    time.sleep(0.3)
    for _ in range(10):
        assert int(next(batches)) == worker
    os.kill(worker, signal.SIGTERM)
    deadline = time.monotonic() + 30
    while Path(f"/proc/{worker}/stat").exists() and time.monotonic() < deadline:
        if Path(f"/proc/{worker}/stat").read_text().split()[2] == "Z":
            return
        time.sleep(0.05)
    assert not Path(f"/proc/{worker}").exists()
