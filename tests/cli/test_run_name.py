"""`--run_name NAME --ckpt_path auto`: one command starts a run and goes on with it, whatever stopped it."""

import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from jsonargparse import Namespace
from pytorch_lightning.plugins.environments import SLURMEnvironment
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from facelit.callbacks import VerificationCallback
from facelit.cli import main
from facelit.cli.requeue import requeue_first
from facelit.cli.run_name import compare_checkpoints, use_run
from facelit.errors import FacelitError
from facelit.training import FaceRecognizer
from tiny_run import make_run
from two_processes import run_on_two_processes

OPTIONS = [
    "--verification.hardest_pairs",
    "0",
    "--last_checkpoint.every_n_train_steps",
    "2",
    "--trainer.max_epochs",
    "2",
]


class Killed(BaseException):
    """As SIGKILL: nobody catches it."""


def kill(monkeypatch: pytest.MonkeyPatch, owner: Any, hook: str, step: int) -> None:
    original = getattr(owner, hook)

    def hooked(self: Any, *args: Any, **kwargs: Any) -> Any:
        if (self.trainer if isinstance(self, FaceRecognizer) else args[0]).global_step == step:
            monkeypatch.setattr(owner, hook, original)
            raise Killed
        return original(self, *args, **kwargs)

    monkeypatch.setattr(owner, hook, hooked)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main(["fit", *arguments])
    assert end.value.code == 2
    (error,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("facelit: error"))
    return error


def test_one_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Killed before anything was saved, then in the validation at the end of an epoch; beside an older run that has finished."""
    config = make_run(tmp_path)
    own = ["--config", str(config), *OPTIONS]
    main(["fit", *own, "--run_name", "whole"])
    command = [*own, "--run_name", "week", "--ckpt_path", "auto"]
    for owner, hook, step in (
        (FaceRecognizer, "training_step", 1),
        (VerificationCallback, "on_validation_epoch_end", 6),
    ):
        kill(monkeypatch, owner, hook, step)
        with pytest.raises(Killed):
            main(["fit", *command])
    main(["fit", *command])
    runs = tmp_path / "runs" / "tiny"
    assert sorted(path.name for path in runs.iterdir()) == ["week", "whole"]
    whole, week = (
        torch.load(runs / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for name in ("whole", "week")
    )
    for name, value in whole.items():
        torch.testing.assert_close(week[name], value, rtol=0, atol=0, msg=name)
    best = [{path.name for path in runs.glob(f"{name}/checkpoints/*")} for name in ("whole", "week")]
    assert best[0] == best[1]
    assert len(list(runs.glob("week/metrics*.csv"))) == 3
    # Once more, when it is finished: nothing happens.
    main(["fit", *command])
    assert "there is a run of this name" in refused(capsys, *own, "--run_name", "week")
    assert "add --run_name NAME" in refused(capsys, *own, "--ckpt_path", "auto")
    assert "without slashes" in refused(capsys, *own, "--run_name", "../week")
    assert "needs a TensorBoardLogger or a CSVLogger" in refused(
        capsys, *own, "--run_name", "x", "--trainer.logger", "[]"
    )
    # From the newest that is whole; never from the start while there is one, even a damaged one.
    last = runs / "week" / "checkpoints" / "last.ckpt"
    for damage in (lambda: last.write_bytes(last.read_bytes()[:1000]), last.unlink):
        damage()
        main(["fit", *command])
        again = torch.load(last, weights_only=True)["state_dict"]
        for name, value in whole.items():
            torch.testing.assert_close(again[name], value, rtol=0, atol=0, msg=name)
    for path in last.parent.iterdir():
        path.write_bytes(b"")
    error = refused(capsys, *command)
    assert f"{last}: not a checkpoint, or a damaged one" in error
    assert "The run has no other." in error
    # A run that was stopped before it saved anything is the newest, and has nothing to resume.
    (runs / "version_7").mkdir()
    (runs / "version_7" / "config.yaml").touch()
    error = refused(capsys, *own, "--ckpt_path", "last")
    assert "version_7, was stopped before it saved a checkpoint" in error
    assert "tiny/week/checkpoints/last.ckpt" in error


def logger(kind: str, save_dir: Path, name: str | None) -> Namespace:
    options = Namespace(save_dir=str(save_dir), name=name, version=None)
    return Namespace(class_path=f"pytorch_lightning.loggers.{kind}", init_args=options)


@pytest.mark.parametrize("command", ["fit", "validate"])
def test_a_csv_logger_deletes_no_metrics(tmp_path: Path, command: str) -> None:
    """Wherever the run's loggers write, whatever the command, and whatever was kept before."""
    loggers = [logger("TensorBoardLogger", tmp_path / "a", None), logger("CSVLogger", tmp_path / "b", "x")]
    config = Namespace(
        run_name="week", ckpt_path="auto", checkpoint=Namespace(dirpath=None), trainer=Namespace(logger=loggers)
    )
    last, kept = tmp_path / "a/week/checkpoints/last.ckpt", tmp_path / "b/x/week"
    for path in (last, kept / "metrics.csv", kept / "metrics-2.csv"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(path.name)
    use_run(config, command)
    assert config.ckpt_path == str(last)  # a logger without a name has its runs in save_dir itself
    assert (kept / "metrics-1.csv").read_text() == "metrics.csv"
    assert (kept / "metrics-2.csv").read_text() == "metrics-2.csv"


def differing(folder: str) -> str:
    """On process 1 the checkpoint is not there."""
    number = torch.distributed.get_rank()
    try:
        compare_checkpoints(SimpleNamespace(ckpt_path=None if number else folder))  # type: ignore[arg-type]
    except FacelitError as error:
        return str(error)
    return ""


def test_machines_without_a_shared_folder(tmp_path: Path) -> None:
    """All processes end with the same line, instead of waiting for each other."""
    (tmp_path / "last.ckpt").write_bytes(b"12345")
    messages = run_on_two_processes(differing, str(tmp_path / "last.ckpt"))
    assert messages[0] == messages[1]
    assert "process 0 has last.ckpt of 5 bytes, process 1 has none" in messages[0]


def test_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Another run's hpc_ckpt_1.ckpt is left alone; the signal before the time limit saves the run and requeues its job."""
    config = make_run(tmp_path, ckpt_path="auto")
    (tmp_path / "hpc_ckpt_1.ckpt").write_bytes(b"whose is this?")
    calls = tmp_path / "calls"
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {calls}\n')
    scontrol.chmod(0o755)
    variables = {
        "NTASKS": "1",
        "JOB_ID": "77",
        "JOB_NAME": "train",
        "PROCID": "0",
        "LOCALID": "0",
        "NODELIST": "here",
        "NODEID": "0",
    }
    for name, value in variables.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    assert SLURMEnvironment.detect()
    step = FaceRecognizer.training_step

    def warned(self: FaceRecognizer, *args: Any) -> Any:
        if self.trainer.global_step == 2:
            os.kill(os.getpid(), signal.SIGUSR1)
        return step(self, *args)

    monkeypatch.setattr(FaceRecognizer, "training_step", warned)
    with pytest.raises(SystemExit) as end:
        main(["fit", "--config", str(config), "--run_name", "job"])
    assert end.value.code == 128 + signal.SIGUSR1
    assert torch.load(tmp_path / "runs/tiny/job/checkpoints/last.ckpt", weights_only=True)["global_step"] == 3
    assert calls.read_text() == "requeue 77\n"
    assert "SLURM job 77: requeued." in capsys.readouterr().err
    assert [path.name for path in tmp_path.glob("**/hpc_ckpt*")] == ["hpc_ckpt_1.ckpt"]


def test_runs_that_keep_their_checkpoints_in_one_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`auto` goes on with its own run only, and a new run does not replace what another would go on from."""
    kept = tmp_path / "kept"
    config = make_run(tmp_path, data__verification=None, checkpoint__dirpath=str(kept), trainer__max_steps=1)
    main(["fit", "--config", str(config), "--run_name", "one", "--ckpt_path", "auto"])
    content = (kept / "last.ckpt").read_bytes()
    error = refused(capsys, "--config", str(config), "--run_name", "two", "--ckpt_path", "auto")
    assert "is of the run one, not of two" in error
    assert "a new run would replace it" in refused(capsys, "--config", str(config), "--run_name", "two")
    assert (kept / "last.ckpt").read_bytes() == content


def test_what_another_run_left_after_an_exception(tmp_path: Path) -> None:
    """Lightning's own callback would have a new run go on from it."""
    left = tmp_path / "left" / "on_exception.ckpt"
    left.parent.mkdir()
    left.write_bytes(b"whose is this?")
    callback = {
        "class_path": "pytorch_lightning.callbacks.OnExceptionCheckpoint",
        "init_args": {"dirpath": str(left.parent)},
    }
    config = make_run(tmp_path, data__verification=None, trainer__max_steps=1, trainer__callbacks=[callback])
    main(["fit", "--config", str(config)])
    assert torch.load(next(tmp_path.glob("**/last.ckpt")), weights_only=True)["global_step"] == 1


def requeued(folder: str) -> bool:
    """Whether the job is back in the queue when a process may end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        patch.setenv("SLURM_JOB_ID", "77")
        patch.setattr(rank_zero_only, "rank", torch.distributed.get_rank())
        requeue_first(True)
    return Path(folder, "queue").exists()


def test_no_process_ends_before_the_job_is_requeued(tmp_path: Path) -> None:
    """`srun --kill-on-bad-exit` would end `scontrol`, too."""
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f"#!/bin/sh\nsleep 0.5\necho $2 >> {tmp_path}/queue\n")
    scontrol.chmod(0o755)
    assert run_on_two_processes(requeued, str(tmp_path)) == [True, True]
    assert (tmp_path / "queue").read_text() == "77\n"
