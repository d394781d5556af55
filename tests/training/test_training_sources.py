"""Whatever the crops are kept in, a run with the same seed is the same run."""

import csv
from pathlib import Path

import pytest

from facelit.cli import main
from tiny_run import make_run

CONVERT = {"packed": [], "recordio": ["--format", "recordio"]}


def curve(folder: Path) -> list[tuple[str, str]]:
    """Loss and verification accuracy of every step, to the last digit that was logged."""
    (path,) = folder.glob("**/metrics.csv")
    with path.open() as file:
        return [(row["train/loss"], row["tiny/accuracy"]) for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def from_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("folder")
    main(["fit", "--config", str(make_run(folder))])
    return folder


@pytest.mark.parametrize(("kind", "num_workers"), [("packed", 0), ("packed", 2), ("recordio", 0)])
def test_loss_curve(tmp_path: Path, from_folder: Path, kind: str, num_workers: int) -> None:
    """Training from it needs the folder's name and nothing else; augmentation and order are those of the folder."""
    main(["pack", str(from_folder / "crops"), str(tmp_path / kind), "--jobs", "1", *CONVERT[kind]])
    config = make_run(tmp_path, data__num_workers=num_workers)
    main(["fit", "--config", str(config), "--data.train.root", str(tmp_path / kind)])
    assert len(curve(from_folder)) > 18
    assert curve(tmp_path) == curve(from_folder)


def test_verification_from_a_bin(tmp_path: Path, from_folder: Path) -> None:
    """The pairs of the folder, packed as InsightFace's `.bin`, give the same figures."""
    crops, pairs, target = from_folder / "crops", from_folder / "pairs.txt", tmp_path / "tiny.bin"
    main(["pack", str(crops), str(target), "--format", "bin", "--pairs", str(pairs)])
    bin_set = {"tiny": {"class_path": "facelit.data.PairsBin", "init_args": {"path": str(target), "folds": 2}}}
    config = make_run(tmp_path, data__verification=bin_set)
    main(["fit", "--config", str(config)])
    assert curve(tmp_path) == curve(from_folder)
