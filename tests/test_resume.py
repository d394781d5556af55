"""A run that is killed and resumed goes on as if nothing had happened."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
from tiny_run import ROOT, facelit, make_run

from facelit.cli import main


def losses(folder: Path) -> dict[int, float]:
    """Training loss by step, over all files that the run's loggers wrote."""
    found: dict[int, float] = {}
    for path in sorted(folder.glob("**/metrics*.csv")):
        with path.open() as file:
            found |= {int(row["step"]): float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]}
    return found


def final_state(folder: Path) -> dict[str, torch.Tensor]:
    path = max(folder.glob("**/last.ckpt"), key=lambda path: path.stat().st_mtime)
    return torch.load(path, weights_only=True)["state_dict"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    main(["fit", "--config", str(make_run(folder))])
    return folder


@pytest.mark.parametrize(
    ("stop_after", "num_workers"),
    [(6, 0), (8, 0), (8, 2), (12, 0)],
    ids=["end of epoch", "mid-epoch", "mid-epoch, two workers", "end of second epoch"],
)
def test_a_stopped_run_resumes_exactly(tmp_path: Path, uninterrupted: Path, stop_after: int, num_workers: int) -> None:
    """Stopped after any step, with any number of workers: weights and centers end bit-equal, no batch comes twice."""
    config = make_run(tmp_path, data__num_workers=num_workers)
    main(["fit", "--config", str(config), "--trainer.max_steps", str(stop_after)])
    main(["fit", "--config", str(config), "--ckpt_path", "last"])
    expected, actual = final_state(uninterrupted), final_state(tmp_path)
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=0, atol=0, msg=name)


def test_kill_9_then_ckpt_path_last(tmp_path: Path, uninterrupted: Path) -> None:
    """The process is killed in the middle of training; the loss curve goes on as the uninterrupted run's."""
    config = make_run(tmp_path)
    every_other_step = ["--last_checkpoint.every_n_train_steps", "2"]
    command = [sys.executable, str(ROOT / "main.py"), "fit", "--config", str(config), *every_other_step]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("**/last.ckpt")) and time.monotonic() < deadline:
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    resumed = facelit("fit", "--config", config, "--ckpt_path", "last")
    assert resumed.returncode == 0, resumed.stderr
    expected = losses(uninterrupted)
    actual = losses(tmp_path)
    assert len(expected) == 18
    assert {step: actual[step] for step in expected if step in actual} == pytest.approx(
        {step: expected[step] for step in expected if step in actual}, abs=1e-6
    )
    assert max(actual) == max(expected)
    for name, value in final_state(uninterrupted).items():
        torch.testing.assert_close(final_state(tmp_path)[name], value, rtol=0, atol=1e-5, msg=name)


def test_a_prolonged_run_has_a_prolonged_schedule(tmp_path: Path) -> None:
    """The length of a schedule is the resumed run's, not the checkpoint's: the rate does not stay at zero."""
    config = make_run(
        tmp_path,
        model__lr_scheduler={"class_path": "facelit.optim.WarmupCosine", "init_args": {"warmup": 0.0}},
        model__lr_interval="step",
    )
    main(["fit", "--config", str(config), "--trainer.max_epochs", "1"])
    main(["fit", "--config", str(config), "--ckpt_path", "last", "--trainer.max_epochs", "2"])
    rates: dict[int, float] = {}
    for path in sorted(tmp_path.glob("**/metrics.csv")):
        with path.open() as file:
            rates |= {int(row["step"]): float(row["lr"]) for row in csv.DictReader(file) if row["lr"]}
    assert rates[7] > 0.005
    assert rates[11] < rates[7]
