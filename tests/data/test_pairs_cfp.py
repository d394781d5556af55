"""CFP in its authors' layout, against the pairs written out by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from facelit.data import PairsCFP
from facelit.errors import FacelitError


@pytest.fixture
def cfp(tmp_path: Path) -> Path:
    """Four people with two frontal images and one profile; two splits."""
    frontal, profile = [], []
    for person in range(1, 5):
        for pose, count, listed in (("frontal", 2, frontal), ("profile", 1, profile)):
            for number in range(1, count + 1):
                path = tmp_path / "crops" / f"{person:03d}" / pose / f"{number:02d}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (112, 112), (person * 50, number * 50, len(pose))).save(path)
                listed.append(f"{len(listed) + 1} ../Data/Images/{person:03d}/{pose}/{number:02d}.jpg")
    protocol = tmp_path / "Protocol"
    for name, text in {
        "Pair_list_F.txt": "\r\n".join(frontal),
        "Pair_list_P.txt": "\n".join(profile) + "\n",
        "Split/FF/01/same.txt": "1,2\n3,4\n",
        "Split/FF/01/diff.txt": "1,3\n",
        "Split/FF/02/same.txt": "5,6\n",
        "Split/FF/02/diff.txt": "5,7\n6,8\n",
        "Split/FP/01/same.txt": "1,1\n4,2\n",
        "Split/FP/01/diff.txt": "2,2\n",
        "Split/FP/02/same.txt": "8,4\n",
        "Split/FP/02/diff.txt": "7,3\n",
    }.items():
        (protocol / name).parent.mkdir(parents=True, exist_ok=True)
        (protocol / name).write_text(text)
    return tmp_path


def pairs_of(source: PairsCFP) -> list[tuple[str, str, bool, int]]:
    names = ["/".join(Path(name).parts[-3:]) for name in source.names]
    rows = zip(source.first, source.second, source.is_same, source.folds, strict=True)
    return [(names[first], names[second], bool(same), int(fold)) for first, second, same, fold in rows]


def test_both_kinds_of_pairs(cfp: Path) -> None:
    assert pairs_of(PairsCFP(cfp / "crops", cfp / "Protocol", "FF")) == [
        ("001/frontal/01.jpg", "001/frontal/02.jpg", True, 1),
        ("002/frontal/01.jpg", "002/frontal/02.jpg", True, 1),
        ("001/frontal/01.jpg", "002/frontal/01.jpg", False, 1),
        ("003/frontal/01.jpg", "003/frontal/02.jpg", True, 2),
        ("003/frontal/01.jpg", "004/frontal/01.jpg", False, 2),
        ("003/frontal/02.jpg", "004/frontal/02.jpg", False, 2),
    ]
    source = PairsCFP(cfp / "crops", cfp / "Protocol")
    assert pairs_of(source) == [
        ("001/frontal/01.jpg", "001/profile/01.jpg", True, 1),
        ("002/frontal/02.jpg", "002/profile/01.jpg", True, 1),
        ("001/frontal/02.jpg", "002/profile/01.jpg", False, 1),
        ("004/frontal/02.jpg", "004/profile/01.jpg", True, 2),
        ("004/frontal/01.jpg", "003/profile/01.jpg", False, 2),
    ]
    assert source.image(0).shape == (112, 112, 3)
    assert np.array_equal(source.image(0), np.asarray(Image.open(source.names[0])))


def test_folders_as_others_leave_them(cfp: Path) -> None:
    """Poses in capitals, a Mac's folder among the splits."""
    for folder in sorted((cfp / "crops").glob("*/*")):
        folder.rename(folder.with_name(folder.name.capitalize()))
    (cfp / "Protocol" / "Split" / "FP" / "__MACOSX").mkdir()
    assert len(PairsCFP(cfp / "crops", cfp / "Protocol").is_same) == 5


def test_an_image_paired_with_itself(cfp: Path) -> None:
    (cfp / "Protocol" / "Split" / "FF" / "02" / "same.txt").write_text("5,6\n7,7\n")
    with pytest.raises(FacelitError, match="pairs 004/frontal/01 with itself"):
        PairsCFP(cfp / "crops", cfp / "Protocol", "FF")
    PairsCFP(cfp / "crops", cfp / "Protocol", "FP")  # equal numbers there are two images


def test_missing_images(cfp: Path) -> None:
    (cfp / "crops" / "001" / "profile" / "01.jpg").rename(cfp / "crops" / "001" / "profile" / "01.png")
    assert len(PairsCFP(cfp / "crops", cfp / "Protocol").is_same) == 5  # another suffix is no other image
    (cfp / "crops" / "001" / "profile" / "01.png").unlink()
    with pytest.raises(FacelitError, match=r"1 of its 9 images are absent.*001/profile/01.*allow_missing"):
        PairsCFP(cfp / "crops", cfp / "Protocol")
    source = PairsCFP(cfp / "crops", cfp / "Protocol", allow_missing=True)
    assert (len(source.is_same), source.num_missing_pairs) == (4, 1)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("Pair_list_F.txt", "1 frontal 01", r"Pair_list_F\.txt, line 1: expected"),
        ("Split/FP/01/same.txt", "1,1\n1;2", r"same\.txt, line 2: expected two numbers"),
        ("Split/FP/01/same.txt", "1,99", "1 of its pairs name images that its lists do not have"),
        ("Split/FP/02/diff.txt", "", "split 2 of FP has no genuine or no impostor"),
    ],
)
def test_a_malformed_protocol(cfp: Path, name: str, text: str, message: str) -> None:
    (cfp / "Protocol" / name).write_text(text)
    with pytest.raises(FacelitError, match=message):
        PairsCFP(cfp / "crops", cfp / "Protocol")


def test_what_is_not_there(cfp: Path) -> None:
    (cfp / "Protocol" / "Split" / "FP").rename(cfp / "Protocol" / "Split" / "other")
    with pytest.raises(FacelitError, match="no splits"):
        PairsCFP(cfp / "crops", cfp / "Protocol")
    with pytest.raises(FacelitError, match="list of images not found"):
        PairsCFP(cfp / "crops", cfp / "crops")
    with pytest.raises(FacelitError, match="kind=PP"):
        PairsCFP(cfp / "crops", cfp / "Protocol", "PP")  # type: ignore[arg-type]
