"""Landmarks in a file: every usual form, and errors that name the line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from facelit.align import Faces
from facelit.align.landmark_file import HEADER as OWN_HEADER
from facelit.align.landmark_file import face_lines, parse_lines, read_landmarks
from facelit.errors import FacelitError

NUMBERS = ["105.49", "115.57", "148.55", "114.41", "118.63", "137.30", "106.02", "160.15", "146.48", "160.52"]
POINTS = np.array(NUMBERS, float).reshape(5, 2)
HEADER = ["image", *(f"{point}_{axis}" for point in ("le", "re", "nose", "ml", "mr") for axis in "xy")]


def write(path: Path, *lines: list[str], separator: str = "\t", end: str = "\n") -> Path:
    path.write_bytes(end.join([separator.join(line) for line in lines] + [""]).encode())
    return path


@pytest.mark.parametrize("separator", ["\t", ",", ", "])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("header", [[], [HEADER]])
def test_tsv_and_csv_with_and_without_a_header(
    tmp_path: Path, separator: str, end: str, header: list[list[str]]
) -> None:
    lines = [*header, ["Ada/1.jpg", *NUMBERS], ["", *[]], ["Ada/2.jpg", *NUMBERS]]
    found = read_landmarks(write(tmp_path / "l", *lines, separator=separator, end=end))
    assert list(found) == ["Ada/1.jpg", "Ada/2.jpg"]
    faces = parse_lines(found["Ada/2.jpg"])
    np.testing.assert_array_equal(faces.landmarks, POINTS.astype(np.float32)[None])
    np.testing.assert_array_equal(faces.boxes, np.array([[105.49, 114.41, 148.55, 160.52]], np.float32))
    assert faces.scores.tolist() == [1]


def test_odd_names(tmp_path: Path) -> None:
    row = ",".join(NUMBERS)
    path = tmp_path / "l.csv"
    path.write_text(f'\ufeff"Lovelace, Ada/1.jpg",{row}\n./b/c.jpg,{row}\nd\\e.jpg,{row}\n', encoding="utf-8")
    assert list(read_landmarks(path)) == ["Lovelace, Ada/1.jpg", "b/c.jpg", "d/e.jpg"]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([["a.jpg", *NUMBERS], ["b.jpg", *NUMBERS[:9]]], r"line 2: 10 fields instead of 11 or 16"),
        ([["a.jpg", *NUMBERS], ["b.jpg", *NUMBERS[:9], "x"]], r"line 2: 'x' is not a number"),
        ([HEADER, ["b.jpg", *NUMBERS[:9], "nan"]], r"line 2: 'nan' is not a number"),
        ([["a.jpg", *NUMBERS[:9], "x"]], r"line 1: 'x' is not a number"),
        ([["a.jpg", *NUMBERS], HEADER], r"line 2: .* is not a number"),
        ([["a.jpg", *NUMBERS], ["a.jpg", *NUMBERS]], r"line 2: a.jpg has an earlier line"),
        ([["a.jpg", *["5"] * 10]], r"line 1: these landmarks are not a face's"),
        ([HEADER], "no landmarks here"),
        ([], "no landmarks here"),
    ],
)
def test_errors_name_the_line(tmp_path: Path, lines: list[list[str]], words: str) -> None:
    with pytest.raises(FacelitError, match=words) as caught:
        read_landmarks(write(tmp_path / "l.tsv", *lines))
    assert str(tmp_path / "l.tsv") in str(caught.value)


def test_an_absent_file(tmp_path: Path) -> None:
    with pytest.raises(FacelitError, match="option landmarks"):
        read_landmarks(tmp_path / "l.tsv")


@pytest.mark.lfw
def test_the_reference_of_lfw(lfw: Path) -> None:
    found = read_landmarks(lfw / "raw_250_landmarks.tsv")
    assert len(found) == 1000
    (landmarks,) = parse_lines(found["AJ_Cook/AJ_Cook_0001.jpg"]).landmarks
    np.testing.assert_array_equal(landmarks, POINTS.astype(np.float32))


def test_faces_come_back_as_they_were_written(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lines = face_lines(
        Faces(
            rng.normal(100, 80, (3, 4)).astype("f4"),
            rng.random(3).astype("f4"),
            rng.normal(100, 80, (3, 5, 2)).astype("f4"),
        )
    )
    path = tmp_path / "l.tsv"
    names = ["b/Zoë \u2028.jpg", "a/one, two.jpg"]
    path.write_text("\n".join([OWN_HEADER, *(f"{names[0]}\t{line}" for line in lines), f"{names[1]}\t{lines[0]}", ""]))
    found = read_landmarks(path)
    assert found == {names[0]: lines, names[1]: lines[:1]}
    assert face_lines(parse_lines(lines)) == lines  # so that crops made from the file are the same
    assert face_lines(parse_lines(())) == ()
