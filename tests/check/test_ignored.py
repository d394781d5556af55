"""What in a folder is not a part of a training set: told, and told apart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from facelit.errors import FacelitError
from facelit.storage.open import open_store
from facelit.tools.check import check
from planted_crops import clean_tree, face, items, save


def with_ignored(root: Path) -> Path:
    """A clean tree with everything in it that is not a part of a training set."""
    clean_tree(root)
    for name in ("a.HEIC", "b.jxl", "notes.txt", "bare"):
        (root / "person_1" / name).write_bytes(b"x")
    (root / "labels.csv").write_text("")
    for number in range(3):
        save(face(50 + number), root / "person_2" / "session" / ("deep" if number else ".") / f"{number}.jpg")
    (root / "person_2" / "meta").mkdir()
    (root / "nobody").mkdir()
    save(face(60), root / "nested" / "session" / "0.jpg")
    for hidden in (".DS_Store", "person_0/._0.jpg", ".cache/x.txt", "person_0/.thumbs/0.jpg"):
        (root / hidden).parent.mkdir(exist_ok=True)
        (root / hidden).write_bytes(b"x")
    return root


def test_what_is_ignored_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = with_ignored(tmp_path / "data")
    assert check(str(root)) == 0
    assert json.loads(Path("check-data.json").read_text())["data"]["images"] == 9
    assert items("check-data.json")["ignored"] == [
        {"folder": "nested/session", "images": 1},
        {"folder": "person_2/session", "images": 3},
        {"identity": "nested", "images": 0},
        {"identity": "nobody", "images": 0},
        {"file": "labels.csv"},
        {"file": "person_1/a.HEIC"},
        {"file": "person_1/b.jxl"},
        {"file": "person_1/bare"},
        {"file": "person_1/notes.txt"},
    ]
    (found,) = [one for one in json.loads(Path("check-data.json").read_text())["findings"] if one["key"] == "ignored"]
    # Four in subfolders, a.HEIC and b.jxl; person_1, person_2, nobody and nested.
    assert (found["count"], found["images"], found["identities"]) == (9, 6, 4)
    few = items("check-data.json")["few_images"]
    assert few == [{"identity": "nested", "images": 0}, {"identity": "nobody", "images": 0}]
    printed = " ".join(capsys.readouterr().out.split())
    assert (
        "Ignored: 5 file(s) of other kinds (1 .csv, 1 .heic, 1 .jxl, 1 without a suffix, 1 .txt), 4 image(s) in 2"
        " subfolder(s) of identities, 2 identities without an image." in printed
    )


def test_what_is_listed_is_not_ignored(tmp_path: Path) -> None:
    """`FolderStore` lists whatever has an image's name; together the two account for everything that is not hidden."""
    root = with_ignored(tmp_path / "data")
    (root / "person_0" / "folder.jpg").mkdir()
    (root / "mr.jpg").mkdir()
    check(str(root))
    store = open_store(root)
    told = {store.name(row) for row in range(len(store))}
    for item in items("check-data.json")["ignored"]:
        told.add(item.get("file") or item.get("folder") or item["identity"])
    places = [*root.iterdir(), *root.glob("*/*")]
    visible = {path for path in places if not any(part.startswith(".") for part in path.relative_to(root).parts)}
    silent = {str(path.relative_to(root)) for path in visible} - told
    assert silent == {"person_0", "person_1", "person_2", "person_2/meta"}


@pytest.mark.parametrize("form", ["pack", "recordio"])
def test_other_forms_of_a_set_ignore_nothing(tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]) -> None:
    if form == "pack":
        from facelit.storage.packing import pack

        pack(open_store(clean_tree(tmp_path / "tree")), tmp_path / "data", 1, None)
    else:
        from facelit.storage.recordio import write_recordio

        write_recordio(open_store(clean_tree(tmp_path / "tree")), tmp_path / "data")
    (tmp_path / "data" / "notes.txt").write_text("")
    assert check("data") == 0
    found = items("check-data.json")
    assert not any(found.values())
    assert "Ignored" not in capsys.readouterr().out
    assert check("tree", report="tree.json", sheet="tree.png") == 0
    assert [*found, "ignored"] == list(items("tree.json"))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["nest/train/a/0.jpg"], r"Did you mean nest/train\?$"),
        (
            ["nest/train/a/0.jpg", "nest/test/b/0.jpg", "nest/doc/x/y.txt"],
            r"Did you mean nest/test or nest/train\? If .*--identity_depth 2\.$",
        ),
        (["nest/faces/train.rec"], r"Did you mean nest/faces\?$"),
        (
            [f"nest/{name}/session/0.jpg" for name in "abcde"],
            r"one folder too deep, such as nest/a/session/0\.jpg\. If .*--identity_depth 2\.$",
        ),
        (
            ["nest/a/0.heic", "nest/a/1.heic"],
            r"Ignored there: 2 file\(s\) of other kinds \(2 \.heic\), 1 identity without",
        ),
        (["nest/.hidden/a/0.jpg"], r"\.webp or other images\.$"),
    ],
)
def test_where_nothing_is_found_it_says_what_there_is(tmp_path: Path, files: list[str], message: str) -> None:
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(b"x")
    with pytest.raises(FacelitError, match=f"nest: no images here.*{message}") as told:
        check("nest")
    assert "\n" not in str(told.value)
