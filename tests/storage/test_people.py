"""Names of people: one rule for when two are the same, and lists, pairs and galleries that follow it."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from facelit.align.landmark_file import read_landmarks
from facelit.data.identity_folder import IdentityFolder
from facelit.data.pairs import PairsFolder
from facelit.errors import FacelitError
from facelit.inference.enrolment import OnBadPhoto, enrol
from facelit.inference.gallery import Gallery
from facelit.storage.images import Crop
from facelit.storage.pairs_file import PairImages, read_pairs
from facelit.storage.people import comparable, read_people, same_people, why_incomparable
from facelit.tools.check import check

JOSE, JOSE_APART = (unicodedata.normalize(form, "José Núñez") for form in ("NFC", "NFD"))
UTF_8_MARK = b"\xef\xbb\xbf"


def tree(root: Path, *names: str) -> Path:
    """A picture under each name, all of them different."""
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        small = np.random.default_rng(number).integers(0, 256, (7, 7, 3), dtype=np.uint8)
        Image.fromarray(small).resize((112, 112)).save(root / name, "PNG")
    return root


def kept(root: Path, listed: bytes | str) -> list[str]:
    """The identities that a list leaves in training."""
    path = root.parent / "list.txt"
    path.write_bytes(listed if isinstance(listed, bytes) else listed.encode())
    return list(IdentityFolder(root, exclude_identities=str(path)).identities)


@pytest.mark.parametrize(
    "other",
    [
        "Adam Sandler",
        "adam_sandler",
        "ADAM  SANDLER",
        " Adam_ Sandler_",
        "\uff21dam Sandler",
    ],  # the last: a full-width A
)
def test_one_person_however_they_are_written(other: str) -> None:
    assert comparable("Adam_Sandler") == comparable(other)
    assert comparable("Adam_Sandler") != comparable(other + "s")


def test_accents_stored_in_one_piece_or_two() -> None:
    assert JOSE != JOSE_APART
    assert comparable(JOSE) == comparable(JOSE_APART)
    assert comparable(JOSE) != comparable("Jose Nunez")
    assert comparable("STRASSE") == comparable("straße")


@pytest.mark.parametrize(
    ("typed", "plain"),
    [
        ("O’Neal", "O'Neal"),
        ("Jean‐Luc", "jean-luc"),  # U+2010
        ("Jean–Luc", "Jean-Luc"),  # an en dash
        ("\u200bAnn\u00a0Lee\u200e", "Ann Lee"),
        ("\ufeffBo\u00adb", "Bob"),
        ("Ann\u3000Lee\u2009", "ann_lee"),
    ],
)
def test_what_word_processors_make_of_names(typed: str, plain: str) -> None:
    assert comparable(typed) == comparable(plain)


@pytest.mark.parametrize(
    "listed",
    [
        *("Ann/\nBo/\n", "./Ann\n./Bo\n", "./Ann/\n./Bo/", "Ann\\\nBo\\\n", "Ann\rBo\r", "Ann\n\u200bBo\u200b"),
        *('"Ann"\r\n"Bo"\r\n', ' "Ann/"\t3\n"Bo/"'),
    ],
)
def test_lists_made_by_ls_find_and_spreadsheets(tmp_path: Path, listed: str) -> None:
    assert kept(tree(tmp_path / "crops", "Ann/1.png", "Bo/1.png", "Cy/1.png", "Di/1.png"), listed) == ["Cy", "Di"]


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16-le", "utf-16-be", "utf-32"])
def test_text_in_another_encoding_is_refused_with_the_way_out(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "list.txt").write_bytes("Ann\nJosé\n".encode(encoding))
    (tmp_path / "plain.txt").write_bytes("Ann\nBo\n".encode("utf-16-le" if encoding == "cp1252" else encoding))
    for name in ("list.txt", "plain.txt"):
        with pytest.raises(FacelitError, match=r"not a text file in UTF-8; .*iconv"):
            read_people(tmp_path / name)


def test_a_list_of_numbers_names_numbers(tmp_path: Path) -> None:
    """The first of them was taken for a count of folds, and the people it hid stayed in training."""
    root = tree(tmp_path / "crops", *(f"{number}/1.png" for number in range(1, 8)))
    assert kept(root, "3\n1\n5\n") == ["2", "4", "6", "7"]
    assert kept(root, "1\n5\n") == ["2", "3", "4", "6", "7"]
    assert kept(root, "2\n1\n5\n1\n6\n") == ["3", "4", "7"]
    (tmp_path / "seven.txt").write_text("0000045\n0000099\n0000100\n")
    assert read_people(tmp_path / "seven.txt") == {"0000045", "0000099", "0000100"}


@pytest.mark.parametrize("listed", ["2\n2\nAnn\t1\nBo\t2\n", "2\nAnn\t1\n", "1\n3\nAnn\nBo\n", "2\n1\nAnn\n2\nBo\n"])
def test_a_damaged_list_in_folds_is_refused(tmp_path: Path, listed: str) -> None:
    (tmp_path / "people.txt").write_text(listed)
    with pytest.raises(FacelitError, match=r"people\.txt: .*promises.*people\.txt"):
        read_people(tmp_path / "people.txt")


def test_numbers_in_folds(tmp_path: Path) -> None:
    (tmp_path / "people.txt").write_text("2\n1\n0000045\t4\n2\n0000099\t1\n17\t3\n")
    assert read_people(tmp_path / "people.txt", [2]) == {"0000099", "17"}


def test_excluded_whatever_the_spelling(tmp_path: Path) -> None:
    root = tree(tmp_path / "crops", "Adam Sandler/1.png", f"{JOSE_APART}/1.png", "Bo/1.png", "Cy/1.png", "Di/1.png")
    assert kept(root, f"adam_sandler\n{JOSE}\n") == ["Bo", "Cy", "Di"]


def test_identities_of_two_folders_with_windows_backslashes(tmp_path: Path) -> None:
    root = tree(tmp_path / "crops", "F0001/MID1/1.png", "F0001/MID2/1.png", "F0002/MID1/1.png", "F3/M/1.png")
    listed = tmp_path / "listed.txt"
    listed.write_text("f0001\\mid1\nF0002/MID1\n")
    source = IdentityFolder(str(root), exclude_identities=str(listed), identity_depth=2)
    assert list(source.identities) == ["F0001/MID2", "F3/M"]


@pytest.mark.parametrize("mark", [UTF_8_MARK, b"\xff\xfe", b"\xfe\xff"])
def test_byte_order_marks(tmp_path: Path, mark: bytes) -> None:
    """The first name is a name, the first number a number, in every text file that people write."""
    encoding = {UTF_8_MARK: "utf-8", b"\xff\xfe": "utf-16-le", b"\xfe\xff": "utf-16-be"}[mark]

    def write(name: str, text: str) -> Path:
        (tmp_path / name).write_bytes(mark + text.encode(encoding))
        return tmp_path / name

    assert read_people(write("names.txt", "Ann\r\nBo\r\n")) == {"Ann", "Bo"}
    assert read_people(write("people.txt", "1\n1\nAnn\t3\n"), [1]) == {"Ann"}
    assert read_pairs(write("pairs.txt", "1\t1\nA\t1\t2\nA\t1\tB\t2\n"))[0].first == ("A", 1)
    numbers = "30,50,80,50,55,70,35,90,75,90"
    assert list(read_landmarks(write("landmarks.csv", f"a.jpg,{numbers}\nb.jpg,{numbers}\n"))) == ["a.jpg", "b.jpg"]


@pytest.mark.parametrize(
    "line",
    [f"{JOSE}/a_1.png", "José_Núñez\\a_1.png", f'"{JOSE_APART}/a_1.png"', "./josé núñez/A_1.PNG"],
    ids=["in one piece", "Windows", "quoted", "case"],
)
def test_images_excluded_whatever_the_spelling(tmp_path: Path, caplog: pytest.LogCaptureFixture, line: str) -> None:
    root = tree(tmp_path / "crops", *(f"{JOSE_APART}/{name}.png" for name in ("a_1", "a_2")), "Bo/b.png", "Bo/B.png")
    (tmp_path / "list.txt").write_text(f"{line}\nBo/b.png\nBo/c.png\n")
    with caplog.at_level("INFO"):
        folder = IdentityFolder(root, exclude_images=str(tmp_path / "list.txt"))
    assert [Path(folder.name(index)).name for index in range(len(folder))] == ["B.png", "a_2.png"]
    assert "leaves out 2 of 4 images; 1 of its 3 names match no image (Bo/c.png)" in caplog.text
    is_exact = line.startswith('"')
    assert ("1 match in another spelling (" in caplog.text) is not is_exact


@pytest.mark.parametrize(
    ("line", "left"),
    [
        ("Bo/b.png", ["B.png", "_b.png", "1.png"]),
        ("BO/_B.png", ["B.png", "b.png", "1.png"]),
        (".\\Ann Lee\\1.png", ["B.png", "_b.png", "b.png"]),
        ("ann_lee_/1.png", ["B.png", "_b.png", "b.png"]),
        ("BO/b.png", None),
    ],
)
def test_an_image_is_left_out_if_it_alone_fits(tmp_path: Path, line: str, left: list[str] | None) -> None:
    """`_b` is not `b`, an exact name is that image alone, and an inexact one that fits two is refused."""
    root = tree(tmp_path / "crops", "Bo/b.png", "Bo/B.png", "Bo/_b.png", "Ann_Lee /1.png", "Cy/c.png")
    (tmp_path / "list.txt").write_text(line + "\n")
    if left is None:
        with pytest.raises(
            FacelitError, match=r"BO/b\.png \(option exclude_images\) may be Bo/B\.png or Bo/b\.png: list"
        ):
            IdentityFolder(root, exclude_images=str(tmp_path / "list.txt"))
        return
    folder = IdentityFolder(root, exclude_images=str(tmp_path / "list.txt"))
    assert sorted(Path(folder.name(index)).name for index in range(len(folder))) == sorted([*left, "c.png"])


def test_names_that_match_nobody_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = tree(tmp_path / "crops", "Ann/1.png", "Bo/1.png", "Cy/1.png")
    with caplog.at_level("INFO"):
        kept(root, "Ann\nZoe\nYan\n")
    assert "leaves out 1 of 3 identities; 2 of its 3 names match nobody (Yan, Zoe)." in caplog.text


def test_pairs_find_images_however_they_are_named(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        *("Ann/Ann_1.jpg", "Bo/Bo_0002.Jpg", "Cy Lee/cy_lee_003.PNG", f"{JOSE_APART}/{JOSE_APART}_0001.png"),
        *("Di/Di_0001.jpg", "Di/Di_1.jpg"),
    )
    images = PairImages(root)
    for key, place in {
        ("Ann", 1): "Ann/Ann_1.jpg",
        ("Bo", 2): "Bo/Bo_0002.Jpg",
        ("Cy_Lee", 3): "Cy Lee/cy_lee_003.PNG",
        (JOSE, 1): f"{JOSE_APART}/{JOSE_APART}_0001.png",
        ("Di", 1): "Di/Di_0001.jpg",
    }.items():
        assert images.find(key) == str(root / place)
    assert images.find(("Ann", 2)) is None
    assert images.find(("Eve", 1)) is None


def test_two_folders_for_one_name(tmp_path: Path) -> None:
    images = PairImages(tree(tmp_path, "ann lee/1.png", "Ann Lee/1.png"))
    with pytest.raises(FacelitError, match="'Ann Lee' and 'ann lee' could both be the 'Ann_Lee'"):
        images.find(("Ann_Lee", 1))


def test_tabs_between_names_with_spaces(tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.txt"
    pairs.write_text("1\t1\nAnn Lee\t1\t2\nAnn Lee\t1\tBo B. Ray\t3\n")
    assert [(pair.first, pair.second) for pair in read_pairs(pairs)] == [
        (("Ann Lee", 1), ("Ann Lee", 2)),
        (("Ann Lee", 1), ("Bo B. Ray", 3)),
    ]
    pairs.write_text("1 1\nAnn Lee 1 2\nAnn Lee 1 Bo 3\n")
    with pytest.raises(FacelitError, match=r"line 2: .*genuine.*spaces in it, separate the fields by tabs"):
        read_pairs(pairs)
    pairs.write_text("1 1\nAnn \u00b2 2\nAnn 1 Bo 3\n")  # a superscript is a digit, and no number
    with pytest.raises(FacelitError, match=r"line 2: .*genuine"):
        read_pairs(pairs)


def test_a_missing_image_is_shown_beside_one_that_is_there(tmp_path: Path) -> None:
    root = tree(tmp_path / "crops", "Ann/ann-1.png")
    (tmp_path / "pairs.txt").write_text("1\t1\nAnn\t1\t2\nAnn\t1\tBo\t1\n")
    with pytest.raises(FacelitError, match=r"3 of its 3 images are absent.*Ann_0001.*That folder has ann-1\.png"):
        PairsFolder(root, tmp_path / "pairs.txt")


def test_a_gallery_has_everybody_once(tmp_path: Path) -> None:
    root = tree(tmp_path, "Ann Lee/1.png", "ann_lee.png", f"{JOSE}.png", f"{JOSE_APART}/1.png")

    def embed(crops: np.ndarray) -> np.ndarray:
        return np.eye(4, dtype=np.float32)[: len(crops)]

    crop: Crop = np.zeros((112, 112, 3), np.uint8)
    gallery = enrol(root, lambda photo: crop, embed, "mean", "error", False, "", False)
    assert sorted(map(comparable, gallery.names)) == ["ann_lee", comparable(JOSE)]


def test_somebody_without_a_photo_is_told(tmp_path: Path) -> None:
    root = tree(tmp_path, "Ann/1.png", "Bo/1.png")
    (root / "Cy").mkdir()
    (root / "Cy" / "film.mp4").write_bytes(b"no photo")
    (root / ".cache").mkdir()

    def enrolled(people: Path | dict[str, list[str]], on_bad_photo: OnBadPhoto) -> Gallery:
        crop: Crop = np.zeros((112, 112, 3), np.uint8)
        return enrol(people, lambda _: crop, lambda crops: np.eye(4, dtype=np.float32)[: len(crops)], "mean",
                     on_bad_photo, False, "", False)  # fmt: skip

    for people in (root, {"Ann": ["1.png"], "Bo": ["1.png"], "Cy": []}):
        with pytest.raises(FacelitError, match=r"1 of the gallery's 3 photos .*Cy: no photo of this person"):
            enrolled(people, "error")
        gallery = enrolled(people, "skip")
        assert gallery.names == ["Ann", "Bo"]
        assert len(gallery.skipped) == 1
    # Of one with photos under another spelling nothing is missing.
    (root / "Cy").rename(root / "ann")
    assert enrolled(root, "error").names == ["Ann", "Bo"]


@pytest.mark.parametrize(
    ("identities", "names", "reason"),
    [
        (["pins_Ben Affleck", "pins_Cy Lee"], ["Ben_Affleck"], "the training set's names all start with 'pins_'"),
        (["Ben Affleck", "Cy"], ["lfw-Ben", "lfw-Cy"], "its names all start with 'lfw-'"),
        (["0000045", "0000099"], ["Ben_Affleck"], "the training set's identities are numbers or codes"),
        (["n000002", "n000003"], ["Ben_Affleck"], "numbers or codes"),
        (["m.0b4x2_", "m.01xy"], ["Ben_Affleck"], "numbers or codes"),
        (["Ben_Affleck", "Cy"], ["001", "002"], "its identities are numbers or codes"),
        (["Ben_Affleck"], [], "no names"),
    ],
)
def test_names_that_cannot_be_compared(identities: list[str], names: list[str], reason: str) -> None:
    assert reason in why_incomparable(identities, names)


def test_names_that_can_be_compared() -> None:
    assert not why_incomparable(["Ben_Affleck", "Ben_Stiller"], ["Ben_Kingsley", "Ann"])
    assert not why_incomparable(["Ann", "Bo2"], ["Cy"])


def test_codes_are_nobodys_second_name() -> None:
    names = ["m.01_", "m.01", "n_7", "N 7", "12", "1_2", "1 2", "___", " ", "Bo", "ann", "Ann ", "BO"]
    assert same_people(names) == [[9, 12], [10, 11]]


def test_identities_with_one_persons_name_are_told_before_training(
    tmp_path: Path, recwarn: pytest.WarningsRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    root = tree(
        tmp_path / "crops", *(f"{name}/1.png" for name in (JOSE, JOSE_APART, "Ann", "ann", "Bo", "m.01", "m.01_"))
    )
    check("crops", report="r.json")
    findings = {one["key"]: one for one in json.loads((tmp_path / "r.json").read_text())["findings"]}
    assert findings["same_name"]["images"] == 4
    assert [one["identities"] for one in findings["same_name"]["items"]] == [["Ann", "ann"], sorted([JOSE, JOSE_APART])]
    IdentityFolder(root).prepare()
    (warning,) = [str(one.message) for one in recwarn]
    assert f"2 people have several identities, by their names (Ann and ann, {JOSE_APART} and {JOSE})" in warning
    (tmp_path / "merged.txt").write_text(f"Ann\n{JOSE}\n")
    IdentityFolder(root, exclude_identities=str(tmp_path / "merged.txt")).prepare()
    assert len(recwarn) == 1


def test_a_zero_that_means_nothing_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    tree(tmp_path / "pins", "pins_Ben Affleck/1.png", "pins_Ben Affleck/2.png", "pins_Cy/1.png", "pins_Cy/2.png")
    (tmp_path / "lfw.txt").write_text("Ben_Affleck\nAnn_Lee\n")
    check("pins", against="lfw.txt", report="r.json")
    printed = " ".join(capsys.readouterr().out.split())
    assert "This 0 means nothing" in printed
    assert "pins_" in printed
    findings = {one["key"]: one for one in json.loads((tmp_path / "r.json").read_text())["findings"]}
    assert "This 0 means nothing" in findings["in_verification_by_name"]["explanation"]
    (tmp_path / "pins").rename(tmp_path / "plain")
    for name in ("Ben Affleck", "Cy"):
        (tmp_path / "plain" / f"pins_{name}").rename(tmp_path / "plain" / name)
    check("plain", against="lfw.txt", report="r.json")
    assert "means nothing" not in capsys.readouterr().out
