"""`facelit align` from the command line: the report, the exit status, slips, and a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from facelit.align import TEMPLATE, report
from facelit.align.journal import FOLDER, Outcome
from facelit.align.report import SHEET
from facelit.cli import main
from facelit.errors import FacelitError
from facelit.storage.folder import FolderStore
from facelit.storage.images import list_images, read_crop, read_image
from facelit.tools.align import align

ROOT = Path(__file__).resolve().parents[2]


def save(path: Path, seed: int, size: int = 140) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    small = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    Image.fromarray(small).resize((size, size), Image.Resampling.BICUBIC).save(path)


def write_landmarks(path: Path, names: list[str]) -> Path:
    numbers = "\t".join(f"{number:.2f}" for number in (TEMPLATE * 1.1 + 8).ravel())
    path.write_text("".join(f"{name}\t{numbers}\n" for name in names))
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number in range(6):
        save(tmp_path / "photos" / f"person_{number % 2}" / f"{number}.jpg", number)
    return tmp_path / "photos"


@pytest.fixture
def landmarks(tmp_path: Path) -> Path:
    """Of all photos but the last."""
    return write_landmarks(tmp_path / "landmarks.tsv", [f"person_{number % 2}/{number}.jpg" for number in range(5)])


def run(*arguments: object) -> int:
    try:
        main(["align", *map(str, arguments)])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_a_run_and_its_report(
    photos: Path, landmarks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "person_0" / "text.jpg").write_text("no image")
    target = tmp_path / "crops"
    assert run(photos, target, "--landmarks", landmarks) == 1
    printed = capsys.readouterr().out
    assert f"{photos}: 7 photos, 5 crops in {target}." in printed
    lines = {line.split("  ")[0]: line.split() for line in printed.splitlines()}
    counts = [
        lines[title][len(title.split())]
        for title in ("Aligned", "Several faces", "Beyond the edge", "No face", "Unreadable")
    ]
    assert counts == ["5", "0", "0", "1", "1"]
    folder = target / FOLDER
    assert (folder / "align-no-face.txt").read_text() == "person_1/5.jpg\n"
    assert (folder / "align-aligned.txt").read_text().splitlines()[0] == "person_0/0.jpg\tperson_0/0.jpg"
    reason = "cannot read this image (not an image, or of an unknown format)"
    assert (folder / "align-unreadable.txt").read_text() == f"person_0/text.jpg\t{reason}\n"
    with Image.open(folder / SHEET) as sheet:
        assert sheet.format == "PNG"


def test_several_faces_are_framed_in_the_sheet(tmp_path: Path) -> None:
    save(tmp_path / "photos" / "two.png", 1, size=448)
    landmarks = "\t".join(["5"] * 10)
    lines = (f"{landmarks}\t40\t60\t200\t300\t0.9", f"{landmarks}\t400\t240\t260\t100\t0.8")

    def shown(found: tuple[str, ...]) -> Any:
        outcome = Outcome("two.png", (1, 1), found, ("two.jpg",))
        finding = report._finding(tmp_path / "photos", tmp_path, ("a", "A", ""), [outcome])
        photo = finding.item(0).pictures[0]
        return read_image(photo.store.encoded(photo.row), "").astype(int)

    pixels, bare = shown(lines), shown(lines[:1])
    assert pixels.shape == bare.shape == (224, 224, 3)
    # Half the size: the photo is 448 pixels wide. Corners and edges of both boxes, but not their insides.
    for x, y in ((20, 30), (100, 150), (20, 90), (60, 150), (130, 50), (200, 120), (165, 120)):
        assert pixels[y, x].tolist() == [0xD5, 0x5E, 0x00]
        assert bare[y, x].tolist() != [0xD5, 0x5E, 0x00]
    assert (pixels[60:140, 40:90] == bare[60:140, 40:90]).all()


def test_the_sheet_has_as_many_images_as_asked_for(photos: Path, landmarks: Path, tmp_path: Path) -> None:
    heights = {}
    for images in (2, 16):
        assert run(photos, tmp_path / "crops", "--landmarks", landmarks, "--sheet_images", images) == 1
        with Image.open(tmp_path / "crops" / FOLDER / SHEET) as sheet:
            heights[images] = sheet.size[1]
    # Five photos with their crops: two rows of eight pictures, where there was one.
    assert heights[16] - heights[2] == pytest.approx((112 + 38 + 10) * 1.5, abs=2)
    with pytest.raises(FacelitError, match=r"option sheet_images: 1 to 200, not 201\."):
        align(str(photos), str(tmp_path / "crops"), landmarks=str(landmarks), sheet_images=201)


def test_kinds_of_photos(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What Pillow reads is read, whatever its suffix; what it does not is counted, listed and named."""
    (photos / "person_0" / "0.jpg").rename(photos / "person_0" / "0.jfif")
    Image.open(photos / "person_0" / "2.jpg").save(photos / "person_0" / "2.bmp")
    (photos / "person_0" / "2.jpg").unlink()
    (photos / "person_2").mkdir()
    (photos / "person_2" / "9.NEF").write_bytes(b"MM")
    names = ["person_0/0.jfif", "person_0/2.bmp", "person_0/4.jpg", *(f"person_1/{n}.jpg" for n in (1, 3, 5))]
    landmarks = write_landmarks(tmp_path / "l.tsv", names)
    assert run(photos, tmp_path / "crops", "--landmarks", landmarks) == 1
    assert {path.name for path in (tmp_path / "crops" / "person_0").iterdir()} == {"0.jpg", "2.jpg", "4.jpg"}
    printed = capsys.readouterr().out
    assert "7 photos, 6 crops" in printed
    listed = (tmp_path / "crops" / FOLDER / "align-unreadable.txt").read_text()
    assert listed == "person_2/9.NEF\ta camera's raw file (.nef), which is not read: convert it to JPEG or PNG\n"
    assert run(photos, tmp_path / "crops", "--landmarks", landmarks) == 1
    assert "6 done in earlier runs" in capsys.readouterr().out


def test_unreadable_photos_are_named(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "person_1" / "3.jpg").write_bytes(b"")
    landmarks = write_landmarks(tmp_path / "l.tsv", [f"person_{number % 2}/{number}.jpg" for number in range(6)])
    assert run(photos, tmp_path / "crops", "--landmarks", landmarks) == 1
    assert "person_1/3.jpg: cannot read this image (the file is empty)" in capsys.readouterr().out
    assert (
        tmp_path / "crops" / FOLDER / "align-unreadable.txt"
    ).read_text() == "person_1/3.jpg\tcannot read this image (the file is empty)\n"
    save(photos / "person_1" / "3.jpg", 3)
    assert run(photos, tmp_path / "crops", "--landmarks", landmarks) == 0
    assert "6 photos, 6 crops" in (printed := capsys.readouterr().out)
    assert "5 done in earlier runs" in printed


def test_another_border_from_the_same_landmarks(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Half of each crop lies left of its photo: said, listed, and mended without finding anything again."""
    names = [f"person_{number % 2}/{number}.jpg" for number in range(6)]
    numbers = "\t".join(f"{number:.2f}" for number in (TEMPLATE - [56, 0]).ravel())
    landmarks = tmp_path / "l.tsv"
    landmarks.write_text("".join(f"{name}\t{numbers}\n" for name in names))
    crops = tmp_path / "crops"
    assert run(photos, crops, "--landmarks", landmarks, "--format", "png") == 0
    printed = capsys.readouterr().out
    assert (
        "50 % of all pixels of the crops lie beyond their photos and are black. `--border replicate --recrop`"
        in printed
    )
    assert (crops / FOLDER / "align-beyond-the-edge.txt").read_text().splitlines()[0] == f"{names[0]}\t50 %"
    assert read_crop(crops / "person_0" / "0.png")[:, :50].max() == 0
    assert run(photos, crops, "--landmarks", landmarks, "--format", "png", "--border", "replicate") == 2
    assert "was aligned with border black, not replicate" in capsys.readouterr().err
    assert run(photos, crops, "--landmarks", landmarks, "--format", "png", "--border", "replicate", "--recrop") == 0
    assert "are black" not in capsys.readouterr().out
    assert read_crop(crops / "person_0" / "0.png")[:, :50].std(axis=1).max() == 0
    assert run(photos, crops, "--landmarks", landmarks, "--format", "png", "--border", "replicate") == 0
    # What was kept gives the same crops in another folder.
    kept = crops / FOLDER / "align-landmarks.tsv"
    assert run(photos, tmp_path / "again", "--landmarks", kept, "--format", "png", "--border", "replicate") == 0
    for name in names:
        png = name.replace("jpg", "png")
        assert (tmp_path / "again" / png).read_bytes() == (crops / png).read_bytes()


def test_crops_are_a_training_set(photos: Path, landmarks: Path, tmp_path: Path) -> None:
    run(photos, tmp_path / "crops", "--landmarks", landmarks)
    store = FolderStore(tmp_path / "crops")
    assert list(store.identities) == ["person_0", "person_1"]
    assert len(store) == 5
    for row in range(5):
        assert read_crop(store.place(row)).shape == (112, 112, 3)


def test_another_source_or_option_is_refused(
    photos: Path, landmarks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "crops"
    run(photos, target, "--landmarks", landmarks)
    before = {path: path.stat().st_mtime_ns for path in target.rglob("*")}
    save(tmp_path / "other" / "person_0" / "0.jpg", 0)
    for arguments, words in (
        (
            (photos, target, "--landmarks", landmarks, "--format", "png"),
            "was aligned with format jpg, not png. Name another folder for these crops, or add --recrop",
        ),
        ((photos, target, "--landmarks", landmarks, "--quality", "90"), "was aligned with quality 95, not 90"),
        ((tmp_path / "other", target, "--landmarks", landmarks), f"was aligned with src {photos}"),
    ):
        capsys.readouterr()
        assert run(*arguments) == 2
        message = capsys.readouterr().err
        assert words in message
        assert "Name another folder" in message
        assert message.count("\n") <= 2
        assert ("--landmarks" in message) == ("src" in message)  # a folder that was moved
    with landmarks.open("a") as file:
        file.write("person_1/5.jpg" + "\t1\t2\t3\t4\t5\t6\t7\t8\t9\t10\n")
    assert run(photos, target, "--landmarks", landmarks) == 2
    assert "was aligned with landmarks" in capsys.readouterr().err
    assert before == {path: path.stat().st_mtime_ns for path in target.rglob("*")}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{photos}", "{photos}"], "must not contain one another"),
        (["{photos}", "{photos}/crops"], "must not contain one another"),
        (["{photos}/person_0", "{photos}"], "must not contain one another"),
        (["{tmp}/absent", "{tmp}/crops"], "folder not found"),
        (["{photos}", "{tmp}/crops", "--min_face", "11"], "option min_face: at least 12, not 11"),
        (["{photos}", "{tmp}/crops", "--max_side", "20"], "option max_side: 0, or at least min_face"),
        (["{photos}", "{tmp}/crops", "--quality", "0"], "option quality: 1 to 100, not 0"),
        (["{photos}", "{tmp}/crops", "--jobs", "0"], "option jobs: at least 1, not 0"),
        (["{photos}", "{tmp}/crops", "--which", "biggest"], "which biggest: not a valid value"),
        (["{photos}", "{tmp}/crops", "--landmarks", "{tmp}/absent"], "option landmarks"),
        (["{photos}", "{tmp}/crops", "--landmarks", "{tmp}/strange.tsv"], "none of its photos"),
        (["{photos}", "{photos}/person_0/0.jpg/crops"], "must not contain one another"),
        (["{photos}", "{tmp}/strange.tsv/crops", "--landmarks", "{tmp}/landmarks.tsv"], "cannot write here"),
    ],
)
def test_slips(
    photos: Path,
    landmarks: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    write_landmarks(tmp_path / "strange.tsv", ["elsewhere/1.jpg"])
    if "--landmarks" not in arguments:
        pytest.importorskip("mtcnnruntime", reason="the extra facelit[align] is not installed")
    assert run(*(argument.format(photos=photos, tmp=tmp_path) for argument in arguments)) == 2
    message = capsys.readouterr().err
    assert words in message
    assert message.startswith("facelit: error: ")
    assert message.count("\n") <= 2
    assert not (tmp_path / "crops").exists()


def test_photos_that_were_moved_and_renamed(
    photos: Path, landmarks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the message names makes the same crops; the renamed photo is told apart from one without a face by the count."""
    run(photos, tmp_path / "crops", "--landmarks", landmarks)
    moved = photos.rename(tmp_path / "moved")
    capsys.readouterr()
    assert run(moved, tmp_path / "crops", "--landmarks", landmarks) == 2
    kept = capsys.readouterr().err.split("--landmarks ")[1].strip()
    run(moved, tmp_path / "again", "--landmarks", kept)
    for crop in (tmp_path / "crops").glob("*/*.jpg"):
        assert (tmp_path / "again" / crop.parent.name / crop.name).read_bytes() == crop.read_bytes()
    first = next(moved.glob("person_0/0*"))
    first.rename(first.with_name("renamed.jpg"))
    capsys.readouterr()
    assert run(moved, tmp_path / "third", "--landmarks", kept) == 1
    assert f"1 of its {len(Path(kept).read_text().splitlines()) - 1} photos are not in" in capsys.readouterr().out


def test_landmarks_of_photos_that_are_not_there_are_counted(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    landmarks = write_landmarks(tmp_path / "l.tsv", ["person_0/0.jpg", "person_7/1.jpg"])
    align(str(photos), str(tmp_path / "crops"), landmarks=str(landmarks), jobs=1)
    assert "1 of its 2 photos are not in" in capsys.readouterr().out


def test_a_full_disk_at_the_end(photos: Path, landmarks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = os.replace

    def full(source: str, target: str) -> None:
        if str(target).endswith(SHEET):
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(FacelitError, match=f"{SHEET}: cannot write this file \\(No space left on device\\)"):
        align(str(photos), str(tmp_path / "crops"), landmarks=str(landmarks), jobs=1)
    assert not (tmp_path / "crops" / FOLDER / SHEET).exists()


def test_a_killed_run_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"person_{number % 20}/{number}.png" for number in range(160)]
    for number, name in enumerate(names):
        save(tmp_path / "photos" / name, number)
    landmarks = write_landmarks(tmp_path / "landmarks.tsv", names[:-10])
    crops = tmp_path / "crops"
    command = [sys.executable, str(ROOT / "main.py"), "align", str(tmp_path / "photos"), str(crops)]
    command += ["--landmarks", str(landmarks), "--jobs", "2"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        while len(list(crops.glob("*/*.jpg"))) < 20 and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    time.sleep(0.5)  # the processes that worked for it end by themselves
    done = len(list(crops.glob("*/*.jpg")))
    assert 20 <= done < 150
    for path in list_images(crops):
        assert read_crop(path).shape == (112, 112, 3)
    times = {path: path.stat().st_mtime_ns for path in crops.glob("*/*.jpg")}
    assert run(*command[3:]) == 1  # ten photos have no landmarks
    assert "160 photos, 150 crops" in capsys.readouterr().out
    assert sum(path.stat().st_mtime_ns != before for path, before in times.items()) <= 2  # those under way
    assert len((crops / FOLDER / "align-no-face.txt").read_text().splitlines()) == 10
    whole = tmp_path / "whole"
    align(str(tmp_path / "photos"), str(whole), landmarks=str(landmarks), jobs=1)
    assert all(
        (whole / name).read_bytes() == (crops / name).read_bytes() for name in (p[:-4] + ".jpg" for p in names[:-10])
    )
    assert not list((crops / FOLDER).glob(".*.tmp"))


def test_no_torch() -> None:
    code = "import sys, facelit.align, facelit.tools.align, facelit.align.folder; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True, cwd=ROOT).strip() == "False"


@pytest.mark.lfw
def test_real_photos(lfw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("mtcnnruntime", reason="the extra facelit[align] is not installed")
    for name in ("AJ_Cook", "Abba_Eban"):
        (tmp_path / "photos").mkdir(exist_ok=True)
        (tmp_path / "photos" / name).symlink_to(lfw / "raw_250" / name)
    (tmp_path / "photos" / "nobody").mkdir()
    Image.new("RGB", (300, 200), "grey").save(tmp_path / "photos" / "nobody" / "wall.png")
    crops = tmp_path / "crops"
    assert run(tmp_path / "photos", crops, "--jobs", "1") == 1
    first = capsys.readouterr().out
    assert "No face" in first
    assert "nobody/wall.png" in first
    options = json.loads((crops / FOLDER / "options.json").read_text())
    assert (options["detector"], options["min_face"], options["max_side"]) == ("mtcnn", 40, 1024)
    assert (crops / "AJ_Cook" / "AJ_Cook_0001.jpg").is_file()
    assert not (crops / "nobody").exists()
    assert run(tmp_path / "photos", crops) == 1
