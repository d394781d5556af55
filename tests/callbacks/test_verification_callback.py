"""VerificationCallback in a run: figures against ones computed by hand from the checkpoint, and the files beside it."""

import csv
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from pytorch_lightning import Callback
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint

from facelit import FacelitError
from facelit.callbacks import VerificationCallback
from facelit.checkpoints import store_calibration
from facelit.cli import main
from facelit.data import FaceDataModule, PairsFolder, SyntheticPairs
from facelit.training import FaceRecognizer
from facelit.verification import evaluate_pairs
from tiny_run import make_run

pytestmark = pytest.mark.pictures
SETS = {"tiny": "pairs.txt", "also": "more_pairs.txt"}


@pytest.mark.parametrize("name", ["val", "train", "", "a/b"])
def test_names_of_sets_are_checked(name: str) -> None:
    """Figures and files are named after them; val/accuracy is what the best checkpoint is chosen by."""
    with pytest.raises(FacelitError, match=f"data.verification: a set cannot be called '{name}'"):
        FaceDataModule(verification={name: SyntheticPairs(folds=2, pairs_per_fold=2)})


def trainer_with(*callbacks: Callback) -> Any:
    return SimpleNamespace(
        callbacks=list(callbacks),
        datamodule=SimpleNamespace(verification={"lfw": None, "cfp": None}),
        limit_val_batches=1.0,
        check_val_every_n_epoch=1,
    )


@pytest.mark.parametrize(
    ("monitor", "hint"),
    [("val/acuracy", "val/accuracy"), ("lfv/auc", "lfw/auc"), ("cfp/acc", "cfp/auc"), ("val/auc", ""), ("LFW/eer", "")],
)
@pytest.mark.parametrize("watcher", [EarlyStopping, lambda monitor: ModelCheckpoint(monitor=monitor)])
def test_a_misspelt_figure_is_refused_before_training(monitor: str, hint: str, watcher: Any) -> None:
    """Lightning says so after the first epoch."""
    callback = VerificationCallback()
    with pytest.raises(
        FacelitError, match=rf"monitor of \w+: no validation gives the figure '{monitor}'.*{hint}.*lfw, cfp"
    ):
        callback.setup(trainer_with(callback, watcher(monitor)), FaceRecognizer.__new__(FaceRecognizer), "fit")


@pytest.mark.parametrize("monitor", ["val/accuracy", "cfp/auc", "lfw/tar_at_far_1e-2", "train/loss", "my_figure"])
def test_figures_that_there_will_be_pass(monitor: str) -> None:
    callback, module = VerificationCallback(), FaceRecognizer.__new__(FaceRecognizer)
    callback.setup(trainer_with(callback, EarlyStopping(monitor)), module, "fit")

    class Own(Callback):
        """May log anything."""

    callback.setup(trainer_with(callback, EarlyStopping("mine/figure"), Own()), module, "fit")


def test_figures_of_training_are_looked_for_once_they_are_logged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of accumulated batches the first logs nothing, nor does a resumed run's, as a rule."""
    command = ["fit", "--config", str(make_run(tmp_path)), "--data.verification", "null"]
    command += ["--trainer.accumulate_grad_batches", "2", "--trainer.log_every_n_steps", "2"]
    watch = ["--trainer.callbacks", "EarlyStopping", "--trainer.callbacks.monitor"]
    with pytest.raises(SystemExit):
        main([*command, *watch, "train/lss", "--trainer.max_epochs", "1"])
    assert "gives the figure 'train/lss'. Is 'train/loss' meant?" in capsys.readouterr().err
    main([*command, *watch, "train/loss", "--trainer.max_epochs", "1"])
    main([*command, *watch, "train/loss", "--trainer.max_epochs", "2", "--ckpt_path", "last"])


def test_letters_that_the_font_lacks_are_no_reason_to_warn(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    figure = Figure((1, 1))
    figure.text(0, 0, "顔")
    VerificationCallback._publish(SimpleNamespace(loggers=[]), tmp_path, "faces", "roc", figure)
    assert [str(warning.message) for warning in recwarn] == []
    assert (tmp_path / "faces-roc.png").exists()


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
    checkpoint["state_dict"]["backbone.6.bias"][0] = float("nan")
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


def calibration_of(path: Path) -> Any:
    return torch.load(path, weights_only=True)["facelit"].get("calibration")


def expected_calibration(run: Any, name: str, step: int, flip: bool = False) -> dict[str, Any]:
    """From scores computed by hand with the weights of `last.ckpt`."""
    scores, result = by_hand(run, name, flip)
    pairs = PairsFolder(run.folder / "crops", run.folder / SETS[name])
    accuracies = {
        threshold: float(((np.array(scores) >= threshold) == pairs.is_same).mean()) for threshold in sorted(scores)
    }
    best = max(threshold for threshold, value in accuracies.items() if value == max(accuracies.values()))
    genuine, impostor = np.array(scores)[pairs.is_same], np.array(scores)[~pairs.is_same]
    point = {"threshold": best, "far": float((impostor >= best).mean()), "tar": float((genuine >= best).mean())}
    return {
        "pairs": len(scores),
        "images": len(pairs.names),
        "accuracy": result.accuracy,
        "accuracy_se": result.accuracy_se,
        "auc": result.auc,
        "eer": result.eer,
        "step": step,
        "flip_average": flip,
        "thresholds": {"best_accuracy": point},
    }


def assert_calibration(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert list(found["thresholds"]) == list(expected["thresholds"])
    point = found["thresholds"]["best_accuracy"]
    assert point == pytest.approx(expected["thresholds"]["best_accuracy"], abs=1e-5)
    without = {key: value for key, value in found.items() if key != "thresholds"}
    assert without == pytest.approx({key: expected[key] for key in without}, abs=1e-5)


def test_checkpoints_carry_the_thresholds(finished: Any) -> None:
    """Of both sets, in their order, measured on these very weights; the best checkpoint has those of its own step."""
    found = calibration_of(finished.checkpoints / "last.ckpt")
    assert list(found) == list(SETS)
    for name in SETS:
        assert_calibration(found[name], expected_calibration(finished, name, step=12))
    (best,) = finished.checkpoints.glob("epoch*.ckpt")
    state = torch.load(best, weights_only=True)
    assert {entry["step"] for entry in calibration_of(best).values()} == {state["global_step"]}


def test_weights_only_checkpoints_carry_them_too(tmp_path: Path) -> None:
    """Lightning asks no callback when it writes these."""
    options = ["--checkpoint.save_weights_only", "true", "--trainer.max_epochs", "1"]
    main(["fit", "--config", str(make_run(tmp_path)), *options])
    (best,) = tmp_path.glob("**/epoch*.ckpt")
    assert "optimizer_states" not in torch.load(best, weights_only=True)
    assert calibration_of(best)["tiny"]["step"] == 6


def test_a_resumed_run_keeps_the_last_validations_thresholds(tmp_path: Path) -> None:
    """Written mid-epoch before the next validation: still those of the last one, with its step; then the new ones."""
    config = ["--config", str(make_run(tmp_path))]
    main(["fit", *config, "--trainer.max_steps", "8"])
    (last,) = tmp_path.glob("**/last.ckpt")
    first = calibration_of(last)
    assert torch.load(last, weights_only=True)["global_step"] == 8
    assert first["tiny"]["step"] == 6
    main(["fit", *config, "--trainer.max_steps", "10", "--ckpt_path", "last"])
    newest = max(tmp_path.glob("**/last.ckpt"), key=lambda path: path.stat().st_mtime)
    assert torch.load(newest, weights_only=True)["global_step"] == 10
    assert calibration_of(newest) == first
    main(["fit", *config, "--trainer.max_steps", "12", "--ckpt_path", "last"])
    newest = max(tmp_path.glob("**/last.ckpt"), key=lambda path: path.stat().st_mtime)
    assert calibration_of(newest)["tiny"]["step"] == 12


def test_validate_leaves_the_file_alone_unless_asked(finished: Any, tmp_path: Path) -> None:
    """`calibrate` adds the thresholds and changes nothing else; another set's stay where they fit the weights."""
    path = tmp_path / "bare.ckpt"
    bare = torch.load(finished.checkpoints / "last.ckpt", weights_only=True)
    stale = {**bare["facelit"].pop("calibration")["also"], "step": 3}
    bare["facelit"]["calibration"] = {"old": stale, "kept": {**stale, "step": 12}}
    torch.save(bare, path)
    before = path.read_bytes()
    options = ["--config", finished.config, "--ckpt_path", str(path), "--trainer.logger.save_dir", str(tmp_path)]
    options += ["--verification.hardest_pairs", "0", "--verification.flip_average", "true"]
    main(["validate", *options])
    assert path.read_bytes() == before
    main(["validate", *options, "--verification.calibrate", "true"])
    after = torch.load(path, weights_only=True)
    found = after["facelit"].pop("calibration")
    assert list(found) == ["tiny", "also", "kept"]
    assert_calibration(found["tiny"], expected_calibration(finished, "tiny", step=12, flip=True))
    del bare["facelit"]["calibration"]
    assert_equal(after, bare)
    assert [file.name for file in tmp_path.iterdir() if "ckpt" in file.name] == ["bare.ckpt"]


def assert_equal(found: Any, expected: Any) -> None:
    """Values and tensors, however deep."""
    if isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected)
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for key in expected:
            assert_equal(found[key], expected[key])
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_equal(one, other)
    else:
        assert found == expected


def test_calibrate_leaves_the_old_file_where_the_disk_is_full(
    finished: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "whole.ckpt"
    path.write_bytes((finished.checkpoints / "last.ckpt").read_bytes())

    def full(checkpoint: Any, file: Path) -> None:
        Path(file).write_bytes(b"half")
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")

    monkeypatch.setattr("facelit.checkpoints.torch.save", full)
    with pytest.raises(FacelitError, match=r"whole\.ckpt: cannot write the thresholds"):
        store_calibration(path, {})
    assert path.read_bytes() == (finished.checkpoints / "last.ckpt").read_bytes()
    assert list(tmp_path.iterdir()) == [path]
