"""The ten-fold comparison: rows, splits, thresholds, and one whole run over a fold of a made-up LFW."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from sklearn.metrics import roc_auc_score

import warm_processes
from experiments.lfw import ten_folds as lfw_ten_folds
from experiments.lfw.jobs import LfwJob, Scores, Split, halved, raw_pixel_scores, read_scores, write_folds
from experiments.lfw.recipes import (
    RECIPE,
    REMOVALS,
    as_arguments,
    key_of,
    parse_overrides,
    row_names,
    row_options,
    with_changes,
)
from experiments.runner import Runner
from facelit.errors import FacelitError
from facelit.storage.pairs_file import Pair, read_pairs
from tiny_run import write_crops, write_pairs

ROOT = Path(__file__).resolve().parents[2]


def scored(genuine: list[float], impostor: list[float], halves: list[int] | None = None) -> Scores:
    is_same = np.array([True] * len(genuine) + [False] * len(impostor))
    return Scores(np.array(genuine + impostor), is_same, np.array(halves or [0] * len(is_same)))


@pytest.fixture
def tiny_lfw(tmp_path: Path) -> Path:
    """Eight people with six crops each: 0 to 3 are fold 1 of View 2 and View 1's training people, 4 to 7 the others."""
    lfw = tmp_path / "lfw"
    write_crops(lfw / "aligned_112")
    write_pairs(lfw / "pairs.txt")
    (lfw / "lists").mkdir()
    first, second = ([f"person_{number:02d}\t6" for number in fold] for fold in (range(4), range(4, 8)))
    (lfw / "lists" / "people.txt").write_text("\n".join(["2", "4", *first, "4", *second]) + "\n")
    (lfw / "lists" / "peopleDevTest.txt").write_text("\n".join(["4", *second]) + "\n")
    rows = (lfw / "pairs.txt").read_text().splitlines()[-8:]
    (lfw / "lists" / "pairsDevTest.txt").write_text("\n".join(["4", *rows]) + "\n")
    return lfw


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["lfw_ten_folds.py", *map(str, arguments)])
    return lfw_ten_folds.main()


# Thresholds and standard errors.


def test_a_folds_threshold_comes_from_the_other_fold():
    wide = scored([0.9, 0.8], [0.1, 0.2])
    narrow = scored([0.5, 0.6], [0.3, 0.4])
    figures = lfw_ten_folds.summarise([wide, narrow])
    # 0.8, the highest of wide's best ones, accepts nothing of narrow: half of it is right. 0.5 gets all of wide right.
    assert figures.result.fold_thresholds.tolist() == [0.5, 0.8]
    assert figures.result.fold_accuracies.tolist() == [1.0, 0.5]
    assert figures.accuracy == 0.75
    assert figures.standard_error == pytest.approx(math.sqrt(0.75 * 0.25 / 8))
    assert figures.result.auc == 1.0


def test_a_single_fold_is_tested_half_by_half():
    fold = scored([0.9, 0.8, 0.5, 0.6], [0.1, 0.2, 0.3, 0.4], [0, 0, 1, 1, 0, 0, 1, 1])
    figures = lfw_ten_folds.summarise([fold])
    assert figures.result.fold_thresholds.tolist() == [0.5, 0.8]
    assert figures.accuracy == 0.75
    assert figures.standard_error == pytest.approx(math.sqrt(0.75 * 0.25 / 8))


def test_over_ten_folds_the_standard_error_is_view_2s():
    rng = np.random.default_rng(0)
    folds = [scored(list(rng.normal(1, 1, 20)), list(rng.normal(0, 1, 20))) for _ in range(10)]
    accuracies = []
    for number, fold in enumerate(folds):
        others = [other for place, other in enumerate(folds) if place != number]
        scores = np.concatenate([other.scores for other in others])
        is_same = np.concatenate([other.is_same for other in others])
        threshold = max(scores, key=lambda score: (((scores >= score) == is_same).sum(), score))
        accuracies.append(((fold.scores >= threshold) == fold.is_same).mean())
    figures = lfw_ten_folds.summarise(folds)
    assert figures.accuracy == pytest.approx(np.mean(accuracies))
    assert figures.standard_error == pytest.approx(np.std(accuracies, ddof=1) / math.sqrt(10))


# Splits.


def test_halves_share_both_kinds_in_their_order(tmp_path):
    pairs = [Pair((name, 1), (name, 2), True, 3) for name in "abcd"]
    pairs += [Pair((name, 1), (other, 1), False, 3) for name, other in ("ab", "cd")]
    halves = halved(pairs, "fold-03")
    assert halves == [[pairs[0], pairs[1], pairs[4]], [pairs[2], pairs[3], pairs[5]]]
    with pytest.raises(FacelitError, match="fold-03: an odd number"):
        halved(pairs[1:], "fold-03")


def test_halves_become_the_two_folds_of_a_pairs_file(tmp_path, tiny_lfw):
    halves = halved(Split(tiny_lfw, 2).pairs(), "fold-02")
    write_folds(tmp_path / "halves.txt", halves)
    read = read_pairs(tmp_path / "halves.txt")
    assert [(pair.first, pair.second, pair.is_same) for pair in read] == [
        (pair.first, pair.second, pair.is_same) for half in halves for pair in half
    ]
    assert [pair.fold for pair in read] == [1] * 4 + [2] * 4


@pytest.mark.parametrize(("fold", "trained"), [(1, (4, 24)), (2, (4, 24)), (None, (4, 24))])
def test_nobody_is_trained_and_tested(tiny_lfw, fold, trained):
    split = Split(tiny_lfw, fold)
    assert split.training_set(2) == trained
    tested = {pair.first[0] for pair in split.pairs()}
    assert tested == {f"person_{number:02d}" for number in (range(4) if fold == 1 else range(4, 8))}


def test_lists_that_do_not_fit_the_pairs_are_refused(tiny_lfw):
    people = tiny_lfw / "lists" / "people.txt"
    people.write_text(people.read_text().replace("person_05", "person_50"))
    with pytest.raises(FacelitError, match=r"1 people in fold-02's pairs would be trained on \(person_05"):
        Split(tiny_lfw, 2).training_set(2)


@pytest.mark.lfw
@pytest.mark.parametrize("fold", [9, 10])
def test_people_on_lfw(lfw, fold):
    split = Split(lfw, fold)
    assert split.training_set(2) == {9: (1505, 8362), 10: (1499, 7809)}[fold]
    assert len(split.pairs()) == 600


@pytest.mark.lfw
def test_view_1_on_lfw(lfw):
    split = Split(lfw, None)
    assert len(split.pairs()) == 1000
    assert split.training_set(1)[0] == 4038  # as many as peopleDevTrain.txt names


def test_raw_pixels_are_correlations_of_grey_crops(tiny_lfw):
    crops = tiny_lfw / "aligned_112"
    halves = halved(Split(tiny_lfw, 2).pairs(), "fold-02")
    scores = raw_pixel_scores(crops, halves)
    assert scores.halves.tolist() == [0] * 4 + [1] * 4
    assert scores.is_same.tolist() == [True, True, False, False] * 2
    for score, pair in zip(scores.scores, halves[0] + halves[1], strict=True):
        greys = []
        for name, number in (pair.first, pair.second):
            with Image.open(crops / name / f"{name}_{number:04d}.png") as image:
                greys.append(np.asarray(image.convert("L")).ravel())
        assert score == pytest.approx(np.corrcoef(*greys)[0, 1])


def test_an_absent_photo_is_named(tiny_lfw):
    (tiny_lfw / "aligned_112" / "person_04" / "person_04_0001.png").unlink()
    with pytest.raises(FacelitError, match="photo 1 of person_04"):
        raw_pixel_scores(tiny_lfw / "aligned_112", halved(Split(tiny_lfw, 2).pairs(), "fold-02"))


# Rows.


def test_recipe_is_that_of_the_shipped_files():
    shipped = {}
    for name in ("center", "lfw"):
        flatten(yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text()), "", shipped)
    options = row_options("vgg16bn-center")
    assert RECIPE.items() <= options.items()
    # One run may take longer than twenty.
    options |= {"trainer.max_epochs": 24, "data.augmentation.crop": 0.1}
    assert {key: shipped.get(key) for key in options} == options


def flatten(value: object, prefix: str, into: dict[str, object]) -> None:
    """Nested configuration to dotted options: `class_path` is the key's own value, `init_args` disappears."""
    if not isinstance(value, dict):
        into[prefix] = value
        return
    for key, inner in value.items():
        name = prefix if key in ("class_path", "init_args") else f"{prefix}.{key}".removeprefix(".")
        flatten(inner, name, into)


def test_every_row_has_options_and_can_leave_parts_out():
    keys = {key_of(row_options(name)) for name in row_names()}
    assert len(keys) == len(row_names())
    assert row_options("raw-pixels") == {}
    for part, replaced in REMOVALS.items():
        options = row_options(f"vgg16bn-center--{part}")
        assert replaced.items() <= options.items()
        changed = {key for key, value in row_options("vgg16bn-center").items() if options.get(key, "gone") != value}
        assert changed >= replaced.keys()
    assert row_options("vgg16bn-center--no-flip--no-warmup")["model.lr_scheduler.warmup"] == 0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vgg16bn-centre", "there is no row vgg16bn-centre. There are: raw-pixels, vgg16bn-softmax"),
        ("vgg16bn-center--no-flop", "--no-flop is none of --no-flip"),
        ("raw-pixels--no-flip", "no parts to leave out"),
        ("iresnet18-center--no-batch-norm", "no model.backbone.batch_norm, so --no-batch-norm would change nothing"),
    ],
)
def test_rows_that_there_are_not(name, message):
    with pytest.raises(FacelitError, match=message):
        row_options(name)


def test_another_class_takes_its_arguments_with_it():
    options = {"model.head": "A", "model.head.weight": 1, "model.heads": 2}
    assert with_changes(options, {"model.head": "B", "model.head.scale": 3}) == {
        "model.head": "B",
        "model.heads": 2,
        "model.head.scale": 3,
    }
    assert with_changes(options, {"model.head": "A"}) == options
    assert with_changes(options, {"model.head.weight": 5}) == options | {"model.head.weight": 5}


def test_overrides_and_arguments():
    options = parse_overrides(["a.lr=0.1", "--b=null", "c=SGD", "d=[1, 2]", "e=x=y"])
    assert options == {"a.lr": 0.1, "b": None, "c": "SGD", "d": [1, 2], "e": "x=y"}
    words = ["--a.lr", "0.1", "--b", "null", "--c", "SGD", "--d", "[1, 2]", "--e", "x=y"]
    assert as_arguments(options) == words
    with pytest.raises(FacelitError, match="expected KEY=VALUE"):
        parse_overrides(["lr"])


def test_key_stands_for_values_and_not_for_their_order():
    assert key_of({"a": 1, "b": 2}) == key_of({"b": 2, "a": 1}) != key_of({"a": 1, "b": 3})


# Runs.


def make_job(lfw: Path, out: Path, fold: int, **options: object) -> LfwJob:
    return LfwJob("row", {"data.train.min_images_per_identity": 2, **options}, Split(lfw, fold), out, threads=1)


def test_a_half_trained_fold_goes_on_at_its_checkpoint(tiny_lfw, tmp_path):
    job = make_job(tiny_lfw, tmp_path / "out", 2)
    assert "--ckpt_path" not in job.command("fit")
    job.checkpoint.parent.mkdir(parents=True)
    job.checkpoint.touch()
    command = job.command("fit")
    assert command[command.index("--ckpt_path") + 1] == str(job.checkpoint)
    assert command[command.index("--data.train.exclude_folds") + 1] == "[2]"


def test_fit_sees_no_tested_pair(tiny_lfw, tmp_path):
    job = make_job(tiny_lfw, tmp_path / "out", 2)
    assert not any("verification" in word or "pairs" in word for word in job.command("fit"))
    assert "--data.verification" in job.command("validate")


def test_a_fold_is_done_when_both_tests_are(tiny_lfw, tmp_path):
    job = make_job(tiny_lfw, tmp_path / "out", 2)
    job.folder.mkdir(parents=True)
    (job.folder / "result.json").write_text("{}")
    job.keep(scored([0.5], [0.25]), flip_average=False)
    assert job.result() is None
    job.keep(scored([0.75], [0.25]), flip_average=True)
    assert job.result() == {}
    assert [job.scores(flip_average).scores.tolist() for flip_average in job.tests] == [[0.5, 0.25], [0.75, 0.25]]


def test_a_fold_that_fails_leaves_the_others_be(tiny_lfw, tmp_path, monkeypatch, capsys):
    scores = "fold\tsame\tscore\tfirst\tsecond\n1\t1\t0.5\ta\tb\n2\t0\t-0.25\tc\td\n"

    def command(job: LfwJob, subcommand: str, flip_average: bool = False) -> list[str]:
        if job.split.fold == 1:
            return ["-c", "print('out of luck'); raise SystemExit(3)"]
        path = job.tested(flip_average) / "lfw-scores.tsv"
        return [
            "-c",
            f"import pathlib; p = pathlib.Path({str(path)!r}); p.parent.mkdir(exist_ok=True); p.write_text({scores!r})",
        ]

    monkeypatch.setattr(LfwJob, "command", command)
    jobs = [make_job(tiny_lfw, tmp_path / "out", fold) for fold in (1, 2)]
    assert Runner(1).run(jobs) == ["row, fold-01"]
    assert "row, fold-01: FAILED: fit ended with status 3: out of luck" in capsys.readouterr().err
    assert jobs[0].result() is None
    found = jobs[1].result()
    assert found is not None
    assert (found["people"], found["crops"], found["split"]) == (4, 24, "fold-02")
    for flip_average in (False, True):
        kept = jobs[1].scores(flip_average)
        assert kept.scores.tolist() == [0.5, -0.25]
        assert (kept.is_same.tolist(), kept.halves.tolist()) == ([True, False], [0, 1])


def test_two_programs_do_not_train_the_same_fold(tiny_lfw, tmp_path):
    job = make_job(tiny_lfw, tmp_path / "out", 1)
    with job.locked(), pytest.raises(FacelitError, match="another program is working on it"), job.locked():
        pass


def test_a_fold_from_end_to_end_and_once_only(tiny_lfw, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    arguments = [
        "--lfw",
        tiny_lfw,
        "--out",
        out,
        "--rows",
        "raw-pixels",
        "vgg16bn-center",
        "--folds",
        2,
        "--epochs",
        1,
    ]
    arguments += ["--width", 0.01, "--override", "data.batch_size=8", "model.backbone.embedding_dim=8"]
    monkeypatch.setattr(sys, "executable", warm_processes.executable())
    assert call(monkeypatch, *arguments) == 0
    printed = capsys.readouterr().out
    assert "fold 2" in next(line for line in printed.splitlines() if line.startswith("| vgg16bn-center"))
    assert "4 / 24" in printed
    figures = json.loads((out / "results-view-2.json").read_text())["rows"]
    assert list(figures) == ["raw-pixels", "vgg16bn-center"]
    fold = figures["vgg16bn-center"]["folds"]["fold-02"]
    assert (fold["people"], fold["crops"], fold["options"]["seed_everything"]) == (4, 24, 0)
    assert fold["commands"][0][:3] == ["python", fold["commands"][0][1], "fit"]
    folder = next((out / "vgg16bn-center").iterdir()) / "fold-02"
    kept = []
    for name, command in zip(("", "-flip-average"), fold["commands"][1:], strict=True):
        kept.append(np.load(folder / f"scores{name}.npz")["scores"])
        assert np.array_equal(kept[-1], read_scores(folder / f"testing{name}" / "lfw-scores.tsv").scores)
        assert command[command.index("--verification.flip_average") + 1] == ("true" if name else "false")
    assert not np.array_equal(*kept)
    assert figures["vgg16bn-center"]["flip_average"]["auc"] == pytest.approx(
        roc_auc_score([1, 1, 0, 0] * 2, kept[1]), abs=1e-9
    )
    trained = yaml.safe_load((folder / "training" / "config.yaml").read_text())
    assert trained["data"]["train"]["init_args"]["exclude_folds"] == [2]
    assert (out / "roc-view-2.png").is_file()

    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("trained again"))
    assert call(monkeypatch, *arguments) == 0
    again = capsys.readouterr().out
    assert again.count("done already") == 2
    assert [line for line in again.splitlines() if line.startswith("|")] == [
        line for line in printed.splitlines() if line.startswith("|")
    ]
    shutil.rmtree(folder)
    assert call(monkeypatch, *arguments, "--no-train") == 0
    assert "Not done yet: vgg16bn-center, fold-02" in capsys.readouterr().out


def test_list_and_mistakes(monkeypatch, capsys):
    assert call(monkeypatch, "--list", "--rows", "vgg16bn-softmax--no-flip", "--seed", 3) == 0
    printed = capsys.readouterr().out
    assert "    data.augmentation.flip 0.0\n" in printed
    assert "    seed_everything 3\n" in printed
    assert "$ OMP_NUM_THREADS=1 python" in printed
    for arguments, message in (
        (["--rows", "vgg"], "error: --rows: there is no row vgg."),
        (
            ["--list", "--override", "data.num_workers=2"],
            "--override data.num_workers: the comparison sets this option itself.",
        ),
        (["--list", "--json", "nowhere/x.json"], "there is no folder nowhere."),
    ):
        assert call(monkeypatch, *arguments) == 2
        assert message in capsys.readouterr().err
    for arguments, message in ((["--jobs", 0], "0 is less than 1"), (["--view1", "--folds", 9], "not allowed with")):
        with pytest.raises(SystemExit, match="2"):
            call(monkeypatch, *arguments)
        assert message in capsys.readouterr().err
