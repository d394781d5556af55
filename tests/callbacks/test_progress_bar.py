"""The bar is brought up to date a few times a second, and at the end of an epoch."""

from pathlib import Path
from typing import Any

import pytest
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import RichProgressBar, TQDMProgressBar

from facelit.callbacks import LastCheckpoint, progress_bar
from facelit.callbacks.progress_bar import QuickProgressBar
from facelit.cli.training import main
from tiny_run import make_run


@pytest.mark.parametrize(
    ("seconds_a_batch", "shown"),
    [(0.0625, [0, 4, 8, 9]), (1.0, list(range(10))), (0.0, [0, 9])],
)
def test_batches_that_are_shown(monkeypatch: pytest.MonkeyPatch, seconds_a_batch: float, shown: list[int]) -> None:
    seen: list[int] = []
    monkeypatch.setattr(RichProgressBar, "on_train_batch_end", lambda *arguments: seen.append(arguments[-1]))
    monkeypatch.setattr(QuickProgressBar, "total_train_batches", 10)
    clock = {"now": 100.0}
    monkeypatch.setattr(progress_bar, "monotonic", lambda: clock["now"])
    bar = QuickProgressBar()
    for batch in range(10):
        bar.on_train_batch_end(None, None, None, None, batch)  # type: ignore[arg-type]
        clock["now"] += seconds_a_batch
    assert seen == shown


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], QuickProgressBar),
        (["--trainer.enable_progress_bar", "false"], None),
        (["--trainer.callbacks+", "TQDMProgressBar"], TQDMProgressBar),
    ],
)
def test_what_a_fit_uses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], expected: Any) -> None:
    trainers: list[Trainer] = []
    monkeypatch.setattr(LastCheckpoint, "on_fit_start", lambda self, trainer, pl_module: trainers.append(trainer))
    run = make_run(tmp_path, trainer__enable_progress_bar=True, trainer__fast_dev_run=True)
    main(["fit", "--config", str(run), *options])
    bar = trainers[0].progress_bar_callback
    assert (None if bar is None else type(bar)) is expected
