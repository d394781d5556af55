"""`facelit verify` on the command line: exit status, words, JSON and pictures."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from facelit.align import TEMPLATE, Faces
from facelit.cli import main
from facelit.inference.photos import FaceFinder, FoundFaces, NoFaceError
from tiny_run import ROOT
from trained_run import TrainedRun, calibration, read, unit


def run(*arguments: object) -> int:
    """Exit status of the program."""
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as left:
        return int(left.code or 0)
    return 0


@pytest.fixture
def calibrated(trained: TrainedRun, tmp_path: Path) -> Path:
    """A threshold between one pair's score and another's."""
    kept = calibration(best_accuracy=score(trained, 0, 5) + 1e-4, far_1e2=0.99999)
    return trained.changed(tmp_path / "calibrated.ckpt", facelit__calibration=kept)


def score(trained: TrainedRun, person: int, other: int) -> float:
    """Of two people's first photos, by hand."""
    one, two = unit(trained.embed(read(trained.crop(person, 1), trained.crop(other, 1))))
    return float(one @ two)


def test_status_and_sentence(trained: TrainedRun, calibrated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    same = ["verify", trained.crop(0, 1), trained.crop(0, 1), "--aligned", "--checkpoint", calibrated]
    assert run(*same) == 0
    limit = f"{score(trained, 0, 5) + 1e-4:.3f}"
    explained = "the threshold for best accuracy on made_up, where it accepts 25 % of impostor pairs (FAR)"
    out = capsys.readouterr().out
    assert out.startswith(f"same person: score 1.000 >= {limit}, {explained}")
    assert out.count("\n") == 1
    assert "6,000 pairs" in out
    assert run("verify", trained.crop(0, 1), trained.crop(5, 1), "--aligned", "--ckpt_path", calibrated) == 1
    out = capsys.readouterr().out
    assert out.startswith("different people: score ")
    assert " < " in out
    options = ["--aligned", "--ckpt_path", calibrated, "--threshold", "-0.9999"]
    assert run("verify", trained.crop(0, 1), trained.crop(5, 1), *options) == 0
    assert capsys.readouterr().out.endswith("the threshold set by the user\n")


def test_json(trained: TrainedRun, calibrated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [trained.crop(0, 1), trained.crop(5, 1), "--aligned", "--checkpoint", calibrated, "--json"]
    assert run("verify", *arguments, "--at", "far_1e-2") == 1
    answer = json.loads(capsys.readouterr().out)
    assert answer["score"] == pytest.approx(score(trained, 0, 5), abs=1e-6)
    assert answer["same"] is False
    assert answer["photos"] == [str(trained.crop(0, 1)), str(trained.crop(5, 1))]
    assert answer["threshold"] == {
        "value": 0.99999,
        "at": "far_1e-2",
        "measured_on": "made_up",
        "far": 0.25,
        "tar": 0.75,
        "pairs": 6000,
        "step": 6,
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ONE", "absent.png", "--aligned"], "absent.png: no such image file"),
        (["ONE", "ONE", "--aligned", "--threshold", "2"], "option threshold: must be between -1 and 1"),
        (["ONE", "ONE", "--aligned", "--at", "far_1e-3"], "has no threshold far_1e-3 for made_up"),
        (["ONE", "ONE", "--aligned", "--on", "lfw"], "has no thresholds measured on lfw"),
        (["ONE", "ONE", "--aligned", "--show", "pair.jpg"], "must end with .png"),
        (["ONE", "ONE", "--aligned", "--show", "no/such/pair.png"], "there is no folder no/such"),
        (["ONE"], "SECOND is missing"),
        (["ONE", "ONE", "--at", "far"], "no threshold far"),
    ],
)
def test_slips_are_status_2_and_one_line(
    trained: TrainedRun, calibrated: Path, capsys: pytest.CaptureFixture[str], arguments: list[Any], message: str
) -> None:
    named = [trained.crop(0, 1) if one == "ONE" else one for one in arguments]
    assert run("verify", *named, "--checkpoint", calibrated) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_a_checkpoint_without_thresholds_asks_for_one(
    trained: TrainedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = trained.changed(tmp_path / "bare.ckpt", facelit__calibration=...)
    arguments = ["verify", trained.crop(0, 1), trained.crop(0, 1), "--aligned", "--checkpoint", bare]
    assert run(*arguments) == 2
    assert "bare.ckpt holds no thresholds" in capsys.readouterr().err
    assert run(*arguments, "--threshold", "0.5") == 0


def test_thresholds_of_other_weights_are_remarked(
    trained: TrainedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A last.ckpt that was written between two validations."""
    later = trained.changed(tmp_path / "later.ckpt", global_step=8)
    run("verify", trained.crop(0, 1), trained.crop(0, 1), "--aligned", "--checkpoint", later)
    assert "thresholds were measured at step 6, its weights are from step 8" in capsys.readouterr().err


def test_the_newest_runs_best_checkpoint_is_the_default(
    trained: TrainedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained.folder / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    (best,) = Path("runs").glob("**/epoch*.ckpt")
    assert run("verify", trained.crop(0, 1), trained.crop(0, 1), "--aligned") == 0
    assert capsys.readouterr().err == f"Using {best} (choose another with --checkpoint).\n"
    monkeypatch.chdir(tmp_path / "runs" / "tiny" / "version_0" / "checkpoints")
    assert run("verify", trained.crop(0, 1), trained.crop(0, 1), "--aligned") == 2
    assert "no checkpoint is named, and there is no run below runs/" in capsys.readouterr().err


def test_the_picture_shows_both_crops(
    trained: TrainedRun, calibrated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = trained.crop(0, 1), trained.crop(5, 1)
    picture = tmp_path / "pair.png"
    run("verify", first, second, "--aligned", "--checkpoint", calibrated, "--show", picture)
    assert str(picture) in capsys.readouterr().err
    with Image.open(picture) as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("RGB")).astype(float)
    height, width = pixels.shape[:2]
    for crop, left, right in ((first, 0, width // 2), (second, width // 2, width)):
        middle = pixels[height * 2 // 5 : height * 3 // 5, (3 * left + right) // 4 : (left + 3 * right) // 4]
        assert middle.mean(axis=(0, 1)) == pytest.approx(read(crop)[0, 30:80, 20:90].mean(axis=(0, 1)), abs=6)


@pytest.mark.parametrize("which", [None, "central"])
def test_several_faces_and_none(
    trained: TrainedRun,
    calibrated: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    which: str | None,
) -> None:
    """Several: the largest is taken, and said unless it was asked for. None: status 2 and the way out."""
    asked = []

    def find(self: Any, photo: str, aligned: bool, which: str = "largest") -> FoundFaces:
        if isinstance(photo, np.ndarray):
            return FoundFaces([photo], 1)
        asked.append((aligned, which))
        if "person_05" in photo:
            raise NoFaceError(photo, "no face was found", "If it is an aligned crop already, say so (option aligned).")
        return FoundFaces([read(Path(photo))[0]], 3)

    monkeypatch.setattr(FaceFinder, "find", find)
    options = ["--checkpoint", calibrated, *(["--which", which] if which else [])]
    assert run("verify", trained.crop(0, 1), trained.crop(0, 1), *options) == 0
    err = capsys.readouterr().err
    assert ("3 faces; the largest is used (--which central" in err) == (which is None)
    assert asked[0] == (False, which or "largest")
    assert run("verify", trained.crop(0, 1), trained.crop(5, 1), *options) == 2
    assert "person_05_0001.png: no face was found. If it is an aligned crop already" in capsys.readouterr().err


def test_help_needs_no_torch() -> None:
    program = """
import sys
sys.path.insert(0, sys.argv[1])
from facelit.cli import main
for tool in "embed", "identify", "verify":
    try:
        main([tool, "--help"])
    except SystemExit:
        print("end of help")
    assert not {"torch", "matplotlib", "pyarrow"} & {*sys.modules}, tool
"""
    done = subprocess.run([sys.executable, "-c", program, str(ROOT)], capture_output=True, text=True, check=True)
    *helps, rest = done.stdout.split("end of help\n")
    assert len(helps) == 3
    assert not rest
    for shown in helps:
        assert "examples:" in shown
        assert "--ckpt_path" in shown


def test_another_detector(
    trained: TrainedRun,
    calibrated: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The three tools take --detector and its file; what does not go together is said before anything is loaded."""
    (tmp_path / "net.onnx").write_text("hello")
    commands = (
        ["verify", trained.crop(0, 1), trained.crop(0, 2)],
        ["identify", trained.crop(0, 1), "--gallery", trained.crop(0, 1).parent],
        ["embed", trained.crop(0, 1).parent, "--out", tmp_path / "out.npz"],
    )
    for command in commands:
        for options, words in (
            (["--detector", "scrfd"], "the detector scrfd needs a model file"),
            (["--detector", "yunet", "--detector_model", tmp_path / "absent"], "file not found"),
            (["--detector_model", tmp_path / "net.onnx"], "mtcnn brings its own weights"),
        ):
            assert run(*command, "--checkpoint", tmp_path / "absent.ckpt", *options) == 2
            assert words in capsys.readouterr().err
    asked = []

    class Everywhere:
        def detect(self, image: np.ndarray) -> Faces:
            return Faces(np.zeros((1, 4), "f4"), np.ones(1, "f4"), TEMPLATE[None].astype("f4"))

    monkeypatch.setattr(
        "facelit.align.open_detector", lambda *options, **more: asked.append((options, more)) or Everywhere()
    )
    options = ["--detector", "scrfd", "--detector_model", tmp_path / "net.onnx", "--checkpoint", calibrated]
    for command in commands:
        assert run(*command, *options) == 0, capsys.readouterr().err
    assert asked == [(("scrfd",), {"model": str(tmp_path / "net.onnx")})] * 3
