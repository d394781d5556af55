"""The command line under DDP: two processes give what one gives on the same global batch."""

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from facelit.cli import main
from tiny_run import facelit, make_run
from trained_run import trained_run
from two_processes import facelit_on_two_processes

PLAIN = {  # batch statistics and dropout are each process's own: without them the two runs are one computation
    "model__backbone__init_args__plain": True,
    "model__optimizer__init_args__lr": 0.01,
}
BALANCED = "facelit.data.IdentityBalancedSampler"


def checkpoint(folder: Path) -> dict[str, torch.Tensor]:
    (path,) = folder.glob("**/last.ckpt")
    return torch.load(path, weights_only=True)["state_dict"]


def logged(folder: Path, column: str) -> list[float]:
    (path,) = folder.glob("**/metrics.csv")
    with path.open() as file:
        return [float(row[column]) for row in csv.DictReader(file) if row.get(column)]


def launched_by_lightning(*arguments: object) -> None:
    finished = facelit(*arguments, "--trainer.devices", "2", "--trainer.strategy", "ddp")
    assert finished.returncode == 0, finished.stderr


def sampler(identities: int) -> dict[str, object]:
    return {
        "class_path": BALANCED,
        "init_args": {"identities_per_batch": identities, "images_per_identity": 3},
    }


@pytest.mark.parametrize(
    ("head", "one", "two", "on_two"),
    [
        ("CenterLossHead", {"data__batch_size": 16}, {"data__batch_size": 8}, launched_by_lightning),
        ("TripletHead", {"data__sampler": sampler(4)}, {"data__sampler": sampler(2)}, facelit_on_two_processes),
    ],
    ids=["center", "triplet"],
)
def test_training(
    tmp_path: Path, head: str, one: dict[str, object], two: dict[str, object], on_two: Callable[..., object]
) -> None:
    """Losses and weights of every step, centers included, and the figures of the validation; only rank 0 writes."""
    folders = []
    for name, options in (("one", one), ("two", two)):
        folder = tmp_path / name
        folder.mkdir()
        config = make_run(folder, head=head, trainer__max_epochs=2, **PLAIN, **options)
        if name == "two":
            on_two("fit", "--config", config)
        else:
            main(["fit", "--config", str(config)])
        folders.append(folder)
    single, double = folders
    assert logged(double, "train/loss") == pytest.approx(logged(single, "train/loss"), abs=2e-5)
    assert logged(double, "tiny/auc") == pytest.approx(logged(single, "tiny/auc"), abs=1e-3)
    for name, value in checkpoint(single).items():
        torch.testing.assert_close(checkpoint(double)[name], value, rtol=1e-4, atol=2e-5, msg=name)
    assert len(list(double.glob("runs/tiny/*"))) == 1


def test_validation(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """32 images in batches of 5 on two processes: every score within 1e-5 of one process's, the same figures."""
    run = trained_run()
    arguments = ["validate", "--config", str(run.folder / "tiny.yaml"), "--ckpt_path", str(run.checkpoint)]
    arguments += ["--verification.save_scores", "true", "--trainer.logger.save_dir"]
    main([*arguments, str(tmp_path / "one")])
    logs = caplog.text, facelit_on_two_processes(*arguments, tmp_path / "two")
    tables = []
    for folder, log in zip(("one", "two"), logs, strict=True):
        (path,) = (tmp_path / folder).glob("**/tiny-scores.tsv")
        tables.append([line.split("\t") for line in path.read_text().splitlines()[1:]])
        assert "16 pairs of 32 images" in log
    one, two = tables
    assert [row[:2] + row[3:] for row in one] == [row[:2] + row[3:] for row in two]
    assert [float(row[2]) for row in two] == pytest.approx([float(row[2]) for row in one], abs=1e-5)
    assert len(one) == 16
