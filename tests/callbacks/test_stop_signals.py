"""Whatever stops a run, and whenever: it says how to go on, and the run that goes on ends as if nothing had happened."""

import csv
import os
import shlex
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pytorch_lightning import Trainer

from facelit.callbacks import LastCheckpoint, StopSignals, VerificationCallback
from facelit.cli import main
from facelit.data import FaceDataModule
from facelit.storage.system import ASKING_TO_STOP
from facelit.training import FaceRecognizer
from tiny_run import make_run

QUIET = ["--verification.hardest_pairs", "0"]


class Killed(BaseException):
    """As SIGKILL: nobody catches it."""


def logged(folder: Path, column: str) -> list[tuple[int, float]]:
    """Step and value of every row, over all files that the run's loggers wrote."""
    rows = []
    for path in sorted(folder.glob("**/metrics*.csv")):
        with path.open() as file:
            rows += [(int(row["step"]), float(row[column])) for row in csv.DictReader(file) if row.get(column)]
    return sorted(rows)


def newest(folder: Path) -> dict[str, Any]:
    path = max(folder.glob("**/last.ckpt"), key=lambda path: path.stat().st_mtime)
    content: dict[str, Any] = torch.load(path, weights_only=True)
    return content


def fit(config: Path, *options: str) -> int:
    """Exit status."""
    try:
        main(["fit", "--config", str(config), *QUIET, *options])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def same(folder: Path, expected: Path) -> None:
    """Weights, losses and validations, none lost and none twice."""
    for name, value in newest(expected)["state_dict"].items():
        torch.testing.assert_close(newest(folder)["state_dict"][name], value, rtol=0, atol=0, msg=name)
    for column in ("train/loss", "tiny/accuracy", "tiny/threshold"):
        actual, wanted = logged(folder, column), logged(expected, column)
        assert [step for step, _ in actual] == [step for step, _ in wanted], column
        assert [value for _, value in actual] == pytest.approx([value for _, value in wanted], abs=1e-6), column
    # A CSV logger's resumed run is in a new folder, and may keep a checkpoint there that was not the best of all.
    assert {path.name for path in expected.glob("**/epoch*.ckpt")} <= {
        path.name for path in folder.glob("**/epoch*.ckpt")
    }


@pytest.fixture(autouse=True)
def _a_terminal() -> Iterator[None]:
    """Under `nohup`, which has SIGHUP ignored, a run rightly leaves it so."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL) if hasattr(signal, "SIGHUP") else None
    yield
    if before is not None:
        signal.signal(signal.SIGHUP, before)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert fit(make_run(folder), "--trainer.max_epochs", "2") == 0
    return folder


@pytest.fixture(scope="module")
def often_validated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("validated")
    assert fit(make_run(folder), "--trainer.max_steps", "8", "--trainer.val_check_interval", "2") == 0
    return folder


def send(monkeypatch: pytest.MonkeyPatch, owner: Any, hook: str, step: int, signum: int | None) -> None:
    """Once, where a run is at a step: a signal, or the end of the process."""
    original = getattr(owner, hook)
    done: list[int] = []

    def hooked(self: Any, *args: Any, **kwargs: Any) -> Any:
        trainer = args[0] if isinstance(args[0], Trainer) else self.trainer
        if trainer.global_step == step and not done:
            done.append(step)
            if signum is None:
                raise Killed
            os.kill(os.getpid(), signum)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(owner, hook, hooked)


@pytest.mark.parametrize(
    ("where", "step", "signum", "stops_at"),
    [
        ((FaceRecognizer, "training_step"), 7, signal.SIGHUP, 8),
        ((FaceRecognizer, "training_step"), 5, signal.SIGINT, 6),
        ((VerificationCallback, "on_validation_batch_end"), 6, signal.SIGUSR1, 6),
        ((VerificationCallback, "on_validation_epoch_end"), 12, signal.SIGTERM, None),
        ((Trainer, "save_checkpoint"), 6, signal.SIGTERM, 7),
    ],
    ids=["mid-epoch", "before a validation", "in a validation", "at the end", "in a save"],
)
def test_a_signal(
    tmp_path: Path,
    uninterrupted: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    where: tuple[Any, str],
    step: int,
    signum: signal.Signals,
    stops_at: int | None,
) -> None:
    config = make_run(tmp_path)
    owner, hook = where
    if owner is Trainer:
        save = Trainer.save_checkpoint

        def saving(self: Trainer, *args: Any, **kwargs: Any) -> None:
            if self.global_step == step:
                os.kill(os.getpid(), signum)
            save(self, *args, **kwargs)

        monkeypatch.setattr(owner, hook, saving)
    else:
        send(monkeypatch, owner, hook, step, signum)
    handlers = signal.getsignal(signum)
    status = fit(config, "--trainer.max_epochs", "2")
    assert signal.getsignal(signum) == handlers
    if stops_at is None:
        assert status == 0
    else:
        assert status == 128 + signum
        assert newest(tmp_path)["global_step"] == stops_at
        last_line = capsys.readouterr().err.strip().splitlines()[-1]
        assert last_line.startswith(f"facelit: stopped by {signum.name} after step {stops_at}. To go on: ")
        monkeypatch.undo()
        arguments = shlex.split(last_line.partition(" fit ")[2])
        assert arguments[-1].endswith("last.ckpt")
        main(["fit", *arguments])
    same(tmp_path, uninterrupted)


@pytest.mark.skipif(not hasattr(signal, "SIGXCPU"), reason="not on this system")
@pytest.mark.parametrize("signum", [signal.SIGHUP, signal.SIGUSR2, signal.SIGXCPU], ids=str)
def test_a_closed_terminal_and_what_schedulers_send(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signum: signal.Signals
) -> None:
    config = make_run(tmp_path, data__verification=None)
    send(monkeypatch, FaceRecognizer, "training_step", 1, signum)
    assert fit(config) == 128 + signum
    assert newest(tmp_path)["global_step"] == 2


def test_max_time_is_a_budget_of_each_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = make_run(tmp_path, data__verification=None)
    for step, resume in ((1, []), (2, ["--ckpt_path", "last"])):
        assert fit(config, "--trainer.max_time", "00:00:00:00", *resume) == 0
        assert newest(tmp_path)["global_step"] == step
        assert f"stopped by trainer.max_time after step {step}. To go on:" in capsys.readouterr().err


def test_ctrl_c_while_a_run_is_set_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(self: FaceDataModule, stage: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(FaceDataModule, "setup", interrupted)
    handler = signal.getsignal(signal.SIGINT)
    try:
        assert fit(make_run(tmp_path)) == 130
    finally:
        signal.signal(signal.SIGINT, handler)  # Lightning lets go of it
    assert capsys.readouterr().err.splitlines()[-1] == "facelit: stopped."


def test_sigterm_while_a_run_is_set_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def terminated(self: FaceRecognizer, stage: str) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(FaceRecognizer, "setup", terminated)
    handler = signal.getsignal(signal.SIGTERM)
    assert fit(make_run(tmp_path)) == 143
    assert signal.getsignal(signal.SIGTERM) == handler
    assert capsys.readouterr().err.splitlines()[-1] == "facelit: stopped by SIGTERM."


def test_nohup() -> None:
    """Who has asked for no signal when the terminal is closed gets none."""
    handlers = {signum: signal.getsignal(signum) for signum in ASKING_TO_STOP}
    trainer: Any = SimpleNamespace(is_global_zero=True)
    stop = StopSignals()
    try:
        for handler in (signal.SIG_IGN, signal.SIG_DFL):
            signal.signal(signal.SIGHUP, handler)
            stop._install(stop._note, trainer)
            assert signal.getsignal(signal.SIGTERM) == stop._note
            expected = signal.SIG_IGN if handler is signal.SIG_IGN else stop._note
            assert signal.getsignal(signal.SIGHUP) == expected
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)


def test_processes_ask_each_other_every_other_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock of their own: batches of 0.1 seconds, then of 1; never more than log_every_n_steps batches apart."""
    asked: list[int] = []
    clock = [0.0]
    monkeypatch.setattr("facelit.callbacks.stop_signals.monotonic", lambda: clock[0])
    monkeypatch.setattr("torch.distributed.all_reduce", lambda message, op: asked.append(batch))
    trainer: Any = type("T", (), {"log_every_n_steps": 15, "strategy": type("S", (), {"root_device": "cpu"})})
    stop = StopSignals()
    for batch in range(70):
        stop._agree(trainer)
        clock[0] += 0.1 if batch < 35 else 1.0
    assert asked == [0, 15, 30, *range(45, 70, 2)]


EVERY_OTHER_STEP = ["--last_checkpoint.every_n_train_steps", "2"]


@pytest.mark.parametrize("step", [6, 12], ids=["an epoch's end", "the run's end"])
def test_a_kill_in_a_validation(
    tmp_path: Path, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Twice at the same one: the resumed run makes the validation up, under its own epoch and step; it is killed right after it."""
    config = make_run(tmp_path, trainer__max_epochs=2)
    command = [*EVERY_OTHER_STEP, "--run_name", "week", "--ckpt_path", "auto"]
    kills: list[tuple[Any, str]] = [(VerificationCallback, "on_validation_epoch_end")] * 2
    for owner, hook in [*kills, *([(FaceRecognizer, "training_step")] if step < 12 else [])]:
        send(monkeypatch, owner, hook, step, None)
        with pytest.raises(Killed):
            fit(config, *command)
    assert fit(config, *command) == 0
    same(tmp_path, uninterrupted)


def test_a_kill_after_the_best_checkpoint(tmp_path: Path, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And before `last.ckpt`: the validation is made up, and its best checkpoint is not kept twice."""
    config = make_run(tmp_path, trainer__max_epochs=2)
    command = [*EVERY_OTHER_STEP, "--run_name", "week", "--ckpt_path", "auto"]
    send(monkeypatch, LastCheckpoint, "on_validation_end", 6, None)
    with pytest.raises(Killed):
        fit(config, *command)
    assert fit(config, *command) == 0
    kept, expected = ({path.name for path in folder.glob("**/*.ckpt")} for folder in (tmp_path, uninterrupted))
    assert kept == expected


def test_a_kill_right_after_a_save(tmp_path: Path, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The figures of the step that was saved are in the curves."""
    config = make_run(tmp_path, trainer__max_epochs=2)
    command = [*EVERY_OTHER_STEP, "--run_name", "week", "--ckpt_path", "auto"]
    save = LastCheckpoint._save

    def save_and_die(self: LastCheckpoint, trainer: Trainer) -> None:
        save(self, trainer)
        if trainer.global_step == 4:
            raise Killed

    monkeypatch.setattr(LastCheckpoint, "_save", save_and_die)
    with pytest.raises(Killed):
        fit(config, *command)
    monkeypatch.undo()
    assert newest(tmp_path)["global_step"] == 4
    assert fit(config, *command) == 0
    same(tmp_path, uninterrupted)


@pytest.mark.parametrize("step", [4, 8], ids=["mid-epoch", "max_steps"])
def test_a_kill_in_one_of_several_validations(
    tmp_path: Path, often_validated: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    config = make_run(tmp_path)
    options = [*EVERY_OTHER_STEP, "--trainer.max_steps", "8", "--trainer.val_check_interval", "2"]
    send(monkeypatch, VerificationCallback, "on_validation_epoch_end", step, None)
    with pytest.raises(Killed):
        fit(config, *options)
    assert fit(config, *options, "--ckpt_path", "last") == 0
    same(tmp_path, often_validated)
