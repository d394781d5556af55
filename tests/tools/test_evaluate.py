"""`facelit evaluate` on the command line."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from facelit.cli import main
from facelit.inference.photos import FaceFinder, FoundFaces, NoFaceError
from facelit.verification.evaluation import evaluate_people
from trained_run import TrainedRun, read, unit


def run(*arguments: object) -> int:
    """Exit status of the program."""
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as left:
        return int(left.code or 0)
    return 0


def test_figures_picture_and_stored_thresholds(
    trained: TrainedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The figures are those of embeddings by torch alone; verify then decides by what was stored."""
    checkpoint, out = trained.changed(tmp_path / "c.ckpt"), tmp_path / "f.json"
    options = ["--aligned", "--checkpoint", checkpoint, "--far", "5e-2", "--write_threshold", "--name", "staff"]
    assert run("evaluate", trained.crops, *options, "--json", out, "--out", tmp_path / "p.png") == 0
    printed = capsys.readouterr().out
    figures = json.loads(out.read_text())
    paths = sorted(trained.crops.glob("*/*.png"))
    people = np.repeat(np.arange(8), 6)
    embeddings = unit(trained.embed(read(*paths))).astype(np.float32)
    names = [f"{path.parent.name}/{path.name}" for path in paths]
    expected = evaluate_people(embeddings, people, [f"person_{n:02d}" for n in range(8)], names, (1e-2, 5e-2))
    assert figures["genuine_pairs"] == 8 * 15
    assert figures["rank"]["1"] == pytest.approx(list(expected.ranks[1]), abs=1e-3)
    assert [point["target"] for point in figures["far"]] == [5e-2, 1e-2]
    point = figures["far"][0]
    assert point["tar"] == pytest.approx(list(expected.at_far[5e-2].tar), abs=1e-2)
    assert (
        f"Threshold for FAR <= 0.05: {point['threshold']:.4f}. It rests on 1,008 impostor pairs of 8 people" in printed
    )
    assert "8 people are too few to hold some out; 10 will do" in printed
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    pair = [trained.crop(0, 1), trained.crop(0, 2)]
    run("verify", *pair, "--aligned", "--checkpoint", checkpoint, "--at", "far_5e-2", "--json")
    assert json.loads(capsys.readouterr().out)["threshold"]["value"] == point["threshold"]
    run("verify", *pair, "--aligned", "--checkpoint", checkpoint, "--on", "tiny", "--json")
    assert json.loads(capsys.readouterr().out)["threshold"]["measured_on"] == "tiny"


def test_photos_without_a_face_are_left_out_and_said(
    trained: TrainedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def find(self: Any, photo: Path, aligned: bool, which: str = "largest") -> FoundFaces:
        if photo.name.endswith("_0003.png"):
            raise NoFaceError(str(photo), "no face was found")
        return FoundFaces([read(photo)[0]], 1)

    monkeypatch.setattr(FaceFinder, "find", find)
    options = ["--checkpoint", trained.checkpoint, "--json", tmp_path / "f.json"]
    assert run("evaluate", trained.crops, *options) == 1
    assert "8 of 48 photos left out" in capsys.readouterr().err
    figures = json.loads((tmp_path / "f.json").read_text())
    assert figures["images"] == 40
    assert figures["skipped"][0] == {"photo": str(trained.crop(0, 3)), "reason": "no face was found"}


@pytest.mark.parametrize(
    ("layout", "options", "message"),
    [
        ({"ann": 3}, [], "found 1 person with photos"),
        ({"ann": 1, "bob": 1}, [], "each of its 2 people has one photo"),
        (
            {"ann": 2, "bob": 2, "eve": 2, "ida": 2},
            ["--far", "1e-5"],
            "24 impostor pairs say nothing of a FAR of 1e-05",
        ),
        ({"ann": 2, "bob": 2, "eve": 2, "ida": 2}, ["--far", "2"], "--far 2: a false accept rate is between 0 and 1"),
        ({"ann": 2, "bob": 2, "eve": 2, "ida": 2}, [], "none of the 8 photos can be used"),
        ({}, [], "no photos here"),
        ({"a": 2}, ["--out", "curves.jpg"], "--show/--out curves.jpg: the file's name must end with .png"),
    ],
)
def test_bad_input_is_one_line(
    trained: TrainedRun,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    layout: dict[str, int],
    options: list[str],
    message: str,
) -> None:
    for name, count in layout.items():
        (tmp_path / name).mkdir()
        for number in range(count):
            (tmp_path / name / f"{number}.png").write_text("no image")
    assert run("evaluate", tmp_path, "--aligned", "--checkpoint", trained.checkpoint, *options) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
