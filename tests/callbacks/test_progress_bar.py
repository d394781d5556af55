"""The bar is brought up to date a few times a second, and at the end of an epoch."""

from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import RichProgressBar, TQDMProgressBar
from rich.console import Console
from rich.progress import Progress, TextColumn

from facelit.callbacks import LastCheckpoint, progress_bar
from facelit.callbacks.progress_bar import QuickProgressBar
from facelit.callbacks.progress_log import ProgressLog
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
        ([], ProgressLog),
        (["--trainer.enable_progress_bar", "false"], None),
        (["--trainer.callbacks+", "TQDMProgressBar"], TQDMProgressBar),
    ],
)
def test_what_a_fit_uses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], expected: Any) -> None:
    trainers: list[Trainer] = []
    monkeypatch.setattr(LastCheckpoint, "on_fit_start", lambda self, trainer, pl_module: trainers.append(trainer))
    monkeypatch.setattr("facelit.cli.lightning_cli.draws_bars", lambda stream: expected is not ProgressLog)
    run = make_run(tmp_path, trainer__enable_progress_bar=True, trainer__fast_dev_run=True)
    main(["fit", "--config", str(run), *options])
    bar = trainers[0].progress_bar_callback
    assert (None if bar is None else type(bar)) is expected


@pytest.mark.parametrize(
    ("room", "expected"),
    [
        (80, {"loss": 5.318, "lfw/accuracy": 0.917, "lfw/auc": 0.968, "cfp/auc": 0.9}),
        (57, {"loss": 5.318, "accuracy": 0.917, "lfw/auc": 0.968, "cfp/auc": 0.9}),
        (27, {"loss": 5.318, "accuracy": 0.917}),
        (26, {"loss": 5.318}),
        (10, {}),
        (-5, {}),
    ],
)
def test_figures_that_fit(room: int, expected: dict[str, float]) -> None:
    metrics = {"loss": 5.318, "lfw/accuracy": 0.917, "lfw/auc": 0.968, "cfp/auc": 0.9}
    assert progress_bar.fitting(metrics, room, ".3f") == expected


@pytest.mark.parametrize("width", [60, 80, 100, 159, 160, 250])
@pytest.mark.parametrize("batches", [125, 24_531])
def test_one_line_whatever_the_terminal(
    width: int, batches: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drawn as Lightning draws it, with the figures of two verification sets."""
    shown = {
        "v_num": 3,
        "loss": 5.318,
        "lfw/accuracy": 0.917,
        "lfw/auc": 0.968,
        "cfp_fp/accuracy": 0.9,
        "cfp_fp/auc": 0.95,
    }
    console = Console(width=width, file=StringIO())
    monkeypatch.setattr(progress_bar, "get_console", lambda: console)
    monkeypatch.setattr(QuickProgressBar, "total_train_batches", batches)
    trainer = Trainer(logger=False, enable_checkpointing=False, max_epochs=100, callbacks=[QuickProgressBar()])
    monkeypatch.setattr(type(trainer), "progress_bar_metrics", shown)
    bar = trainer.progress_bar_callback
    metrics = bar.get_metrics(trainer, None)
    assert "v_num" not in metrics
    assert "loss" in metrics or width < 80
    figures = " ".join(f"{name}: {value:.3f}" for name, value in metrics.items())
    progress = Progress(*bar.configure_columns(trainer), TextColumn(figures), console=console)
    progress.add_task("Epoch 99/99", total=batches, completed=batches - 1)
    console.print(progress.make_tasks_table(progress.tasks))
    assert len(console.file.getvalue().splitlines()) == 1
    assert figures in console.file.getvalue()
