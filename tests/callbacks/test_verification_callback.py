"""VerificationCallback in a run: figures against ones computed by hand from the checkpoint, and the files beside it."""

import csv
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from facelit.cli import main
from facelit.data import PairsFolder
from facelit.verification import evaluate_pairs

SETS = {"tiny": "pairs.txt", "also": "more_pairs.txt"}


def last_figures(log: Path) -> dict[str, float]:
    """The last value of each verification figure in a CSV log."""
    found: dict[str, float] = {}
    with log.open() as file:
        for row in csv.DictReader(file):
            found |= {key: float(value) for key, value in row.items() if value and key.startswith(tuple(SETS))}
    return found


def by_hand(run: Any, name: str, flip: bool = False) -> tuple[list[float], Any]:
    """Cosine similarity of every pair of a set, one by one, and what LFW's protocol makes of them."""
    pairs = PairsFolder(run.folder / "crops", run.folder / SETS[name])
    paths = [
        run.folder / "crops" / f"{path.split('/')[-1].rsplit('_', 1)[0]}" / path.split("/")[-1] for path in pairs.names
    ]
    embeddings = run.embed(paths)
    if flip:
        embeddings = (embeddings + run.embed(paths, mirrored=True)) / 2
    scores = []
    for first, second in zip(pairs.first, pairs.second, strict=True):
        a, b = embeddings[first].double(), embeddings[second].double()
        scores.append(float(a @ b / (a.norm() * b.norm())))
    return scores, evaluate_pairs(scores, pairs.is_same, pairs.folds)


def written_scores(path: Path) -> list[float]:
    rows = path.read_text().splitlines()
    assert rows[0].split("\t") == ["fold", "same", "score", "first", "second"]
    return [float(row.split("\t")[2]) for row in rows[1:]]


@pytest.mark.parametrize("name", SETS)
def test_figures_are_the_protocols(finished: Any, name: str) -> None:
    """On scores computed by hand; each set under its own name."""
    scores, expected = by_hand(finished, name)
    assert written_scores(finished.version / f"{name}-scores.tsv") == pytest.approx(scores, abs=1e-5)
    figures = last_figures(finished.version / "metrics.csv")
    own = {key: value for key, value in figures.items() if key.startswith(f"{name}/")}
    assert own == pytest.approx({f"{name}/{key}": value for key, value in expected.as_dict().items()}, abs=1e-5)
    assert {"accuracy", "accuracy_se", "auc", "eer", "threshold"} <= {key.split("/")[1] for key in own}


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("kind", ["roc", "hardest"])
def test_pictures_lie_beside_the_checkpoints(finished: Any, name: str, kind: str) -> None:
    with Image.open(finished.checkpoints.parent / f"{name}-{kind}.png") as picture:
        picture.load()
        assert picture.format == "PNG"
        assert min(picture.size) > 200
        assert np.asarray(picture).std() > 5


def test_the_first_set_chooses_the_best_checkpoint(finished: Any) -> None:
    """Its file is named by epoch, step and the first set's accuracy, the first set being the first in the file."""
    best = [path for path in finished.checkpoints.iterdir() if path.name != "last.ckpt"]
    assert len(best) == 1
    match = re.fullmatch(r"epoch(\d{3})-step(\d{7})-accuracy(\d\.\d{4})\.ckpt", best[0].name)
    assert match is not None
    epoch, step, accuracy = int(match[1]), int(match[2]), float(match[3])
    with (finished.version / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["tiny/accuracy"]]
    accuracies = [float(row["tiny/accuracy"]) for row in rows]
    assert len(accuracies) == 2
    assert accuracy == pytest.approx(max(accuracies), abs=5e-5)
    assert epoch == accuracies.index(max(accuracies))
    assert step == 6 * (epoch + 1)
    assert "val/accuracy" not in rows[0]
    state = torch.load(finished.checkpoints / "last.ckpt", weights_only=True)["callbacks"]
    (chosen,) = [value for key, value in state.items() if key.startswith("ModelCheckpoint")]
    assert chosen["monitor"] == "val/accuracy"
    assert float(chosen["best_model_score"]) == pytest.approx(max(accuracies))


def test_flip_average_is_the_mean_with_the_mirror_image(finished: Any, tmp_path: Path) -> None:
    options = ["--trainer.logger.save_dir", str(tmp_path), "--verification.flip_average", "true"]
    options += ["--verification.hardest_pairs", "0", "--ckpt_path", str(finished.checkpoints / "last.ckpt")]
    main(["validate", "--config", finished.config, *options])
    (folder,) = tmp_path.glob("tiny/*")
    plain, _ = by_hand(finished, "tiny")
    scores, expected = by_hand(finished, "tiny", flip=True)
    assert scores != pytest.approx(plain, abs=1e-5)
    assert written_scores(folder / "tiny-scores.tsv") == pytest.approx(scores, abs=1e-5)
    assert last_figures(folder / "metrics.csv")["tiny/auc"] == pytest.approx(expected.auc, abs=1e-6)
    assert not list(folder.glob("*-hardest.png"))
    assert (folder / "tiny-roc.png").is_file()


def test_a_broken_network_is_refused(finished: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = torch.load(finished.checkpoints / "last.ckpt", weights_only=True)
    checkpoint["state_dict"]["backbone.embedding.3.bias"][0] = float("nan")
    torch.save(checkpoint, tmp_path / "nan.ckpt")
    options = ["--trainer.logger.save_dir", str(tmp_path), "--ckpt_path", str(tmp_path / "nan.ckpt")]
    with pytest.raises(SystemExit):
        main(["validate", "--config", finished.config, *options])
    assert "tiny: 32 embeddings are NaN or infinite" in capsys.readouterr().err


def test_absent_images_are_counted(finished: Any, tmp_path: Path) -> None:
    """`missing_pairs` is logged with the figures where pairs were left out."""
    rows = (finished.folder / "pairs.txt").read_text().replace("person_02\t1\t2", "person_02\t1\t99")
    (tmp_path / "pairs.txt").write_text(rows)
    options = ["--data.verification.tiny.pairs", str(tmp_path / "pairs.txt"), "--ckpt_path", "last"]
    options += ["--data.verification.tiny.allow_missing", "true"]
    main(["validate", "--config", finished.config, *options])
    log = max(finished.folder.glob("**/metrics.csv"), key=lambda path: path.stat().st_mtime)
    figures = last_figures(log)
    assert figures["tiny/missing_pairs"] == 1
    assert "also/missing_pairs" not in figures
