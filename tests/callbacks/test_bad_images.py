"""What a run does with training images that it cannot read."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from facelit.callbacks.bad_images import BadImageLog
from facelit.cli import main
from facelit.data import IdentityFolder
from facelit.data.batches import TrainBatch
from facelit.data.reading import BadImage
from facelit.errors import FacelitError
from tiny_run import make_run, write_crops
from two_processes import facelit_on_two_processes

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
    facelit_on_two_processes("fit", "--config", config, *SKIP)
    assert sorted(listed(tmp_path)) == sorted(map(str, files))


@pytest.fixture
def crops(tmp_path: Path) -> IdentityFolder:
    return IdentityFolder(write_crops(tmp_path / "crops"))


def process(
    folder: Path, rank: int = 0, train: IdentityFolder | None = None, share: float = 1.0
) -> tuple[SimpleNamespace, BadImageLog]:
    """One process of a run, or a resumed part of it: what the callback asks a trainer for, and a callback."""
    data = SimpleNamespace(max_bad_share=share, train=train)
    checkpoints = [SimpleNamespace(dirpath=folder)]
    trainer = SimpleNamespace(
        fast_dev_run=False,
        checkpoint_callbacks=checkpoints,
        datamodule=data,
        is_global_zero=rank == 0,
        global_step=0,
        log_every_n_steps=1,
    )
    log = BadImageLog()
    log.on_fit_start(trainer, None)
    return trainer, log


def step(of: tuple[SimpleNamespace, BadImageLog], *bad: BadImage) -> dict[str, float]:
    """What the process logs at a batch."""
    trainer, log = of
    logged: dict[str, float] = {}
    module = SimpleNamespace(log=lambda name, value, rank_zero_only: logged.update({name: value}))
    log.on_train_batch_start(trainer, module, TrainBatch(None, None, None, bad), 0)
    return logged


ODD = [
    BadImage("a\tb.png", "two\nlines"),
    BadImage("c\nd.png", "x"),
    BadImage("e\\n.png", "x"),
    BadImage("f\u2028g", "x"),
]


def test_odd_names_are_one_line_each_and_come_once(tmp_path: Path) -> None:
    for _ in range(2):
        run = process(tmp_path)
        assert step(run, *ODD) == {"data/bad_images": 4.0}
        assert step(run) == {"data/bad_images": 4.0}
    text = (tmp_path / "bad-images.tsv").read_text(encoding="utf-8")
    assert text == "a\\tb.png\ttwo\\nlines\nc\\nd.png\tx\ne\\\\n.png\tx\nf\u2028g\tx\n"


def test_relative_paths_are_the_same_from_everywhere(
    tmp_path: Path, crops: IdentityFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder, path in (
        (tmp_path, "crops/a.png"),
        (tmp_path / "crops", "a.png"),
        (tmp_path / "crops", "../crops/a.png"),
    ):
        monkeypatch.chdir(folder)
        step(process(tmp_path, train=crops), BadImage(path, "x"))
    assert (tmp_path / "bad-images.tsv").read_text() == f"{tmp_path / 'crops' / 'a.png'}\tx\n"


def test_the_first_process_counts_for_all(tmp_path: Path) -> None:
    first, second = process(tmp_path, 0), process(tmp_path, 1)
    assert step(first) == {}
    assert step(second, BadImage("a", "x"), BadImage("b", "x")) == {}
    assert step(first) == {"data/bad_images": 2.0}
    assert step(first, BadImage("b", "x"), BadImage("c", "x")) == {"data/bad_images": 3.0}
    assert step(second) == {}


def test_one_image_is_one_image(tmp_path: Path, crops: IdentityFolder) -> None:
    with pytest.raises(FacelitError, match=r"^1 training image could not be read"):
        step(process(tmp_path, train=crops, share=0.0), BadImage("a", "x"))
