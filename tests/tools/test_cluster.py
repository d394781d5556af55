"""`facelit cluster` on the command line."""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from facelit.cli import main
from facelit.inference.photos import FaceFinder, FoundFaces
from trained_run import TrainedRun, calibration, read, unit


def run(*arguments: object) -> int:
    """Exit status of the program."""
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as left:
        return int(left.code or 0)
    return 0


def sorted_into(out: Path) -> dict[str, set[str]]:
    """Names of the photos in each folder of a sorted album."""
    folders = [folder for folder in out.iterdir() if folder.is_dir() and not folder.name.startswith(".")]
    return {f.name: {file.name for file in f.iterdir() if not file.name.startswith(".")} for f in folders}


@pytest.fixture
def checkpoint(trained: TrainedRun, tmp_path: Path) -> Path:
    """Its threshold is above every score between two colours and below those of one (the network is hardly trained)."""
    embeddings = [unit(trained.embed(read(*(trained.crop(p, n) for n in range(1, 7))))) for p in range(8)]
    apart = {(a, b): (embeddings[a] @ embeddings[b].T).max() for a in range(8) for b in range(a)}
    inside = [(rows @ rows.T).min() for rows in embeddings]
    chosen: list[int] = []
    for person in np.argsort(inside)[::-1].tolist():
        if all(apart[max(person, other), min(person, other)] < min(inside[person], inside[other]) for other in chosen):
            chosen.append(person)
    chosen = chosen[:3]
    assert len(chosen) == 3
    most = max(apart[max(a, b), min(a, b)] for a in chosen for b in chosen if a != b)
    limit = (most + min(inside[p] for p in chosen)) / 2
    for person in chosen:
        shutil.copytree(trained.crops / f"person_{person:02d}", tmp_path / "all" / f"p{person}")
    return trained.changed(
        tmp_path / "c.ckpt", facelit__calibration=calibration(best_accuracy=-1.0, far_1e3=float(limit))
    )


def photos_of(tmp_path: Path, *numbers: int) -> Path:
    """Some of everybody's photos, in one folder."""
    root = tmp_path / f"photos{numbers}"
    root.mkdir()
    for photo in (tmp_path / "all").glob("*/*.png"):
        if int(photo.stem[-4:]) in numbers:
            shutil.copy(photo, root)
    return root


def test_people_keep_their_folders_when_photos_come(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = ["--aligned", "--checkpoint", checkpoint]
    first = photos_of(tmp_path, 1, 2, 3)
    assert run("cluster", first, out, *options) == 0
    assert "9 faces, 3 people (3 new), 0 faces in noise/" in capsys.readouterr().out
    before = sorted_into(out)
    assert set(before) == {"person_0001", "person_0002", "person_0003"}
    for names in before.values():
        assert len(names) == 3
        assert len({name[:9] for name in names}) == 1
    link = next((out / "person_0001").glob("*.png"))
    assert link.is_symlink()
    assert link.resolve() == (first / link.name).resolve()
    (out / "person_0002").rename(out / "Bob")
    (out / "person_0001" / link.name).unlink()  # the user's doing stays
    more = photos_of(tmp_path, 1, 4, 5)
    assert run("cluster", more, out, *options) == 0
    assert "15 faces, 3 people (0 new)" in capsys.readouterr().out
    after = sorted_into(out)
    assert set(after) == {"person_0001", "Bob", "person_0003"}
    before["Bob"] = before.pop("person_0002")
    for name, files in before.items():
        assert len(after[name] - files) == 2
        assert len({file[:9] for file in after[name] | files}) == 1
    assert link.name not in after["person_0001"]
    assert run("cluster", first, out, *options) == 0
    assert sorted_into(out) == after


def test_scores_sheet_and_labels(
    trained: TrainedRun, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = ["--aligned", "--checkpoint", checkpoint, "--copy", "--labels", "--fewest", "6"]
    (tmp_path / "all" / "broken").mkdir()
    (tmp_path / "all" / "broken" / "text.png").write_text("hello")
    assert run("cluster", tmp_path / "all", out, *options) == 1
    printed = capsys.readouterr().out
    assert "BCubed  precision 1.0000  recall 1.0000  F 1.0000" in printed
    assert "text.png\tcannot read this image" in (out / "skipped.tsv").read_text()
    assert (out / "people.png").read_bytes().startswith(b"\x89PNG")
    rows = [line.split("\t") for line in (out / "faces.tsv").read_text().splitlines()]
    assert rows[0] == ["photo", "face", "person", "score", "nearest_other", "other_score"]
    embeddings = dict(
        zip((row[0] for row in rows[1:]), unit(trained.embed(read(*(Path(r[0]) for r in rows[1:])))), strict=True)
    )
    for photo, face, person, score, nearest, other in rows[1:]:
        mean = {
            name: np.mean([embeddings[photo] @ embeddings[r[0]] for r in rows[1:] if r[2] == name and r[0] != photo])
            for name in {row[2] for row in rows[1:]}
        }
        assert face == "1"
        assert float(score) == pytest.approx(mean.pop(person), abs=1e-3)
        assert nearest == max(mean, key=mean.__getitem__)
        assert float(other) == pytest.approx(mean[nearest], abs=1e-3)
        copied = out / person / Path(photo).name
        assert not copied.is_symlink()
        assert copied.read_bytes() == Path(photo).read_bytes()


def test_a_photo_of_two_people_lies_with_both_and_noise_finds_its_person_later(
    trained: TrainedRun,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    crops = sorted((tmp_path / "all").glob("*/*.png"))
    a, b = crops[:6], crops[6:12]

    def find(self: Any, photo: Path, aligned: bool, which: str = "largest") -> FoundFaces:
        shown = {"both.png": [a[0], b[0]], "a.png": [a[1]], "later.png": [b[1]]}[photo.name]
        return FoundFaces(list(read(*shown)), len(shown))

    monkeypatch.setattr(FaceFinder, "find", find)
    photos, out = tmp_path / "album", tmp_path / "out"
    photos.mkdir()
    shutil.copy(a[0], photos / "both.png")
    shutil.copy(a[1], photos / "a.png")
    assert run("cluster", photos, out, "--checkpoint", checkpoint) == 0
    assert sorted_into(out) == {"person_0001": {"both.png", "a.png"}, "noise": {"both.png"}}
    shutil.copy(b[1], photos / "later.png")
    shutil.copy(b[1], photos / "same bytes.png")
    assert run("cluster", photos, out, "--checkpoint", checkpoint) == 0
    assert "1 photos are identical copies of others" in capsys.readouterr().err
    assert sorted_into(out) == {
        "person_0001": {"both.png", "a.png"},
        "noise": set(),
        "person_0002": {"both.png", "later.png"},
    }


@pytest.mark.parametrize(
    ("photos", "out", "options", "message"),
    [
        ("absent", "out", [], "absent does not exist"),
        ("empty", "out", [], "empty holds no photo"),
        ("all", "all/out", [], "its links would be sorted as photos"),
        ("all", "out", ["--fewest", "0"], "--fewest must be at least 1"),
        ("all/one", "out", ["--labels"], "--labels takes"),
        ("texts", "out", [], "none of the 1 photos can be used"),
        ("all", "c.ckpt", [], "cannot write this file"),
    ],
)
def test_bad_input_is_one_line(
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    photos: str,
    out: str,
    options: list[str],
    message: str,
) -> None:
    next((tmp_path / "all").iterdir()).rename(tmp_path / "all" / "one")
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.png").write_text("hello")
    status = run("cluster", tmp_path / photos, tmp_path / out, "--aligned", "--checkpoint", checkpoint, *options)
    assert status == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_another_network_is_refused(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert run("cluster", tmp_path / "all", out, "--aligned", "--checkpoint", checkpoint) == 0
    state = (out / ".facelit-cluster.npz").read_bytes()
    assert run("cluster", tmp_path / "all", out, "--aligned", "--checkpoint", checkpoint, "--which", "largest") == 2
    assert "was sorted with another network, or" in capsys.readouterr().err
    assert (out / ".facelit-cluster.npz").read_bytes() == state
    (out / ".facelit-cluster.npz").write_bytes(state[:100])
    assert run("cluster", tmp_path / "all", out, "--aligned", "--checkpoint", checkpoint) == 2
    assert "damaged, or of another version" in capsys.readouterr().err
    assert os.path.lexists(out / "faces.tsv")
