"""`facelit identify` on the command line."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from facelit.cli import main
from facelit.inference.photos import FaceFinder, FoundFaces, NoFaceError
from trained_run import TrainedRun, calibration, read, unit


def run(*arguments: object) -> int:
    """Exit status of the program."""
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as left:
        return int(left.code or 0)
    return 0


@pytest.fixture
def people(trained: TrainedRun, tmp_path: Path) -> Path:
    """Six people with photos 2 to 4."""
    for person in range(6):
        folder = tmp_path / "people" / f"p{person}"
        folder.mkdir(parents=True)
        for number in (2, 3, 4):
            (folder / f"{number}.png").write_bytes(trained.crop(person, number).read_bytes())
    return tmp_path / "people"


def scores_by_hand(trained: TrainedRun, *photos: Path, template: str = "mean") -> Any:
    """(photos, 6): to the mean of each person's normalised embeddings, or to the most alike of them."""
    own = [unit(trained.embed(read(*(trained.crop(person, n) for n in (2, 3, 4))))) for person in range(6)]
    asked = unit(trained.embed(read(*photos)))
    if template == "all":
        return np.stack([(asked @ rows.T).max(axis=1) for rows in own], axis=1)
    return asked @ unit(np.stack([rows.mean(axis=0) for rows in own])).T


@pytest.mark.parametrize("template", ["mean", "all"])
def test_answers_are_ranked_by_hand(
    trained: TrainedRun, people: Path, capsys: pytest.CaptureFixture[str], template: str
) -> None:
    photos = [trained.crop(person, 1) for person in range(8)]  # the last two are strangers
    scores = scores_by_hand(trained, *photos, template=template)
    limit = round(float(np.sort(scores.max(axis=1))[2]) + 1e-4, 5)
    options = ["--gallery", people, "--aligned", "--checkpoint", trained.checkpoint, "--k", 3, "--threshold", limit]
    assert run("identify", *photos, *options, "--template", template, "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["people"] == 6
    assert answer["threshold"]["value"] == limit
    for photo, row, found in zip(photos, scores, answer["answers"], strict=True):
        order = np.argsort(-row, kind="stable")[:3]
        assert found["photo"] == str(photo)
        assert [one["name"] for one in found["matches"]] == [f"p{place}" for place in order]
        assert [one["score"] for one in found["matches"]] == pytest.approx(row[order].tolist(), abs=1e-6)
        assert found["identity"] == (f"p{order[0]}" if row[order[0]] >= limit else None)
    assert {one["identity"] is None for one in answer["answers"]} == {True, False}


def test_words_and_what_the_threshold_stands_for(
    trained: TrainedRun, people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With six people enrolled a FAR of 25 % becomes 1 - 0.75^6 = 82.2 %."""
    kept = calibration(best_accuracy=-0.999, far_1e2=0.9999999)
    path = trained.changed(tmp_path / "c.ckpt", facelit__calibration=kept)
    options = ["--gallery", people, "--aligned", "--ckpt_path", path, "--k", "2"]
    assert run("identify", "--gallery", people, trained.crop(0, 1), *options[2:]) == 0
    heading, line = capsys.readouterr().out.splitlines()
    assert heading.startswith(
        "6 people, threshold -0.999: the threshold for best accuracy on made_up, where it accepts 25 %"
    )
    assert heading.endswith("Among 6 people about 82.2 % of strangers would be matched to somebody.")
    best, second = np.argsort(-scores_by_hand(trained, trained.crop(0, 1))[0])[:2]
    assert line.startswith(f"{trained.crop(0, 1)}: p{best}  (1. p{best} ")
    assert f", 2. p{second} " in line
    assert run("identify", trained.crop(0, 1), *options, "--at", "far_1e-2") == 0
    assert ": unknown  (1. " in capsys.readouterr().out


def test_a_saved_gallery_answers_the_same(
    trained: TrainedRun, people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--aligned", "--checkpoint", trained.checkpoint, "--json"]
    run("identify", trained.crop(0, 1), "--gallery", people, *options, "--save_gallery", tmp_path / "g.npz")
    first = capsys.readouterr().out
    run("identify", trained.crop(0, 1), "--gallery", tmp_path / "g.npz", *options, "--faiss")
    assert capsys.readouterr().out == first
    state = trained.changed(tmp_path / "x.ckpt")
    assert run("identify", trained.crop(0, 1), "--gallery", tmp_path / "absent.npz", "--checkpoint", state) == 2


def test_photos_without_an_answer_are_listed(
    trained: TrainedRun, people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The others are answered all the same; the exit status says that some were not."""
    (tmp_path / "text.png").write_text("hello")
    options = ["--gallery", people, "--aligned", "--checkpoint", trained.checkpoint, "--threshold", "-1"]
    assert run("identify", tmp_path / "text.png", trained.crop(0, 1), *options) == 1
    out = capsys.readouterr().out
    assert f"{trained.crop(0, 1)}: p" in out
    assert f"no answer: {tmp_path / 'text.png'}: cannot read this image" in out
    assert run("identify", tmp_path / "text.png", *options, "--json", "--show", tmp_path / "none.png") == 1
    answer = json.loads(capsys.readouterr().out)
    assert answer["answers"] == []
    assert answer["failed"][0]["photo"] == str(tmp_path / "text.png")
    (people / "p0" / "2.png").write_text("hello")
    assert run("identify", trained.crop(0, 1), *options) == 2
    assert "1 of the gallery's 18 photos cannot be used" in capsys.readouterr().err
    assert run("identify", trained.crop(0, 1), *options, "--on_bad_photo", "skip") == 0
    assert "left out of the gallery:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ONE"], "the gallery is missing: --gallery FOLDER"),
        (["--gallery", "PEOPLE"], "PHOTOS is missing"),
        (["ONE", "--gallery", "nowhere"], "gallery not found: nowhere"),
        (["ONE", "--gallery", "PEOPLE", "--k", "0"], "--k must be at least 1"),
        (["ONE", "--gallery", "PEOPLE", "--save_gallery", "g.zip"], "must end with .npz"),
    ],
)
def test_slips_are_one_line(
    trained: TrainedRun, people: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    real = {"ONE": trained.crop(0, 1), "PEOPLE": people}
    options = ["--aligned", "--checkpoint", trained.checkpoint]
    assert run("identify", *(real.get(one, one) for one in arguments), *options) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_all_faces_of_a_photo(
    trained: TrainedRun, people: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each gets a line; in the gallery's photos it is always one."""
    asked = set()

    def find(self: Any, photo: Any, aligned: bool, which: str = "largest") -> FoundFaces:
        if isinstance(photo, np.ndarray):
            return FoundFaces([photo], 1)
        asked.add((str(photo).startswith(str(people)), which))
        if "person_07" in str(photo):
            raise NoFaceError(str(photo), "no face was found")
        crop = read(Path(photo))[0]
        return FoundFaces([crop, 255 - crop] if which == "all" else [crop], 2)

    monkeypatch.setattr(FaceFinder, "find", find)
    options = ["--gallery", people, "--checkpoint", trained.checkpoint, "--threshold", "-1"]
    assert run("identify", trained.crop(0, 1), trained.crop(7, 1), *options, "--which", "all") == 1
    out = capsys.readouterr().out
    assert f"{trained.crop(0, 1)}, face 1: p" in out
    assert f"{trained.crop(0, 1)}, face 2: p" in out
    assert f"no answer: {trained.crop(7, 1)}: no face was found" in out
    assert asked == {(True, "largest"), (False, "all")}


def test_several_faces_in_the_gallery_are_remarked(
    trained: TrainedRun, people: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Somebody else may have been enrolled: the first ten are named, the others counted."""

    def find(self: Any, photo: Any, aligned: bool, which: str = "largest") -> FoundFaces:
        if isinstance(photo, np.ndarray):
            return FoundFaces([photo], 1)
        return FoundFaces([read(Path(photo))[0]], 2 if Path(photo).name in ("2.png", "3.png") else 1)

    monkeypatch.setattr(FaceFinder, "find", find)
    run("identify", trained.crop(0, 1), "--gallery", people, "--checkpoint", trained.checkpoint, "--threshold", "0")
    err = capsys.readouterr().err.splitlines()
    assert err[0] == f"{people}/p0/2.png: 2 faces; the largest is used (--which central uses the most central)."
    assert err[10] == "and 2 more photos with several faces"


def test_the_picture_has_the_faces(trained: TrainedRun, people: Path, tmp_path: Path) -> None:
    options = ["--aligned", "--checkpoint", trained.checkpoint, "--threshold", "-1", "--k", "2"]
    picture = tmp_path / "answers.png"
    run("identify", trained.crop(0, 1), trained.crop(1, 1), "--gallery", people, *options, "--show", picture)
    with Image.open(picture) as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("RGB")).astype(float)
    # Three columns and two rows: photo, best match, second match.
    height, width = pixels.shape[:2]
    middle = pixels[height // 4 : height // 4 + 20, width // 6 - 20 : width // 6 + 20]
    assert middle.mean(axis=(0, 1)) == pytest.approx(read(trained.crop(0, 1))[0].mean(axis=(0, 1)), abs=8)


def test_a_result_takes_one_line_whatever_names_hold(
    trained: TrainedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line break, and the sequence that clears a terminal, in a person's name and in a photo's."""
    photo, text = tmp_path / "a\u2028b.png", tmp_path / "broken\r\n.png"
    for path, source in ((tmp_path / "people" / "Ann\nBo: unknown\x1b[2J" / "1.png", 2), (photo, 1)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(trained.crop(0, source).read_bytes())
    text.write_text("no image")
    options = ["--gallery", tmp_path / "people", "--aligned", "--checkpoint", trained.checkpoint, "--threshold", -1]
    assert run("identify", photo, text, *options) == 1
    _, answer, none = capsys.readouterr().out.split("\n", 2)
    assert answer.startswith(f"{tmp_path}/a\\u2028b.png: Ann\\nBo: unknown\\x1b[2J  (1. Ann\\nBo: unknown\\x1b[2J ")
    assert none.startswith(f"no answer: {tmp_path}/broken\\r\\n.png: cannot read")
    assert len(none.splitlines()) == 1
    assert run("verify", photo, text, "--aligned", "--checkpoint", trained.checkpoint, "--threshold", -1) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
