"""The comparison on outside people: rows, who is trained on, one run without a training, and the spread of embeddings."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from experiments.faces import compare, spread
from experiments.faces.jobs import Choosing, Data, FaceJob, Split, WithLfw, is_held_out
from experiments.faces.rows import LEVERS, row_options, teacher_options
from facelit.data import IdentityFolder
from facelit.errors import FacelitError
from facelit.verification import evaluate_pairs
from tiny_run import write_crops, write_pairs

ROOT = Path(__file__).resolve().parents[2]


def flat(options: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A configuration as dotted options, classes and their arguments as the command line has them."""
    found: dict[str, Any] = {}
    for key, value in options.items():
        if key == "class_path":
            found[prefix.rstrip(".")] = value
        elif key == "init_args":
            found |= flat(value, prefix)
        elif isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def config(*names: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in names:
        found |= flat(yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text()))
    return found


def test_the_row_of_the_readme_is_configs_faces_yaml() -> None:
    expected = config("center", "faces")
    for option, value in row_options("vgg16bn-center").items():
        assert expected[option] == value, option


def test_the_teachers_options_are_configs_teacher_yaml() -> None:
    expected = config("center", "faces", "teacher")
    options = row_options("vgg16bn-center", "teacher.ckpt")
    assert teacher_options("teacher.ckpt").items() <= options.items()
    for option, value in options.items():
        assert expected[option] == value, option


@pytest.mark.parametrize("lever", LEVERS)
def test_a_lever_changes_what_it_names_and_nothing_else(lever: str) -> None:
    options, changed = row_options("vgg16bn-center"), row_options(f"vgg16bn-center--{lever}")
    assert changed != options
    assert {key for key in options | changed if options.get(key) != changed.get(key)} == LEVERS[lever].keys()


@pytest.mark.parametrize("row", ["vgg19-center", "vgg16bn-center--wider", "vgg16bn-softmax--lambda-1e-2"])
def test_rows_that_mean_nothing_are_refused(row: str) -> None:
    with pytest.raises(FacelitError, match="--rows"):
        row_options(row)


def test_families_are_held_out_whole() -> None:
    people = [f"fiw_F{family:04d}_MID{member}" for family in range(400) for member in range(3)]
    held = [is_held_out(person) for person in people]
    assert all(held[start] == held[start + 1] == held[start + 2] for start in range(0, len(held), 3))
    assert 0.05 < np.mean(held) < 0.15
    assert {is_held_out(f"celeba_{number}") for number in range(200)} == {True, False}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    """LFW is eight people in two folds; the outside people are 60 empty folders and one with crops; CFP is LFW."""
    root = tmp_path_factory.mktemp("datasets")
    write_crops(root / "lfw" / "aligned_112")
    write_pairs(root / "lfw" / "pairs.txt")
    lists = root / "lfw" / "lists"
    lists.mkdir()
    first, second = ([f"person_{number:02d}\t6" for number in fold] for fold in (range(4), range(4, 8)))
    (lists / "people.txt").write_text("\n".join(["2", "4", *first, "4", *second]) + "\n")
    rows = (root / "lfw" / "pairs.txt").read_text().splitlines()[-8:]
    (lists / "pairsDevTest.txt").write_text("\n".join(["4", *rows]) + "\n")
    (lists / "peopleDevTrain.txt").write_text("\n".join(["4", *first]) + "\n")
    (root / "cfp").symlink_to(root / "lfw")
    for kind in ("FF", "FP"):
        (root / "lfw" / f"pairs_{kind}.txt").write_text((root / "lfw" / "pairs.txt").read_text())
    for number in range(60):
        (root / "faces" / "train" / f"fiw_F{number:04d}_MID1").mkdir(parents=True)
    return Data(root)


def test_who_is_tested_is_not_trained_on(data: Data, tmp_path: Path) -> None:
    training, sets = Choosing(data).prepare(tmp_path)
    held = Path(training["data.train.exclude_identities"]).read_text().split()
    assert held == [person for person in data.people() if is_held_out(person)]
    assert sorted(path.name for path in (tmp_path / "held-out").iterdir()) == held
    assert sets.keys() == {"held_out", "view_1"}

    training, sets = WithLfw(data, [2]).prepare(tmp_path)
    trained = {path.name for path in Path(training["data.train.root"]).iterdir()}
    assert trained == {*data.people(), *(f"person_{number:02d}" for number in range(4))}
    assert sets.keys() == {"lfw"}
    WithLfw(data, [1]).prepare(tmp_path)
    assert "person_00" not in {path.name for path in (tmp_path / "people").iterdir()}

    training, sets = WithLfw(data, None).prepare(tmp_path)
    assert {path.name for path in (tmp_path / "people").iterdir()} == trained
    assert sets["lfw"]["init_args"]["pairs"] == str(tmp_path / "pairs.txt")
    assert len((tmp_path / "pairs.txt").read_text().splitlines()) == 9


@pytest.mark.parametrize("size", [1, 2])
def test_folds_of_several_networks_are_put_together(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """Each fold counts once, at the threshold of all others, whoever's network scored it."""
    lists = data.root / "lfw" / "lists"
    (lists / "people.txt").write_text("4\n" + "".join(f"1\nperson_{number:02d}\t6\n" for number in range(4)))
    wanted = [f"--data={data.root}", f"--out={tmp_path}", "--rows=vgg16bn-center", "--lfw_folds", "4", "2", "1", "3"]
    arguments = compare.make_parser().parse_args([*wanted, f"--folds_per_network={size}"])
    (jobs,) = compare.make_jobs(arguments)["vgg16bn-center"]
    assert len(jobs) == 4 // size
    rng = np.random.default_rng(0)
    is_same = np.arange(160) % 2 == 1
    scores, per_network = rng.normal(size=160) + is_same, 40 * size
    for number, job in enumerate(jobs):
        job.folder.mkdir(parents=True)
        own = slice(number * per_network, (number + 1) * per_network)
        halves_or_folds = np.arange(per_network) // (20 if size == 1 else 40)
        np.savez(job.folder / "lfw.npz", scores=scores[own], is_same=is_same[own], folds=halves_or_folds)
    expected = evaluate_pairs(scores, is_same, np.arange(160) // 40)
    assert compare.evaluate(jobs, "lfw").as_dict() == expected.as_dict()
    training, _ = jobs[0].split.prepare(tmp_path)
    lfw = {path.name for path in Path(training["data.train.root"]).iterdir()} - set(data.people())
    assert lfw == {f"person_{number:02d}" for number in range(size, 4)}


def test_a_missing_folder_of_people_is_named(tmp_path: Path) -> None:
    with pytest.raises(FacelitError, match="there is no folder"):
        Data(tmp_path).people()


def test_a_row_of_two_seeds_from_commands_to_table(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With commands that train nothing: validation writes the scores that the seed says."""

    def fit(job: FaceJob) -> list[str]:
        return ["-c", ""]

    def test(job: FaceJob, flip_average: bool) -> list[str]:
        folder = job.folder / f"testing{'-flip-average' * flip_average}"
        rng = np.random.default_rng(job.seed)
        lines = ["fold\tsame\tscore\tfirst\tsecond"]
        for number in range(40):
            lines.append(f"{number // 4 + 1}\t{number % 2}\t{rng.normal() + number % 2 + flip_average}\ta\tb")
        folder.mkdir(parents=True)
        (folder / "lfw-scores.tsv").write_text("\n".join(lines) + "\n")
        return ["-c", ""]

    monkeypatch.setattr(FaceJob, "fit_command", fit)
    monkeypatch.setattr(FaceJob, "test_command", test)
    arguments = ["--data", str(data.root), "--out", str(tmp_path), "--rows", "vgg16bn-center", "--seeds", "1", "2"]
    monkeypatch.setattr(sys, "argv", ["compare", *arguments])
    assert compare.main() == 0
    printed = capsys.readouterr().out
    expected = []
    for seed in (1, 2):
        rng = np.random.default_rng(seed)
        scores = [rng.normal() + number % 2 for number in range(40)]
        expected.append(evaluate_pairs(scores, [number % 2 == 1 for number in range(40)], np.arange(40) // 4).accuracy)
    assert f"{np.mean(expected):.4f} ± {np.std(expected, ddof=1):.4f}" in printed
    monkeypatch.setattr(FaceJob, "do", lambda job, runner: pytest.fail("done already"))
    assert compare.main() == 0


def test_a_job_trains_and_tests_with_the_real_command_line_s_options(data: Data, tmp_path: Path) -> None:
    job = FaceJob("row", row_options("vgg16bn-center"), 3, Split(data), tmp_path, 1)
    job.folder.mkdir(parents=True)
    fit, test = job.fit_command(), job.test_command(True)
    assert fit[1] == "fit"
    assert fit[fit.index("--seed_everything") + 1] == "3"
    assert "--ckpt_path" not in fit
    assert fit[fit.index("--data.verification") + 1] == "null"
    for name in ("lfw", "cfp_ff", "cfp_fp"):
        assert name in test[test.index("--data.verification") + 1]
    assert test[test.index("--ckpt_path") + 1] == str(job.checkpoint)
    assert "--verification.flip_average" in test
    assert not [word for word in test if word.startswith("--data.train")]  # without a class, its options are refused
    job.checkpoint.parent.mkdir(parents=True)
    job.checkpoint.touch()
    assert "--ckpt_path" in job.fit_command()


def test_wrong_options_end_in_a_line(
    data: Data, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in (
        ["--teacher", "none.ckpt"],
        ["--threads", "0"],
        ["--rows", "nothing"],
        ["--json", "no/folder.json"],
    ):
        monkeypatch.setattr(sys, "argv", ["compare", "--data", str(data.root), *arguments])
        assert compare.main() == 2
        assert capsys.readouterr().err.startswith("error: ")


def test_the_spread_is_that_of_plain_loops() -> None:
    rng = np.random.default_rng(0)
    rows, labels = rng.normal(size=(20, 3)), np.repeat([0, 1, 2, 3], [2, 3, 5, 10])
    found = spread.measure(rows, labels)
    means = [rows[labels == person].mean(axis=0) for person in range(4)]
    intra = np.mean(
        [np.mean([np.linalg.norm(row - means[person]) for row in rows[labels == person]]) for person in range(4)]
    )
    inter = np.mean([np.linalg.norm(means[a] - means[b]) for a in range(4) for b in range(a)])
    assert found.intra == pytest.approx(intra)
    assert found.inter == pytest.approx(inter)
    assert found.ratio == pytest.approx(intra / inter)


def test_the_pictures_panels_are_the_networks(data: Data) -> None:
    folder = IdentityFolder(data.crops("lfw"))
    rng = np.random.default_rng(0)
    labels = np.asarray(folder.labels)
    figure = spread.picture({"a": rng.normal(size=(48, 4)), "b": rng.normal(size=(48, 4))}, labels)
    assert [axes.get_title() for axes in figure.axes] == ["a", "b"]
    assert [text.get_text() for text in figure.axes[0].texts] == [str(number) for number in range(1, 9)]
