"""Aligning a tree: what is written, what is done again, and what a full disk leaves."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from facelit.align import Faces, estimate_similarity, journal, warp
from facelit.align.folder import Options, Result, align_folder, encode_crop
from facelit.align.journal import FOLDER, Journal, Outcome
from facelit.align.landmark_file import face_lines
from facelit.align.photo_tree import list_photos
from facelit.errors import FacelitError
from fake_detector import FakeDetector, draw, landmarks_of, save

PNG = Options(format="png")


def written(number: int) -> np.ndarray:
    """A face's landmarks, rounded as in the file."""
    return np.round(landmarks_of(number).astype(float), 2).astype(np.float32)


@pytest.fixture(autouse=True)
def _fresh_count() -> None:
    FakeDetector.seen = 0


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    for person in range(3):
        for number in range(4):
            save(root / f"person_{person}" / f"{number}.png", num_faces=number, seed=10 * person + number)
    (root / "person_0" / "text.jpg").write_text("no image")
    return root


def run(root: Path, target: Path, options: Options = PNG, jobs: int = 1, **more: Any) -> Result:
    journal.begin(target, {"src": str(root)}, options.crops, recrop=True)
    with journal.locked(target):
        return align_folder(list_photos(root), target, options, more.pop("detector", FakeDetector), jobs=jobs, **more)


def tree(target: Path) -> dict[str, bytes]:
    return {
        path.relative_to(target).as_posix(): path.read_bytes()
        for path in target.rglob("*")
        if path.is_file() and FOLDER not in path.parts
    }


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("batch", [1, 3])
def test_crops_are_the_warped_photos(photos: Path, tmp_path: Path, jobs: int, batch: int) -> None:
    result = run(photos, tmp_path / "crops", PNG._replace(batch=batch), jobs)
    faces = {outcome.photo: outcome.faces for outcome in result.outcomes}
    assert faces == {f"person_{p}/{n}.png": n for p in range(3) for n in range(4)} | {"person_0/text.jpg": 0}
    assert set(tree(tmp_path / "crops")) == {f"person_{p}/{n}.png" for p in range(3) for n in (1, 2, 3)}
    assert [outcome.reason for outcome in result.outcomes if outcome.reason] == [
        "cannot read this image (not an image, or of an unknown format)"
    ]
    expected = warp(draw(3, 23), estimate_similarity(written(0)))
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "crops" / "person_2" / "3.png")), expected)


def test_all_faces(photos: Path, tmp_path: Path) -> None:
    result = run(photos, tmp_path / "crops", PNG._replace(which="all"))
    wanted = ("person_1/3.png", "person_1/3_face2.png", "person_1/3_face3.png")
    assert [outcome.crops for outcome in result.outcomes if outcome.photo == "person_1/3.png"] == [wanted]
    for number, name in enumerate(wanted):
        expected = warp(draw(3, 13), estimate_similarity(written(number)))
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "crops" / name)), expected)


def test_what_is_done_is_not_done_again(photos: Path, tmp_path: Path) -> None:
    first = run(photos, tmp_path / "crops")
    assert (FakeDetector.seen, first.num_new) == (15, 13)  # three have no face, and are searched twice
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "crops").rglob("*.png")}
    again = run(photos, tmp_path / "crops")
    assert again.outcomes == first.outcomes
    assert (FakeDetector.seen, again.num_new) == (15, 1)  # what could not be read may be mended by now
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "crops").rglob("*.png")}


def test_lost_crops_changed_photos_and_mended_ones_are_done(photos: Path, tmp_path: Path) -> None:
    run(photos, tmp_path / "crops", PNG._replace(which="all"))
    (tmp_path / "crops" / "person_0" / "1.png").unlink()
    save(photos / "person_1" / "3.png", num_faces=2, seed=99)
    (photos / "person_2" / "2.png").unlink()
    Image.fromarray(draw(1, 5)).save(photos / "person_0" / "text.jpg", "PNG")
    result = run(photos, tmp_path / "crops", PNG._replace(which="all"))
    assert result.num_new == 3
    assert [outcome.photo for outcome in result.gone] == ["person_2/2.png"]
    fresh = run(photos, tmp_path / "fresh", PNG._replace(which="all"))
    assert [(o.photo, o.faces, o.crops) for o in result.outcomes] == [
        (o.photo, o.faces, o.crops) for o in fresh.outcomes
    ]
    left = {name: data for name, data in tree(tmp_path / "crops").items() if not name.startswith("person_2/2")}
    assert left == tree(tmp_path / "fresh")
    assert [o.photo for o in run(photos, tmp_path / "crops", PNG._replace(which="all")).gone] == ["person_2/2.png"]


def test_a_run_that_was_cut_off_goes_on(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    detect = FakeDetector.detect

    def give_up(self: FakeDetector, image: Any) -> Any:
        if FakeDetector.seen == 7:
            raise KeyboardInterrupt
        return detect(self, image)

    with monkeypatch.context() as patch:
        patch.setattr(FakeDetector, "detect", give_up)
        with pytest.raises(KeyboardInterrupt):
            run(photos, tmp_path / "crops")
    result = run(photos, tmp_path / "crops")
    assert FakeDetector.seen == 15
    assert result.outcomes == run(photos, tmp_path / "fresh").outcomes
    assert tree(tmp_path / "crops") == tree(tmp_path / "fresh")


@pytest.mark.parametrize("fails", ["write", "rename", "journal"])
def test_a_full_disk(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    replace, real_open, write, count = os.replace, open, os.write, [0]

    def full() -> None:
        count[0] += 1
        if count[0] > 4:
            raise OSError(errno.ENOSPC, "No space left on device")

    class Full:
        """A file that takes half of what it is given."""

        def __init__(self, path: Path) -> None:
            self.file = real_open(path, "wb")

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def write(self, data: bytes) -> None:
            self.file.write(data[: len(data) // 2])
            full()
            self.file.write(data[len(data) // 2 :])

    with monkeypatch.context() as patch:
        journal.begin(tmp_path / "crops", {"src": str(photos)}, {})
        if fails == "write":
            patch.setattr(
                journal, "open", lambda path, mode: Full(path) if mode == "wb" else real_open(path, mode), raising=False
            )
        elif fails == "rename":
            patch.setattr(os, "replace", lambda *a: (full(), replace(*a)))
        else:
            patch.setattr(os, "write", lambda fd, data: (full(), write(fd, data))[1])
        with pytest.raises(FacelitError, match=r"cannot write this file \(No space left on device\)") as caught:
            run(photos, tmp_path / "crops")
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "crops").rglob("*.tmp"))
    fresh = run(photos, tmp_path / "fresh")
    whole = tree(tmp_path / "fresh")
    assert all(whole[name] == data for name, data in tree(tmp_path / "crops").items())  # nothing half-written
    assert run(photos, tmp_path / "crops").outcomes == fresh.outcomes
    assert tree(tmp_path / "crops") == whole


def test_a_full_disk_in_another_process(photos: Path, tmp_path: Path) -> None:
    target = tmp_path / "crops"
    journal.begin(target, {"src": str(photos)}, {})
    (target / "person_1").write_text("in the way of the folder")
    with pytest.raises(FacelitError, match=r"person_1.*cannot write this file"):
        run(photos, target, jobs=2)
    (target / "person_1").unlink()
    assert run(photos, target, jobs=2).outcomes == run(photos, tmp_path / "fresh").outcomes


def test_landmarks_instead_of_a_detector(photos: Path, tmp_path: Path) -> None:
    lines = face_lines(Faces(np.zeros((1, 4)), np.ones(1), landmarks_of(1)[None]))
    given = {"person_0/0.png": lines, "person_0/text.jpg": lines}
    result = run(photos, tmp_path / "crops", detector=None, landmarks=given)
    assert FakeDetector.seen == 0
    assert {o.photo for o in result.outcomes if o.crops} == {"person_0/0.png"}
    assert {o.photo for o in result.outcomes if o.reason} == {"person_0/text.jpg"}
    expected = warp(draw(0, 0), estimate_similarity(written(1)))
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "crops" / "person_0" / "0.png")), expected)


def test_landmarks_of_a_picture_that_is_no_longer_there(photos: Path, tmp_path: Path) -> None:
    """The photo was shrunk since: the crop would be black all over. Nothing is made of it until the landmarks fit."""
    given = {"person_0/1.png": face_lines(Faces(np.array([[10, 10, 60, 60.0]]), np.ones(1), landmarks_of(1)[None]))}
    path = photos / "person_0" / "1.png"
    original = path.read_bytes()
    Image.open(path).resize((8, 8)).save(path)
    result = run(photos, tmp_path / "crops", detector=None, landmarks=given)
    (outcome,) = (o for o in result.outcomes if o.photo == "person_0/1.png")
    assert (outcome.crops, outcome.found) == ((), ())
    assert "lie outside" in outcome.reason
    path.write_bytes(original)
    result = run(photos, tmp_path / "crops", detector=None, landmarks=given)
    assert [o.crops for o in result.outcomes if o.photo == "person_0/1.png"] == [("person_0/1.png",)]


def test_other_crops_are_made_without_another_search(photos: Path, tmp_path: Path) -> None:
    run(photos, tmp_path / "crops")
    for options in (
        Options(format="png", border="replicate"),
        Options(format="jpg", quality=80, border="reflect"),
        Options(format="png", which="all"),
        PNG,
    ):
        FakeDetector.seen = 0
        again = run(photos, tmp_path / "crops", options)
        assert FakeDetector.seen == 0
        assert again.num_new == 10  # nine with a face, and what could not be read
        fresh = run(photos, tmp_path / f"fresh-{options.made}", options)
        assert again.outcomes == fresh.outcomes
        assert tree(tmp_path / "crops") == tree(tmp_path / f"fresh-{options.made}")  # and nothing else


def test_a_recropping_that_was_cut_off_goes_on(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(photos, tmp_path / "crops")
    write, count = Journal.write, [0]

    def give_up(self: Journal, outcome: Outcome) -> None:
        count[0] += 1
        if count[0] == 5:
            raise KeyboardInterrupt
        write(self, outcome)

    border = Options(format="png", border="replicate")
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "write", give_up)
        with pytest.raises(KeyboardInterrupt):
            run(photos, tmp_path / "crops", border)
    assert run(photos, tmp_path / "crops", border).num_new == 7
    run(photos, tmp_path / "fresh", border)
    assert tree(tmp_path / "crops") == tree(tmp_path / "fresh")


def test_a_photo_that_has_changed_is_searched_again(photos: Path, tmp_path: Path) -> None:
    run(photos, tmp_path / "crops")
    save(photos / "person_1" / "3.png", num_faces=2, seed=99)
    FakeDetector.seen = 0
    result = run(photos, tmp_path / "crops", Options(format="png", border="replicate"))
    assert FakeDetector.seen == 1
    assert {o.photo: o.faces for o in result.outcomes}["person_1/3.png"] == 2


def test_how_much_of_the_crops_lies_beyond_the_photo(photos: Path, tmp_path: Path) -> None:
    points = np.stack(
        [landmarks_of(0) - [48, 30], landmarks_of(0)]
    )  # the first crop begins 28 pixels left of the photo
    lines = face_lines(Faces(np.array([[0, 0, 9, 9], [0, 0, 8, 8]]), np.ones(2), points))
    for which, share in (("largest", 0.25), ("all", 0.125)):
        options = PNG._replace(which=which)
        result = run(photos, tmp_path / which, options, detector=None, landmarks={"person_0/0.png": lines})
        beyond = {outcome.photo: outcome.beyond for outcome in result.outcomes}
        assert beyond == pytest.approx({**dict.fromkeys(beyond, 0.0), "person_0/0.png": share}, abs=1e-4)


def test_encoding() -> None:
    smooth = np.asarray(Image.fromarray(draw(1)[:4, :4]).resize((112, 112), Image.Resampling.BICUBIC))
    sizes = []
    for format, quality, most in (("png", 1, 0.0), ("jpg", 95, 2.0), ("jpg", 50, 6.0)):
        data = encode_crop(smooth, format, quality)
        assert data[:3] == {"png": b"\x89PN", "jpg": b"\xff\xd8\xff"}[format]
        found = np.asarray(Image.open(io.BytesIO(data)))
        assert np.abs(found.astype(int) - smooth).mean() <= most
        sizes.append(len(data))
    assert sizes[1] > sizes[2]
