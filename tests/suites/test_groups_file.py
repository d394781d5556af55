"""Who is in which group: names as people write them, and tables that are none."""

from __future__ import annotations

from pathlib import Path

import pytest

from facelit.errors import FacelitError
from facelit.suites.groups_file import GroupsFile


def written(tmp_path: Path, text: str, name: str = "groups.tsv") -> GroupsFile:
    (tmp_path / name).write_bytes(text.encode())
    return GroupsFile(tmp_path / name)


def test_by_image(tmp_path: Path) -> None:
    text = "\ufeffmask\tImage\tskin type\r\nyes\tAnn/Ann_0001.jpg\t3\r\n\tAnn\\Ann_0002\t4\r\nno\t./zoë 1.b/x.PNG\t\r\n\r\n"
    file = written(tmp_path, text)
    assert file.columns == ["mask", "skin type"]
    names = ["Ann/Ann_0001.jpg", "ann/ann_0002.webp", "Zoe\u0308_1.b/x.jpg", "Ann/Ann_0003.jpg", "lfw.bin[3]"]
    found = file.of_images(names)
    assert found.values == {"mask": ["yes", "", "no", "", ""], "skin type": ["3", "4", "", "", ""]}
    assert found.missing == ["Ann/Ann_0003.jpg", "lfw.bin[3]"]


def test_by_identity(tmp_path: Path) -> None:
    """The folder of an image, or one above it: CFP's `001/frontal/01.jpg`."""
    file = written(tmp_path, 'identity,sex,band\nAnn Lee,f,"20-29, or so"\n001,m,\n002/profile,f,x\n', "groups.csv")
    found = file.of_images(
        ["Ann_Lee/Ann_Lee_0001.jpg", "001/frontal/01.jpg", "002/profile/1.jpg", "002/frontal/1.jpg", "a.jpg"]
    )
    assert found.values["sex"] == ["f", "m", "f", "", ""]
    assert found.values["band"] == ["20-29, or so", "", "x", "", ""]
    assert found.missing == ["002/frontal/1.jpg", "a.jpg"]


def test_the_same_row_twice_is_no_contradiction(tmp_path: Path) -> None:
    assert written(tmp_path, "identity\tsex\na\tf\nA\tf\n").of_images(["a/1.jpg"]).values == {"sex": ["f"]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: expected a header with one column image or identity, found ''"),
        ("a/1.jpg\tf\n", "line 1: expected a header"),
        ("image\tidentity\tsex\n", "line 1: expected a header with one column"),
        ("image\n", "line 1: beside image, expected columns"),
        ("image\tsex\tsex\n", "line 1: beside image, expected columns with different names"),
        ("image\tsex\n", "nothing below the header"),
        ("image\tsex\na\tf\nb\n", "line 3: 1 fields, but the header has 2"),
        ("identity\tsex\na b\tf\nA_B\tm\n", "line 3: A_B is there twice, in different groups"),
        ('image\tsex\n"a\tf\n', "this is not a table"),
        ("image\tage\n" + "".join(f"{n}\t{n}\n" for n in range(101)), "column age has 101 different values"),
    ],
)
def test_what_is_no_groups_file(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(FacelitError, match=r"groups\.tsv.*--groups") as caught:
        written(tmp_path, text)
    assert message in str(caught.value)
