"""Two processes, of which one is stopped, fails or is killed: the other follows, and the last line says why."""

import errno
import os
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed.run as torchrun

from facelit.callbacks import RunStopped
from facelit.cli import front
from facelit.cli.errors import explain_memory
from facelit.cli.processes import Processes, _lost_peer, _obituary
from facelit.cli.way_on import way_on
from tiny_run import ROOT, make_run
from warm_processes import WarmProcess, living
from warm_processes import run as run_script

# Found in the folder where the program is started, as a user's own classes are.
TROUBLE = """
import os, resource, signal
from pathlib import Path
import torch
from pytorch_lightning import Callback
from facelit.errors import FacelitError

class Trouble(Callback):
    def __init__(self, what: str, rank: int = 1) -> None:
        self.what, self.rank = what, rank

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step != 4 or trainer.global_rank != self.rank or Path("had-it").exists():
            return
        Path("cause").touch()
        if self.what == "SIGKILL":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.what == "error":
            Path("had-it").touch()
            raise FacelitError("this image is broken.")
        if self.what == "memory":
            resource.setrlimit(resource.RLIMIT_AS, (2**33, 2**33))
            torch.empty(2**33)
        if self.what == "GPU memory":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of ...")
        if self.what == "NaN":
            step = module.training_step
            module.training_step = lambda *args: step(*args) * float("nan")

    def on_validation_batch_end(self, trainer, module, outputs, batch, batch_idx, dataloader_idx=0):
        if trainer.global_rank == self.rank and self.what == "SIGTERM":
            os.kill(os.getpid(), signal.SIGTERM)
"""
TWO = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.max_epochs", "2"]


def arguments(folder: Path, what: str, rank: int = 1) -> list[str]:
    config = make_run(folder)
    (folder / "trouble.py").write_text(TROUBLE)
    callback = ["--trainer.callbacks", "trouble.Trouble", "--trainer.callbacks.what", what]
    return ["fit", "--config", str(config), *TWO, *callback, "--trainer.callbacks.rank", str(rank)]


def started(folder: Path, *options: str) -> tuple[int, list[str]]:
    """Exit status of process 0, and what was printed, once no process of the run is left."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with (folder / "said").open("w") as said:
        run = WarmProcess(ROOT / "main.py", *options, cwd=folder, env=environment, stdout=said, stderr=said)
        status = run.wait(240)
        deadline = time.monotonic() + 60
        while left := living(folder):
            assert time.monotonic() < deadline, left
            time.sleep(0.2)
    return status, (folder / "said").read_text().strip().splitlines()


def test_a_process_that_is_killed(tmp_path: Path) -> None:
    status, lines = started(tmp_path, *arguments(tmp_path, "SIGKILL"))
    assert status == 2
    assert (
        "error: process 1 was killed by SIGKILL (often because the machine ran out of memory). To go on: " in lines[-1]
    )
    assert lines[-1].endswith("--ckpt_path runs/tiny/version_0/checkpoints/last.ckpt")
    assert "Traceback (most recent call last):" not in lines


MEMORY = "Lower data.batch_size (or what the sampler makes of it), data.eval_batch_size or data.num_workers. To go on: "


@pytest.mark.parametrize(
    ("what", "rank", "said"),
    [
        ("error", 0, "process 0 of 2 stopped: this image is broken. To go on: "),
        ("memory", 1, f"process 1 of 2 stopped: out of memory (tried to allocate 34359738368 bytes). {MEMORY}"),
        ("GPU memory", 0, f"process 0 of 2 stopped: out of memory (tried to allocate 2.00 GiB). {MEMORY}"),
        ("NaN", 1, "process 1 of 2 stopped: the loss is NaN or infinite since step 5 "),
    ],
)
def test_a_process_that_stops_alone(tmp_path: Path, what: str, rank: int, said: str) -> None:
    status, lines = started(tmp_path, *arguments(tmp_path, what, rank))
    assert status == 2
    assert lines[-1].startswith(f"facelit: error: {said}"), lines[-1]
    assert lines[-1].endswith("--ckpt_path runs/tiny/version_0/checkpoints/last.ckpt")
    assert not [
        line for line in lines if line.startswith("Traceback") or "gloo" in line.lower().replace("backend=gloo", "")
    ]


def test_an_image_that_one_process_cannot_read(tmp_path: Path) -> None:
    config = make_run(tmp_path)
    broken = tmp_path / "crops" / "person_03" / "person_03_0005.png"
    broken.write_bytes(broken.read_bytes()[:100])
    status, lines = started(tmp_path, "fit", "--config", str(config), *TWO)
    assert status == 2
    assert lines[-1].startswith("facelit: error: process ")
    assert f" of 2 stopped: {broken}: " in lines[-1]
    assert "Traceback (most recent call last):" not in lines


def test_a_launcher_that_is_killed(tmp_path: Path) -> None:
    """What it started does not train on alone."""
    status, lines = started(tmp_path, *arguments(tmp_path, "SIGKILL", rank=0))
    assert status == -9
    assert "Traceback (most recent call last):" not in lines


def test_a_launcher_that_is_killed_while_another_process_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the time it looks, its parent is another: it would wait half an hour for process 0."""
    ended = os.spawnlp(os.P_NOWAIT, "true", "true")
    os.waitpid(ended, 0)
    monkeypatch.setattr(os, "_exit", sys.exit)
    monkeypatch.setattr("facelit.cli.processes.replace_process_observer", lambda observe: None)
    monkeypatch.setenv("FACELIT_LAUNCHER", str(ended))
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(SystemExit) as end:
        Processes([]).watch()
    assert end.value.code == 2


def test_a_process_tells_those_it_starts_who_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("facelit.cli.processes.replace_process_observer", lambda observe: None)
    monkeypatch.setenv("FACELIT_LAUNCHER", "0")
    Processes([]).watch()
    assert os.environ["FACELIT_LAUNCHER"] == str(os.getpid())


LEAVING = """
import atexit, threading, time
from pathlib import Path
from facelit.cli.processes import end_now

class TakenDown:
    def __del__(self, touch=Path.touch, path=Path("taken-down")):
        touch(path)

kept = TakenDown()
atexit.register(Path("at-exit").touch)
threading.Thread(target=lambda: (time.sleep(0.2), Path("thread").touch())).start()
print("the last line", end="")
end_now(143)
"""


def test_a_stopped_process_leaves_at_once(tmp_path: Path) -> None:
    """With all that the interpreter promises at an exit, and no more."""
    (tmp_path / "leaving.py").write_text(LEAVING)
    ended = run_script(tmp_path / "leaving.py", cwd=tmp_path, taken_down=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (143, "the last line", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["at-exit", "leaving.py", "thread"]


@pytest.mark.parametrize("args", [None, ["fit"]], ids=["command line", "Python"])
def test_only_the_command_line_leaves_at_once(monkeypatch: pytest.MonkeyPatch, args: list[str] | None) -> None:
    def stopped(arguments: list[str]) -> None:
        try:
            raise RunStopped(signal.SIGTERM, step=3)
        except RunStopped as stop:
            sys.exit(stop.code)

    left: list[int] = []
    monkeypatch.setattr("facelit.cli.training.main", stopped)
    monkeypatch.setattr("facelit.cli.processes.end_now", left.append)
    monkeypatch.setattr(sys, "argv", ["main.py", "fit"])
    with pytest.raises(SystemExit) as end:
        front.main(args)
    assert end.value.code == 143
    assert left == ([143] if args is None else [])


def test_a_signal_to_one_process_in_a_validation(tmp_path: Path) -> None:
    status, lines = started(tmp_path, *arguments(tmp_path, "SIGTERM"))
    assert status == 143
    assert lines[-1].startswith("facelit: stopped by SIGTERM after step 3. To go on: ")
    state = torch.load(tmp_path / "runs/tiny/version_0/checkpoints/last.ckpt", weights_only=True)
    assert state["facelit"]["validation_due"]


def test_torchrun_goes_on_by_itself(tmp_path: Path) -> None:
    """One process fails, once: restarted, both go on in the same folder, from the last checkpoint."""
    launch = ["--standalone", "--nproc_per_node", "2", "--max-restarts", "2"]
    command = [ROOT / "main.py", *arguments(tmp_path, "error"), "--run_name", "week", "--ckpt_path", "auto"]
    ended = run_script(torchrun.__file__, *launch, *command, cwd=tmp_path)
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


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "out of memory. Lower data.batch_size"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "out of memory. Lower"),
        (
            RuntimeError("not enough memory: you tried to allocate 12 bytes."),
            "out of memory (tried to allocate 12 bytes).",
        ),
        (RuntimeError("shapes differ"), ""),
        (OSError(errno.ENOENT, "No such file"), ""),
    ],
)
def test_what_is_said_where_there_is_no_memory(error: Exception, said: str) -> None:
    assert str(explain_memory(error) or "").startswith(said)
    assert said or explain_memory(error) is None


def test_ctrl_c_while_the_cause_is_looked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def word() -> str:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGUSR1)
        return "process 3 of 4 stopped: a reason"

    monkeypatch.setattr("facelit.cli.processes._word", word)
    monkeypatch.setattr(os, "_exit", sys.exit)
    handlers = {
        signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
    }
    try:
        with pytest.raises(SystemExit) as ended:
            Processes(["validate"]).fail(RuntimeError("Connection closed by peer"), "what gloo says")
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
    assert ended.value.code == 2
    assert capsys.readouterr().err == "facelit: error: process 3 of 4 stopped: a reason.\n"


def test_what_is_said_of_the_dead() -> None:
    assert _obituary(3, -15) == "process 3 was killed by SIGTERM."
    assert _obituary(3, 130) == "process 3 was stopped by SIGINT."
    assert _obituary(3, 7).startswith("process 3 ended with status 7")


def test_the_way_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["main.py"])
    last = tmp_path / "a run" / "last.ckpt"
    go_on = "To go on: python main.py fit"
    assert way_on(["fit", "--ckpt_path", "old", "--x", "1"], last) == f"{go_on} --x 1 --ckpt_path 'a run/last.ckpt'"
    assert way_on(["fit", "--ckpt_path=auto", "--run_name", "b"], last) == f"{go_on} --run_name b --ckpt_path auto"
    assert way_on(["fit"], None) == "No checkpoint was written yet. To start again: python main.py fit"
