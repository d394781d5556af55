"""`fit` ends by saying where its results are; the command that it suggests works as it is printed."""

import re
import shlex
from pathlib import Path

import pytest

from facelit.cli import main
from tiny_run import TINY_VGG, tiny_config, write_config, write_crops, write_pairs


def report(folder: Path, caplog: pytest.LogCaptureFixture, **options: object) -> dict[str, str]:
    """Trains in `folder` and returns the report's rows."""
    write_crops(folder / "crops", num_identities=4, images_each=4)
    write_pairs(folder / "pairs.txt", folds=2, per_kind=2)
    config = write_config(folder, tiny_config(folder, trainer__max_epochs=1, **options))
    main(["fit", "--config", str(config)])
    return dict(re.split(r" {2,}", line, maxsplit=1) for line in caplog.messages[-1].strip().splitlines())


def test_names_what_is_there_and_a_command_that_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "it's here"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    logger = {"class_path": "pytorch_lightning.loggers.TensorBoardLogger", "init_args": {"save_dir": str(folder)}}
    rows = report(folder, caplog, trainer__logger=logger, model__backbone=TINY_VGG)
    assert list(rows) == ["Best checkpoint", "ROC of tiny", "Logs", "Curves", "Model card"]
    run = Path("it's here/lightning_logs/version_0")
    assert Path(rows["Best checkpoint"]).parent == run / "checkpoints"
    assert re.fullmatch(r"epoch000-.*-accuracy[\d.]+\.ckpt", Path(rows["Best checkpoint"]).name)
    assert Path(rows["ROC of tiny"]) == run / "tiny-roc.png"
    assert Path(rows["Logs"]) == run
    assert shlex.split(rows["Curves"]) == ["tensorboard", "--logdir", str(run)]
    assert all(Path(rows[name]).exists() for name in ("Best checkpoint", "ROC of tiny", "Logs"))
    program, *command = shlex.split(rows["Model card"])
    assert program == "facelit"
    main(command)
    assert Path(rows["Best checkpoint"]).with_name("card.md").is_file()


def test_without_verification_the_latest_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """From another folder the paths are absolute; a card that is there is not suggested again."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    checkpoints = tmp_path / "runs" / "tiny" / "version_0" / "checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints / "card.md").write_text("By hand.")
    rows = report(tmp_path, caplog, data__verification=None, checkpoint__dirpath=str(checkpoints))
    assert list(rows) == ["Latest checkpoint", "Logs"]
    assert Path(rows["Latest checkpoint"]) == checkpoints / "last.ckpt"


def test_a_fast_dev_run_says_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_crops(tmp_path / "crops", num_identities=4, images_each=4)
    config = write_config(tmp_path, tiny_config(tmp_path, data__verification=None, trainer__fast_dev_run=True))
    main(["fit", "--config", str(config)])
    assert "checkpoint" not in caplog.messages[-1]


def test_only_the_first_process_reports(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from types import SimpleNamespace

    from facelit.callbacks import RunReport

    (tmp_path / "last.ckpt").touch()
    for is_first in (False, True):
        last = SimpleNamespace(dirpath=tmp_path)
        trainer = SimpleNamespace(fast_dev_run=False, loggers=[], checkpoint_callbacks=[last], datamodule=None)
        trainer.is_global_zero = is_first
        with caplog.at_level("INFO"):
            RunReport().teardown(trainer, None, "fit")  # type: ignore[arg-type]
        assert ("last.ckpt" in caplog.text) == is_first
    caplog.clear()
    RunReport().teardown(trainer, None, "validate")  # type: ignore[arg-type]
    assert not caplog.text


def test_program_in_the_suggestion(monkeypatch: pytest.MonkeyPatch) -> None:
    from facelit.cli.program import program

    monkeypatch.setattr("sys.argv", ["main.py"])
    assert program() == "python main.py"
    monkeypatch.setattr("sys.argv", ["/a b/main.py"])
    assert shlex.split(program()) == ["python", "/a b/main.py"]
    monkeypatch.setattr("sys.argv", ["/usr/bin/facelit"])
    assert program() == "facelit"
