"""The real command line under DDP: two processes give what one gives on the same global batch."""

import csv
from pathlib import Path

import pytest
import torch

from tiny_run import facelit, make_run

DDP = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
PLAIN = {  # batch statistics and dropout are each process's own: without them the two runs are one computation
    "model__backbone__init_args": {"width": 0.01, "embedding_dim": 16, "batch_norm": False, "dropout": 0.0},
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


def sampler(identities: int) -> dict[str, object]:
    return {
        "class_path": BALANCED,
        "init_args": {"identities_per_batch": identities, "images_per_identity": 3},
    }


@pytest.mark.parametrize(
    ("head", "one", "two"),
    [
        ("CenterLossHead", {"data__batch_size": 16}, {"data__batch_size": 8}),
        ("TripletHead", {"data__sampler": sampler(4)}, {"data__sampler": sampler(2)}),
    ],
    ids=["center", "triplet"],
)
def test_training(tmp_path: Path, head: str, one: dict[str, object], two: dict[str, object]) -> None:
    """Losses and weights of every step, centers included, and the figures of the validation; only rank 0 writes."""
    folders = []
    for name, options, launch in (("one", one, []), ("two", two, DDP)):
        folder = tmp_path / name
        folder.mkdir()
        config = make_run(folder, head=head, trainer__max_epochs=2, **PLAIN, **options)
        finished = facelit("fit", "--config", config, *launch)
        assert finished.returncode == 0, finished.stderr
        folders.append(folder)
    single, double = folders
    assert logged(double, "train/loss") == pytest.approx(logged(single, "train/loss"), abs=2e-5)
    assert logged(double, "tiny/auc") == pytest.approx(logged(single, "tiny/auc"), abs=1e-3)
    for name, value in checkpoint(single).items():
        torch.testing.assert_close(checkpoint(double)[name], value, rtol=1e-4, atol=2e-5, msg=name)
    assert len(list(double.glob("runs/tiny/*"))) == 1


def test_validation(tmp_path: Path) -> None:
    """32 images in batches of 5 on two processes: every score within 1e-5 of one process's, the same figures."""
    config = make_run(tmp_path, trainer__max_epochs=1)
    assert facelit("fit", "--config", config).returncode == 0
    (last,) = tmp_path.glob("**/last.ckpt")
    tables = []
    for launch in ([], DDP):
        before = set(tmp_path.glob("**/tiny-scores.tsv"))
        arguments = ["--ckpt_path", last, "--verification.save_scores", "true", *launch]
        finished = facelit("validate", "--config", config, *arguments)
        assert finished.returncode == 0, finished.stderr
        (path,) = set(tmp_path.glob("**/tiny-scores.tsv")) - before
        tables.append([line.split("\t") for line in path.read_text().splitlines()[1:]])
        assert "16 pairs of 32 images" in finished.stderr + finished.stdout
    one, two = tables
    assert [row[:2] + row[3:] for row in one] == [row[:2] + row[3:] for row in two]
    assert [float(row[2]) for row in two] == pytest.approx([float(row[2]) for row in one], abs=1e-5)
    assert len(one) == 16
