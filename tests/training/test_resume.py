"""A run that is killed and resumed goes on as if nothing had happened."""

import csv
import math
import signal
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Trainer

from facelit.cli import main
from facelit.data.batches import TrainBatch, TrainImages
from facelit.data.samplers import BatchRequest, EpochSampler
from tiny_run import ROOT, make_run
from warm_processes import WarmProcess


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
    assert losses(tmp_path) == pytest.approx(losses(uninterrupted), abs=1e-6)


def test_kill_9_then_ckpt_path_last(tmp_path: Path, uninterrupted: Path) -> None:
    """The process is killed in the middle of training; the loss curve goes on as the uninterrupted run's."""
    config = make_run(tmp_path)
    every_other_step = ["--last_checkpoint.every_n_train_steps", "2"]
    process = WarmProcess(ROOT / "main.py", "fit", "--config", config, *every_other_step)
    try:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("**/last.ckpt")) and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    main(["fit", "--config", str(config), "--ckpt_path", "last"])
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


def test_other_epochs_change_the_length_of_the_schedule(tmp_path: Path) -> None:
    """Two epochs of six steps, then two of three: the cosine ends with step 18, not with the 12 of four such epochs."""
    config = make_run(
        tmp_path,
        data__verification=None,
        model__lr_scheduler={"class_path": "facelit.optim.WarmupCosine", "init_args": {"warmup": 0.0}},
        model__lr_interval="step",
    )
    main(["fit", "--config", str(config), "--trainer.max_epochs", "2"])
    main(
        ["fit", "--config", str(config), "--ckpt_path", "last", "--trainer.max_epochs", "4", "--data.batch_size", "16"]
    )
    with max(tmp_path.glob("**/metrics.csv"), key=lambda path: path.stat().st_mtime).open() as file:
        rates = {int(row["step"]): float(row["lr"]) for row in csv.DictReader(file) if row["lr"]}
    expected = {step: 0.02 * (1 + math.cos(math.pi * step / 18)) / 2 for step in range(12, 18)}
    assert rates == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("runs", "num_workers"),
    [
        ([["--trainer.max_steps", "18", "--trainer.max_epochs", "1"], ["--trainer.max_steps", "18"]], 0),
        ([["--trainer.max_epochs", "1"], []], 1),
        ([["--trainer.max_steps", "6"], ["--trainer.max_steps", "10"], []], 0),
    ],
    ids=["max_steps", "a worker reads ahead", "stopped in the epoch after"],
)
def test_epochs_follow_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: list[list[str]], num_workers: int
) -> None:
    """Without verification `last.ckpt` is written when an epoch is over: the next one is gone through once, and whole."""
    asked: dict[int, list[int]] = defaultdict(list)
    draw = EpochSampler.__iter__

    def recorded(sampler: EpochSampler) -> Iterator[BatchRequest]:
        for request in draw(sampler):
            asked[request.epoch] += request.indices.tolist()
            yield request

    monkeypatch.setattr(EpochSampler, "__iter__", recorded)
    config = make_run(tmp_path, data__verification=None, data__num_workers=num_workers)
    for number, options in enumerate(runs):
        resumed = ["--ckpt_path", "last"] if number else []
        main(["fit", "--config", str(config), *resumed, *options])
    assert {epoch: sorted(images) for epoch, images in asked.items()} == {epoch: list(range(48)) for epoch in range(3)}


def test_accumulated_batches_are_not_cut_by_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is resumed at a step which `last.ckpt` is due at writes none before the next step."""
    config = make_run(tmp_path, data__verification=None, trainer__accumulate_grad_batches=3)
    due = ["--last_checkpoint.every_n_train_steps", "1", "--checkpoint.save_top_k", "0"]
    main(["fit", "--config", str(config), *due, "--trainer.max_steps", "1"])
    batches: list[int] = []
    save = Trainer.save_checkpoint

    def record(self: Trainer, *args: Any, **kwargs: Any) -> None:
        batches.append(self.fit_loop.epoch_loop.batch_progress.current.ready)
        save(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "save_checkpoint", record)
    main(["fit", "--config", str(config), *due, "--ckpt_path", "last", "--trainer.max_steps", "3"])
    assert batches == [6, 3]


def test_several_loggers_go_on_in_the_run_of_the_first(tmp_path: Path) -> None:
    loggers = [
        {
            "class_path": f"pytorch_lightning.loggers.{name}",
            "init_args": {"save_dir": str(tmp_path / name), "name": "tiny"},
        }
        for name in ("TensorBoardLogger", "CSVLogger")
    ]
    config = make_run(tmp_path, data__verification=None, trainer__logger=loggers)
    main(["fit", "--config", str(config), "--trainer.max_steps", "1"])
    main(["fit", "--config", str(config), "--ckpt_path", "last", "--trainer.max_steps", "2"])
    assert [path.name for path in (tmp_path / "TensorBoardLogger" / "tiny").iterdir()] == ["version_0"]


def test_checkpoints_in_a_folder_of_their_own_are_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = make_run(tmp_path, data__verification=None)
    options = ["--checkpoint.dirpath", str(tmp_path / "kept"), "--trainer.max_steps"]
    main(["fit", "--config", str(config), *options, "1"])
    main(["fit", "--config", str(config), "--ckpt_path", "last", *options, "2"])
    assert torch.load(tmp_path / "kept" / "last.ckpt", weights_only=True)["global_step"] == 2


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[int, list[int]]:
    """Image numbers that runs in this process read, by epoch."""
    images: dict[int, list[int]] = defaultdict(list)
    read = TrainImages.__getitem__

    def recorded(dataset: TrainImages, request: BatchRequest) -> TrainBatch:
        images[request.epoch] += request.indices.tolist()
        return read(dataset, request)

    monkeypatch.setattr(TrainImages, "__getitem__", recorded)
    return images


@pytest.mark.parametrize(
    ("verified", "stop", "batch_size"),
    [
        (True, "max_steps=6", 4),
        (True, "max_epochs=1", 4),
        (False, "max_epochs=1", 4),
        (True, "max_epochs=1", 10),
    ],
    ids=["last step", "validated", "not validated", "larger"],
)
def test_another_batch_size_from_the_end_of_an_epoch(
    tmp_path: Path,
    seen: dict[int, list[int]],
    caplog: pytest.LogCaptureFixture,
    verified: bool,
    stop: str,
    batch_size: int,
) -> None:
    """48 images in batches of 8, then of another size: the next epoch shows each image once, and the change is named."""
    config = make_run(tmp_path, trainer__max_epochs=2, **({} if verified else {"data__verification": None}))
    main(["fit", "--config", str(config), f"--trainer.{stop}"])
    seen.clear()
    main(["fit", "--config", str(config), "--ckpt_path", "last", "--data.batch_size", str(batch_size)])
    assert {epoch: sorted(images) for epoch, images in seen.items()} == {1: list(range(48))}
    if verified:  # else Lightning gives the loader no state back: there is nothing to go on with
        assert f"from the next epoch on: global batch size {batch_size} instead of 8" in caplog.text


def test_an_epoch_that_was_cut_short_is_over(tmp_path: Path, seen: dict[int, list[int]]) -> None:
    """trainer.limit_train_batches ended it: without that limit the next epoch is a whole one, from its first batch."""
    config = make_run(tmp_path, trainer__max_epochs=2)
    main(["fit", "--config", str(config), "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "4"])
    seen.clear()
    main(["fit", "--config", str(config), "--ckpt_path", "last"])
    assert {epoch: sorted(images) for epoch, images in seen.items()} == {1: list(range(48))}


def test_in_the_middle_of_an_epoch_a_changed_order_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Batch size, seed or images: one line says what changed and what to do."""
    config = make_run(tmp_path)
    main(["fit", "--config", str(config), "--trainer.max_steps", "8"])

    def refused(*options: str) -> str:
        with pytest.raises(SystemExit):
            main(["fit", "--config", str(config), "--ckpt_path", "last", *options])
        (error,) = (line for line in capsys.readouterr().err.splitlines() if "error" in line)
        assert "after 2 of the 6 batches" in error
        assert "last.ckpt" in error
        return error

    assert "global batch size 16 instead of 8" in refused("--data.batch_size", "16")
    assert "seed 8 instead of 7" in refused("--seed_everything", "8")
    assert "sampler IdentityBalancedSampler instead of ShuffleSampler" in refused(
        "--data.sampler=IdentityBalancedSampler",
        "--data.sampler.identities_per_batch=2",
        "--data.sampler.images_per_identity=4",
    )
    (tmp_path / "crops" / "person_03" / "person_03_0006.png").unlink()
    assert "training set of 47 images" in refused()
