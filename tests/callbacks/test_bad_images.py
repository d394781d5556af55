"""What a run does with training images that it cannot read."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tiny_run import facelit, make_run

from facelit.cli import main

SKIP = ["--data.on_bad_image", "skip", "--data.max_bad_share", "0.1"]


def spoil(folder: Path, *numbers: int) -> list[Path]:
    """Breaks some of the crops."""
    files = [sorted((folder / "crops").glob("*/*.png"))[number] for number in numbers]
    for file in files:
        file.write_bytes(b"no image")
    return files


def listed(folder: Path) -> list[str]:
    (path,) = folder.glob("runs/tiny/version_*/checkpoints/bad-images.tsv")
    return [line.split("\t")[0] for line in path.read_text().splitlines()]


def train_only(folder: Path, **options: object) -> Path:
    return make_run(folder, data__verification=None, trainer__max_epochs=2, **options)


def test_by_default_the_run_stops_and_names_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = train_only(tmp_path, data__num_workers=1)
    (file,) = spoil(tmp_path, 13)
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(config)])
    error = capsys.readouterr().err
    assert str(file) in error
    assert "on_bad_image skip" in error
    assert "Traceback" not in error


@pytest.mark.parametrize("num_workers", [0, 2])
def test_skipped_ones_are_listed_once(tmp_path: Path, num_workers: int) -> None:
    """Over two epochs, and whoever reads them."""
    config = train_only(tmp_path, data__num_workers=num_workers)
    files = spoil(tmp_path, 3, 30)
    main(["fit", "--config", str(config), *SKIP])
    assert sorted(listed(tmp_path)) == sorted(map(str, files))
    (metrics,) = tmp_path.glob("runs/tiny/version_*/metrics.csv")
    assert "data/bad_images" in metrics.read_text().splitlines()[0]


def test_past_the_share_the_run_stops(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """48 images, a share of 0.1: five bad ones are too many, four are not."""
    config = train_only(tmp_path)
    spoil(tmp_path, 1, 9, 17, 25)
    main(["fit", "--config", str(config), *SKIP])
    spoil(tmp_path, 33)
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(config), *SKIP])
    error = capsys.readouterr().err
    assert "5 training images could not be read" in error
    assert "max_bad_share" in error
    assert "bad-images.tsv" in error


def test_a_resumed_run_goes_on_counting(tmp_path: Path) -> None:
    logger = {
        "class_path": "pytorch_lightning.loggers.TensorBoardLogger",
        "init_args": {"save_dir": str(tmp_path / "runs"), "name": "tiny"},
    }
    config = train_only(tmp_path, trainer__logger=logger)
    spoil(tmp_path, 3, 30)
    main(["fit", "--config", str(config), *SKIP, "--trainer.max_epochs", "1"])
    before = listed(tmp_path)
    files = spoil(tmp_path, 20)
    main(["fit", "--config", str(config), *SKIP, "--ckpt_path", "last"])
    assert listed(tmp_path) == [*before, str(files[0])]


def test_two_processes_share_the_list(tmp_path: Path) -> None:
    config = train_only(tmp_path, data__batch_size=4)
    files = spoil(tmp_path, 2, 12, 22, 32)
    launch = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    finished = facelit("fit", "--config", config, *SKIP, *launch)
    assert finished.returncode == 0, finished.stderr
    assert sorted(listed(tmp_path)) == sorted(map(str, files))
