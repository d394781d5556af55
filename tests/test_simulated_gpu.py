"""Training steps on a simulated device: nothing mixes devices, and nothing waits. See `simulated_gpu.py`."""

import json
import os
from functools import cache
from pathlib import Path

import pytest

from tiny_run import ROOT
from warm_processes import run

simulated_gpu = pytest.importorskip("simulated_gpu", reason="torch is too old for it", exc_type=ImportError)
PROGRAM = Path(simulated_gpu.__file__)
_WAITS, _MIXES, _COPIES = "DataDependentOutput|DynamicOutputShape", "DeviceMismatch", "a copy between cpu and fakegpu"
MESSAGES = {
    "reads_a_number": _WAITS,
    "asks_which": _WAITS,
    "selects_by_mask": _WAITS,
    "branches": _WAITS,
    "mixes_devices": _MIXES,
    "indexes_from_the_host": _MIXES,
    "copies_to_the_host": _COPIES,
    "copies_to_the_device": _COPIES,
}


@cache
def errors() -> dict[str, str | None]:
    """Of each case, from one process for all."""
    done = run(PROGRAM, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=600)
    assert done.returncode == 0, done.stderr
    found: dict[str, str | None] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("case", [name for name in simulated_gpu.cases() if not name.startswith("fault ")])
def test_steps_neither_mix_devices_nor_wait(case: str) -> None:
    assert errors()[case] is None


@pytest.mark.parametrize("fault", simulated_gpu.FAULTS)
def test_a_head_that_mixes_or_waits_is_seen(fault: str) -> None:
    found = errors()[f"fault {fault}"]
    assert found is not None
    assert any(message in found for message in MESSAGES[fault].split("|")), found
