"""Two processes, of which one is stopped, fails or is killed: the other follows, and the last line says why."""

import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed.run as torchrun

import warm_processes
from facelit.cli.processes import _lost_peer, _obituary
from facelit.cli.way_on import way_on
from tiny_run import ROOT, facelit, make_run

# Found in the folder where the program is started, as a user's own classes are.
TROUBLE = """
import os, signal
from pathlib import Path
from pytorch_lightning import Callback
from facelit.errors import FacelitError

class Trouble(Callback):
    def __init__(self, what: str, rank: int = 1) -> None:
        self.what, self.rank = what, rank

    def on_train_start(self, trainer, module):
        Path(f"process-{trainer.global_rank}").write_text(str(os.getpid()))

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step == 4 and trainer.global_rank == self.rank and not Path("had-it").exists():
            if self.what == "SIGKILL":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.what == "error":
                Path("had-it").touch()
                raise FacelitError("this image is broken.")

    def on_validation_batch_end(self, trainer, module, outputs, batch, batch_idx, dataloader_idx=0):
        if trainer.global_rank == self.rank and self.what == "SIGTERM":
            os.kill(os.getpid(), signal.SIGTERM)
"""


def arguments(folder: Path, what: str, rank: int = 1) -> list[str]:
    config = make_run(folder)
    (folder / "trouble.py").write_text(TROUBLE)
    callback = [
        "--trainer.callbacks",
        "trouble.Trouble",
        "--trainer.callbacks.what",
        what,
        "--trainer.callbacks.rank",
        str(rank),
    ]
    ddp = [
        "--trainer.devices",
        "2",
        "--trainer.strategy",
        "ddp",
        "--trainer.max_epochs",
        "2",
        "--verification.hardest_pairs",
        "0",
    ]
    return ["fit", "--config", str(config), *ddp, *callback]


def test_a_process_that_is_killed(tmp_path: Path) -> None:
    ended = facelit(*arguments(tmp_path, "SIGKILL"), cwd=tmp_path)
    assert ended.returncode == 2
    last_line = ended.stderr.strip().splitlines()[-1]
    assert (
        "error: process 1 was killed by SIGKILL (often because the machine ran out of memory). To go on: " in last_line
    )
    assert last_line.endswith("--ckpt_path runs/tiny/version_0/checkpoints/last.ckpt")
    assert "Traceback" not in ended.stderr


def test_a_launcher_that_is_killed(tmp_path: Path) -> None:
    """What it started does not train on alone."""
    ended = facelit(*arguments(tmp_path, "SIGKILL", rank=0), cwd=tmp_path)
    assert ended.returncode == -9
    other = int((tmp_path / "process-1").read_text())
    deadline = time.monotonic() + 30
    while Path(f"/proc/{other}").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not Path(f"/proc/{other}").exists()


def test_a_signal_to_one_process_in_a_validation(tmp_path: Path) -> None:
    ended = facelit(*arguments(tmp_path, "SIGTERM"), cwd=tmp_path)
    assert ended.returncode == 143, ended.stderr
    assert "stopped by SIGTERM after step 3. To go on: " in ended.stderr.strip().splitlines()[-1]
    state = torch.load(tmp_path / "runs/tiny/version_0/checkpoints/last.ckpt", weights_only=True)
    assert state["facelit"]["validation_due"]


def test_torchrun_goes_on_by_itself(tmp_path: Path) -> None:
    """One process fails, once: restarted, both go on in the same folder, from the last checkpoint."""
    launch = ["--standalone", "--nproc_per_node", "2", "--max-restarts", "2"]
    command = [ROOT / "main.py", *arguments(tmp_path, "error"), "--run_name", "week", "--ckpt_path", "auto"]
    ended = warm_processes.run(torchrun.__file__, *launch, *command, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "error: process 1 of 2 stopped: this image is broken. To go on: under the same torchrun" in ended.stderr
    assert "Traceback" not in ended.stderr
    (run,) = (tmp_path / "runs" / "tiny").iterdir()
    assert run.name == "week"
    assert sorted(path.name for path in run.glob("config*")) == ["config-resumed-1.yaml", "config.yaml"]
    assert "Restored all states from the checkpoint" in ended.stderr + ended.stdout
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 6


@pytest.mark.parametrize(
    ("message", "lost"),
    [
        ("[gloo/transport/tcp/pair.cc:537] Connection closed by peer [127.0.0.1]:3345", True),
        ("NCCL communicator was aborted", True),
        ("CUDA out of memory", False),
    ],
)
def test_errors_that_only_say_that_another_is_gone(message: str, lost: bool) -> None:
    assert _lost_peer(RuntimeError(message)) is lost
    assert not _lost_peer(ValueError(message))


def test_what_is_said_of_the_dead() -> None:
    assert _obituary(3, -15) == "process 3 was killed by SIGTERM."
    assert _obituary(3, 7).startswith("process 3 ended with status 7")


def test_the_way_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["main.py"])
    last = tmp_path / "a run" / "last.ckpt"
    go_on = "To go on: python main.py fit"
    assert way_on(["fit", "--ckpt_path", "old", "--x", "1"], last) == f"{go_on} --x 1 --ckpt_path 'a run/last.ckpt'"
    assert way_on(["fit", "--ckpt_path=auto", "--run_name", "b"], last) == f"{go_on} --run_name b --ckpt_path auto"
    assert way_on(["fit"], None) == "No checkpoint was written yet. To start again: python main.py fit"
