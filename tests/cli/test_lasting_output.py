"""Ctrl-C in `fit | tee log` ends tee, and a closed terminal takes nothing any more: the run has yet to save."""

import os
import sys
from pathlib import Path

import pytest

import warm_processes
from facelit.cli import training
from facelit.cli.lasting_output import outlive_readers

SCRIPT = """
import os, sys, time
from facelit.cli.lasting_output import outlive_readers
outlive_readers()
print("to the reader")
sys.stdout.flush()
while not os.path.exists("closed"):
    time.sleep(0.01)
for _ in range(3):
    print("to nobody " * 1000, flush=True)
    print("to nobody", file=sys.stderr)
open("saved", "w").close()
"""


@pytest.mark.parametrize("kind", ["pipe", "terminal"])
def test_what_nobody_takes_is_lost(tmp_path: Path, kind: str) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    reader, writer = os.pipe() if kind == "pipe" else os.openpty()
    with os.fdopen(writer, "wb", 0) as output:
        process = warm_processes.WarmProcess(tmp_path / "script.py", cwd=tmp_path, stdout=output, stderr=output)
    assert os.read(reader, 13) == b"to the reader"
    os.close(reader)
    (tmp_path / "closed").touch()
    assert process.wait(60) == 0
    assert (tmp_path / "saved").exists()


def test_other_outputs_are_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    """A notebook's, or pytest's."""
    before = sys.stdout, sys.stderr
    outlive_readers()
    assert (sys.stdout, sys.stderr) == before


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_every_training_command_outlives_its_readers(monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    """`validate | head -1` ended in a traceback, before its curves were drawn."""
    calls: list[str] = []
    monkeypatch.setattr(training, "outlive_readers", lambda: calls.append(command))
    with pytest.raises(SystemExit):
        training.main([command, "--no_such_option"])
    assert calls == [command]
