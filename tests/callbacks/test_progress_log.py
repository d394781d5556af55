"""What a log file says of a run that takes long."""

from __future__ import annotations

from typing import Any

import pytest
from pytorch_lightning import Trainer

from facelit.callbacks import ProgressLog
from facelit.cli import main
from facelit.storage import progress
from facelit.training import FaceRecognizer
from tiny_run import make_run


def test_lines_of_epochs_and_validations(tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Every batch takes 40 seconds here; the second start begins in the middle of its epoch, with a rate of its own."""
    now = [0.0]
    monkeypatch.setattr(progress, "monotonic", lambda: now[0])
    steps = {name: getattr(FaceRecognizer, name) for name in ("training_step", "validation_step")}

    def slow(name: str) -> Any:
        def step(self: FaceRecognizer, *args: Any) -> Any:
            now[0] += 40
            return steps[name](self, *args)

        return step

    for name in steps:
        monkeypatch.setattr(FaceRecognizer, name, slow(name))
    config = make_run(tmp_path, trainer__enable_progress_bar=True, trainer__max_epochs=1, data__eval_batch_size=16)
    main(["fit", "--config", str(config), "--trainer.max_steps", "2"])
    main(["fit", "--config", str(config), "--ckpt_path", "last"])
    lines = [line.partition(", loss")[0] for line in capsys.readouterr().err.splitlines() if ", batches: " in line]
    assert lines == [
        *(
            f"Epoch 1 of 1, batches: {done} of 6 ({percent} %), 1.5 per minute, about {left} left"
            for done, percent, left in (
                (1, 17, "3 min"),
                (2, 33, "3 min"),
                (3, 50, "2 min"),
                (4, 67, "80 s"),
                (5, 83, "40 s"),
                (6, 100, "0 s"),
            )
        ),
        "Validating, batches: 1 of 2 (50 %), 1.5 per minute, about 40 s left",
        "Validating, batches: 2 of 2 (100 %), 1.5 per minute, about 0 s left",
    ]


def test_other_processes_and_endless_data(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    now = [0.0]
    monkeypatch.setattr(progress, "monotonic", lambda: now[0])
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[ProgressLog()])
    log: Any = trainer.progress_bar_callback
    assert isinstance(log, ProgressLog)
    log.setup(trainer, None, "fit")
    for disabled in (False, True):
        (log.disable if disabled else log.enable)()
        log._begin("Epoch 1", float("inf"))
        now[0] += 100
        log._count(trainer, None)
        assert capsys.readouterr().err == ("" if disabled else "Epoch 1, batches: 1\n")
