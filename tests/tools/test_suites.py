"""`facelit suites` on the command line: figures, what is stored and taken again, groups, and what is refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from facelit.cli import main
from facelit.inference import FaceModel
from facelit.storage.pairs_bin import write_pairs_bin
from facelit.verification import evaluate_pairs
from facelit.verification.scored_pairs import ScoredPairs
from tiny_run import ROOT
from trained_run import TrainedRun, read, unit


def run(*arguments: object) -> int:
    """Exit status of the program."""
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as left:
        return int(left.code or 0)
    return 0


@pytest.fixture
def config(trained: TrainedRun, tmp_path: Path) -> Path:
    """A folder, the same pairs as a .bin, and a set that is not there."""
    pairs = {"root": str(trained.crops), "pairs": str(trained.folder / "pairs.txt")}
    images = [path.read_bytes() for pair in pair_paths(trained) for path in pair]
    write_pairs_bin(images, np.array(([True] * 4 + [False] * 4) * 2), tmp_path / "same.bin")
    sets: dict[str, Any] = {
        "folder": [
            {"class_path": "PairsBin", "init_args": {"path": str(tmp_path / "nowhere.bin")}},
            {"class_path": "facelit.data.PairsFolder", "init_args": pairs},
        ],
        "bin": {"class_path": "PairsBin", "init_args": {"path": str(tmp_path / "same.bin"), "folds": 2}},
        "agedb_30": {"class_path": "PairsBin", "init_args": {"path": str(tmp_path / "agedb_30.bin")}},
    }
    path = tmp_path / "suites.yaml"
    path.write_text(yaml.safe_dump({"sets": sets}, sort_keys=False))
    return path


def pair_paths(trained: TrainedRun) -> list[tuple[Path, Path]]:
    """The pairs of `tiny_run.write_pairs`, by hand: two folds of four genuine and four impostor pairs."""
    found = []
    for people in ([0, 1, 2, 3], [4, 5, 6, 7]):
        found += [(trained.crop(one, 1), trained.crop(one, 2)) for one in people]
        turned = people[1:] + people[:1]
        found += [(trained.crop(one, 3), trained.crop(two, 4)) for one, two in zip(people, turned, strict=True)]
    return found


def by_hand(trained: TrainedRun) -> np.ndarray[Any, Any]:
    """Cosines of the pairs, by torch and numpy alone."""
    first, second = (unit(trained.embed(read(*side))) for side in zip(*pair_paths(trained), strict=True))
    return (first * second).sum(axis=1)


def other_weights(trained: TrainedRun, path: Path) -> Path:
    """The same network with some of its weights redrawn."""
    content = torch.load(trained.checkpoint, weights_only=True)
    generator = torch.Generator().manual_seed(3)
    for name, value in content["state_dict"].items():
        if name.startswith("backbone.") and value.ndim > 1:
            content["state_dict"][name] = value + 0.3 * value.std() * torch.randn(value.shape, generator=generator)
    torch.save(content, path)
    return path


def test_two_checkpoints_side_by_side(
    trained: TrainedRun,
    config: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    embedded: list[int] = []
    embed = FaceModel.embed
    monkeypatch.setattr(
        FaceModel, "embed", lambda self, crops, *rest: embedded.append(len(crops)) or embed(self, crops, *rest)
    )
    other, out = other_weights(trained, tmp_path / "other.ckpt"), tmp_path / "out"
    command = [
        "suites",
        trained.checkpoint,
        other,
        "--config",
        config,
        "--allow_missing",
        "--out",
        out,
        "--batch_size",
        7,
    ]
    assert run(*command) == 0
    printed, remarks = capsys.readouterr()
    # Eight people's images 1 to 4, once for each checkpoint although both sets have them.
    assert embedded == [7, 7, 7, 7, 4] * 2

    folders = [out / "tiny-version_0-last", out / "other"]
    scores = {
        (folder.name, name): ScoredPairs.load(folder / f"{name}.npz")
        for folder in folders
        for name in ("folder", "bin")
    }
    expected = by_hand(trained)
    for name in ("folder", "bin"):
        pairs = scores["tiny-version_0-last", name]
        assert pairs.similarities == pytest.approx(expected, abs=1e-5)
        assert pairs.genuine.tolist() == ([True] * 4 + [False] * 4) * 2
        assert pairs.folds.tolist() == [1] * 8 + [2] * 8
    named = scores["other", "folder"]
    assert (named.root, named.first[0], named.second[4]) == (
        str(trained.crops),
        "person_00/person_00_0001.png",
        "person_01/person_01_0004.png",
    )
    assert (scores["other", "bin"].root, scores["other", "bin"].first[1]) == (None, "same.bin[2]")

    about = json.loads((folders[0] / "about.json").read_text())
    assert about["checkpoint"] == str(trained.checkpoint)
    assert (about["backbone"], about["embedding_dim"], about["flip_average"]) == ("VGG16", 16, False)
    assert about["sets"]["folder"]["images"] == 32

    result = evaluate_pairs(expected, named.genuine, named.folds)
    rows = list(csv.DictReader((out / "suites.tsv").open(), delimiter="\t"))
    assert [(row["checkpoint"], row["set"]) for row in rows] == list(scores)
    assert float(rows[0]["accuracy"]) == result.accuracy
    assert float(rows[0]["auc"]) == result.auc
    assert rows[0]["tar_at_far_0.01"] == ""  # eight impostor pairs say nothing of it
    figures = json.loads((out / "suites.json").read_text())
    assert figures["absent"] == {"agedb_30": str(tmp_path / "agedb_30.bin")}
    averages = [
        np.mean([scores[folder.name, name].evaluate().accuracy for name in ("folder", "bin")]) for folder in folders
    ]
    assert [one["average"]["accuracy"] for one in figures["checkpoints"].values()] == pytest.approx(averages)
    lines = printed.splitlines()
    assert lines[0].split() == ["accuracy", "±", "SE", "tiny-version_0-last", "other"]
    assert lines[1].split()[:4] == ["folder", f"{result.accuracy:.4f}", "±", f"{result.accuracy_se:.4f}"]
    assert lines[3].split() == ["average", *(f"{mean:.4f}" for mean in averages)]
    assert f"agedb_30 is left out: {tmp_path / 'agedb_30.bin'} is absent" in remarks

    test = figures["comparisons"][0]
    right = [
        (
            scores[folder.name, "folder"].similarities
            >= np.repeat(scores[folder.name, "folder"].evaluate().fold_thresholds, 8)
        )
        == named.genuine
        for folder in folders
    ]
    assert (test["only_a"], test["only_b"]) == ((right[0] & ~right[1]).sum(), (right[1] & ~right[0]).sum())
    assert f"of 16 pairs; p = {test['p_value']:.2g}" in printed

    # What is there is not measured again; what is damaged or changed is, and nothing else.
    embedded.clear()
    assert run(*command) == 0
    assert embedded == []
    assert capsys.readouterr().out == printed
    (folders[1] / "bin.npz").write_bytes((folders[1] / "bin.npz").read_bytes()[:-9])
    assert run(*command) == 0
    assert sum(embedded) == 32
    assert "bin.npz: not a file of scores, or a damaged one" in capsys.readouterr().err
    text = (trained.folder / "pairs.txt").read_text().replace("person_00\t1\t2", "person_00\t1\t5")
    (tmp_path / "pairs.txt").write_text(text)
    config.write_text(config.read_text().replace(str(trained.folder / "pairs.txt"), str(tmp_path / "pairs.txt")))
    embedded.clear()
    assert run(*command, "--only", "folder") == 0
    assert sum(embedded) == 2 * 32
    assert ScoredPairs.load(folders[1] / "folder.npz").second[0] == "person_00/person_00_0005.png"


def test_an_interrupted_run_goes_on(
    trained: TrainedRun,
    config: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = ["suites", trained.checkpoint, "--config", config, "--allow_missing", "--out", tmp_path / "out"]
    save = ScoredPairs.save

    def stop(self: ScoredPairs, file: Any) -> None:
        if self.name == "bin":
            raise KeyboardInterrupt
        save(self, file)

    with monkeypatch.context() as patched:
        patched.setattr(ScoredPairs, "save", stop)
        assert run(*command) == 130
    assert "The same command continues where it stopped." in capsys.readouterr().err
    folder = tmp_path / "out" / "tiny-version_0-last"
    assert sorted(path.name for path in folder.iterdir()) == ["about.json", "folder.npz"]
    assert list(json.loads((folder / "about.json").read_text())["sets"]) == ["folder"]
    assert run(*command) == 0
    remarks = capsys.readouterr().err
    assert "folder is taken from" in remarks
    assert "bin is taken" not in remarks


def test_other_weights_and_other_folders(
    trained: TrainedRun, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Scores are those of the file's weights; nobody's files are overwritten."""
    out, path = tmp_path / "out", tmp_path / "a.ckpt"
    path.write_bytes(trained.checkpoint.read_bytes())
    options = ["--config", config, "--only", "folder", "--out", out]
    (out / "a").mkdir(parents=True)
    (out / "a" / ".about.json.1.tmp").write_text("{")  # of a killed process
    assert run("suites", path, "--config", config, "--only", "folder", "bin", "--out", out) == 0
    before = ScoredPairs.load(out / "a" / "folder.npz").similarities
    (out / "a" / "folder.groups.json").write_text("{}")
    (tmp_path / "b").mkdir()
    stranger = other_weights(trained, tmp_path / "b" / "a.ckpt")
    assert run("suites", stranger, *options) == 2
    assert f"these are scores of another checkpoint, {path}. Name another folder" in capsys.readouterr().err
    path.write_bytes(stranger.read_bytes())
    assert run("suites", path, *options) == 0
    assert "has changed: its scores" in capsys.readouterr().err
    after = ScoredPairs.load(out / "a" / "folder.npz").similarities
    assert not (out / "a" / "folder.groups.json").exists()
    assert not (out / "a" / "bin.npz").exists()  # of the old weights
    assert np.abs(after - before).max() > 1e-3
    # Two of one name are told apart; averages with the mirror image are other scores.
    assert run("suites", path, stranger, *options, "--flip_average") == 0
    assert {f"{tmp_path.name}-a-flip", "b-a-flip"} <= {one.name for one in out.iterdir()}
    (tmp_path / "mine" / "a").mkdir(parents=True)
    (tmp_path / "mine" / "a" / "letter.txt").write_text("dear")
    for content in ("[]", '{"sets": 3}', "no json"):
        assert run("suites", path, *options[:-1], tmp_path / "mine") == 2
        assert "facelit suites" in capsys.readouterr().err
        (tmp_path / "mine" / "a" / "about.json").write_text(content)


def test_groups_by_hand(trained: TrainedRun, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Persons 0 to 3 are f, 4 to 6 m, 7 is not in the file; the folder's pairs have people of one fold only."""
    table = tmp_path / "groups.tsv"
    table.write_text("identity\tsex\n" + "".join(f"Person {n:02d}\t{'f' if n < 4 else 'm'}\n" for n in range(7)))
    options = ["--config", config, "--allow_missing", "--out", tmp_path / "out", "--groups", table]
    scores = by_hand(trained)
    threshold = float(np.sort(scores[4:8])[1:3].mean())  # of the f's impostor pairs two are above it
    assert run("suites", trained.checkpoint, *options, "--threshold", threshold) == 0
    printed, remarks = capsys.readouterr()
    found = json.loads((tmp_path / "out" / "tiny-version_0-last" / "folder.groups.json").read_text())
    assert found["threshold"] == threshold
    (column,) = found["columns"]
    female, male = column["groups"]
    assert (female["group"], female["genuine"], female["impostor"], female["accepted"]) == ("f", 4, 4, 2)
    assert female["rejected"] == (scores[:4] < threshold).sum()
    assert female["far"][0] == 0.5
    # Genuine pairs of 4, 5, 6; impostor pairs 4-5, 5-6. Those with 7: one genuine, 6-7 and 7-4.
    assert (male["genuine"], male["impostor"], column["unknown"]) == (3, 2, 3)
    assert male["accepted"] == (scores[12:14] >= threshold).sum()
    assert (column["across"]["genuine"], column["across"]["impostor"]) == (0, 0)
    assert found["missing_images"] == [f"person_07/person_07_000{n}.png" for n in (1, 2, 3, 4)]
    assert "folder: 4 of 32 images are not in" in remarks
    assert "person_07/person_07_0001.png, person_07/person_07_0002.png, person_07/person_07_0003.png, ..." in remarks
    assert "bin: none of its images is in" in remarks
    assert "folder, tiny-version_0-last: by sex, threshold" in printed
    assert "3 pairs of images whose group is not known are in no row." in printed
    assert run("suites", trained.checkpoint, *options, "--far", "0.4") == 0
    found = json.loads((tmp_path / "out" / "tiny-version_0-last" / "folder.groups.json").read_text())
    impostors = np.concatenate([scores[4:8], scores[12:16]])
    assert (impostors >= found["threshold"] - 1e-6).sum() == 3  # 0.4 of 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--config", "CONFIG"], "1 of 3 sets are absent: agedb_30 ("),
        (["--config", "CONFIG", "--only", "agedb_30", "--allow_missing"], "1 of 1 sets are absent"),
        (
            ["--config", "CONFIG", "--only", "lwf"],
            "--only lwf: there is no such set; the configuration has folder, bin, agedb_30",
        ),
        ([], "no sets are named. Use --config configs/suites.yaml"),
        (
            ["--sets", '{"a": {"class_path": "PairsBin", "init_args": {"file": "x"}}}'],
            "set a: these options do not fit",
        ),
        (["--sets", '{"a": {"class_path": "NoSuch"}}'], "set a: these options do not fit"),
        (["--sets", '{"../a": {"class_path": "PairsBin"}}'], "set '../a': a name is made of letters"),
        (["--config", "CONFIG", "--allow_missing", "--out", "groups.csv/out"], "cannot write this file"),
        (["--sets", '{"a": "lfw.bin"}'], "set a: expected a class that reads it"),
        (["--config", "CONFIG", "--far", "1e-3"], "Name the groups with --groups FILE"),
        (
            ["--config", "CONFIG", "--groups", "GROUPS", "--far", "1", "--allow_missing"],
            "a false accept rate is between",
        ),
        (
            ["--config", "CONFIG", "--groups", "GROUPS", "--far", "1e-2", "--allow_missing"],
            "would rest on nothing. Ask for 0.375",
        ),
        (["--config", "CONFIG", "--groups", "nowhere.tsv"], "groups file not found: nowhere.tsv (option --groups)"),
        (["CONFIG", "--config", "CONFIG", "--allow_missing"], "not a checkpoint, or a damaged one"),
        (["nowhere.ckpt", "--config", "CONFIG"], "checkpoint not found: nowhere.ckpt"),
        (["FOLDER", "--config", "CONFIG"], "no run of facelit's is in this folder"),
        (["CHECKPOINT", "--config", "CONFIG"], "this checkpoint is named twice"),
    ],
)
def test_what_is_refused_is_one_line(
    trained: TrainedRun,
    config: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "groups.csv").write_text("image,mask\nperson_00/person_00_0001,yes\n")
    places = {"CONFIG": config, "GROUPS": "groups.csv", "FOLDER": "folder", "CHECKPOINT": trained.checkpoint}
    assert run("suites", trained.checkpoint, *(places.get(option, option) for option in options)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_broken_network_names_its_file(
    trained: TrainedRun, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = torch.load(trained.checkpoint, weights_only=True)
    for name, value in content["state_dict"].items():
        if name.startswith("backbone.") and value.is_floating_point():
            value.fill_(float("nan"))
    torch.save(content, tmp_path / "nan.ckpt")
    assert run("suites", tmp_path / "nan.ckpt", "--config", config, "--only", "folder", "--out", tmp_path / "out") == 2
    assert "nan.ckpt: 32 embeddings are NaN or infinite: the network is broken" in capsys.readouterr().err
    assert not list(tmp_path.glob("out/*/*.npz"))


def test_the_shipped_configuration(
    trained: TrainedRun, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It names the six sets, each as a .bin and as a folder; every class takes its arguments."""
    monkeypatch.chdir(ROOT)
    assert run("suites", trained.checkpoint, "--config", "configs/suites.yaml") == 2
    error = capsys.readouterr().err
    assert "6 of 6 sets are absent" in error
    for name in ("lfw", "cfp_ff", "cfp_fp", "agedb_30", "calfw", "cplfw"):
        assert f"{name} (datasets/faces_emore/{name}.bin or datasets/" in error
