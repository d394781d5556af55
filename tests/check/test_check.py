"""`facelit check` finds what was planted, and nothing else."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from facelit.align.template import share_beyond, warp
from facelit.check import scan as scan_module
from facelit.check.findings import Finding, Item, equal_groups, find_all
from facelit.check.report import write_report
from facelit.check.scan import BLACK, FACTS, FORMATS, Scan, black_border, scan_images
from facelit.check.verification_set import VerificationSet
from facelit.errors import FacelitError
from facelit.pictures.contact_sheet import TILES, choose, contact_sheet, in_rows
from facelit.storage import images
from facelit.storage.images import BadImageError, read_crop, read_image
from facelit.storage.open import open_store
from facelit.storage.processes import run_in_processes
from facelit.tools.check import check

KEYS = [
    "unreadable",
    "wrong_size",
    "grey",
    "black_border",
    "duplicates_within",
    "duplicates_across",
    "few_images",
]
KEYS_OF_FOLDER = [*KEYS, "ignored"]
KEYS_OF_FOLDER_WITH_SET = [*KEYS, "in_verification_by_name", "in_verification_by_image", "ignored"]


def face(seed: int, size: tuple[int, int] = (112, 112)) -> Image.Image:
    """Coloured blobs that no other seed has; `size` is (width, height)."""
    small = np.random.default_rng(seed).integers(0, 256, (7, 7, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def save(image: Image.Image, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path


def clean_tree(root: Path, people: int = 3, images: int = 3) -> Path:
    """JPEG, PNG and WebP files of distinct pixels."""
    for number in range(people * images):
        person, image = divmod(number, images)
        suffix = ("jpg", "png", "webp")[number % 3]
        save(face(number), root / f"person_{person}" / f"{image}.{suffix}")
    return root


def plant(root: Path, verification: Path) -> None:
    """One of every defect, beside clean images."""
    clean_tree(root)
    for name in ("Ada_Lovelace", "Alan_Turing"):
        for number in (1, 2):
            image = face(1000 + number + 10 * len(name))
            save(image, verification / name / f"{name}_{number:04d}.jpg")
    (root / "person_0" / "text.jpg").write_text("this is no image\n")
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(5).integers(0, 256, (112, 112, 3), dtype=np.uint8)).save(whole, "jpeg")
    (root / "person_0" / "cut.jpg").write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    (root / "person_1" / "empty.png").write_bytes(b"")
    save(face(100, (96, 128)), root / "person_1" / "wide.jpg")
    save(face(101).convert("L"), root / "person_1" / "grey.jpg")
    save(face(102).convert("L").convert("RGB"), root / "person_2" / "grey.png")
    shutil.copy(root / "person_2" / "0.jpg", root / "person_2" / "copy.jpg")
    shutil.copy(root / "person_0" / "1.png", root / "person_1" / "stray.png")
    save(Image.open(root / "person_0" / "0.jpg"), root / "person_2" / "reencoded.png")
    save(face(103), root / "lonely" / "0.jpg")
    for number in (104, 105):
        save(face(number), root / "ada lovelace" / f"{number}.jpg")
    save(face(106), root / "someone_else" / "0.jpg")
    shutil.copy(verification / "Alan_Turing" / "Alan_Turing_0002.jpg", root / "someone_else" / "1.jpg")


@pytest.fixture(autouse=True)
def _in_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def planted(tmp_path: Path) -> tuple[Path, Path]:
    root, verification = tmp_path / "faces", tmp_path / "verification"
    plant(root, verification)
    return root, verification


def items(report: str | Path) -> dict[str, list[dict[str, Any]]]:
    findings = json.loads(Path(report).read_text())["findings"]
    return {finding["key"]: finding["items"] for finding in findings}


def test_every_planted_defect_is_found_and_nothing_else(planted: tuple[Path, Path], capsys) -> None:
    root, verification = planted
    assert check(str(root), against=str(verification)) == 1
    found = items("check-faces.json")
    assert list(found) == KEYS_OF_FOLDER_WITH_SET
    reasons = {item["image"]: item["reason"] for item in found["unreadable"]}
    assert sorted(reasons) == ["person_0/cut.jpg", "person_0/text.jpg", "person_1/empty.png"]
    assert "truncated" in reasons["person_0/cut.jpg"]
    assert "empty" in reasons["person_1/empty.png"]
    assert found["wrong_size"] == [{"image": "person_1/wide.jpg", "width": 96, "height": 128}]
    assert found["grey"] == [{"image": "person_1/grey.jpg"}, {"image": "person_2/grey.png"}]
    assert found["duplicates_within"] == [
        {"images": ["person_2/0.jpg", "person_2/copy.jpg"], "identities": ["person_2"]}
    ]
    assert found["duplicates_across"] == [
        {"images": ["person_0/0.jpg", "person_2/reencoded.png"], "identities": ["person_0", "person_2"]},
        {"images": ["person_0/1.png", "person_1/stray.png"], "identities": ["person_0", "person_1"]},
    ]
    assert found["few_images"] == [{"identity": "lonely", "images": 1}]
    assert found["in_verification_by_name"] == [
        {
            "identity": "ada lovelace",
            "images": 2,
            "verification": [{"set": str(verification), "name": "Ada_Lovelace"}],
        }
    ]
    assert found["in_verification_by_image"] == [
        {
            "image": "someone_else/1.jpg",
            "verification": [str(verification / "Alan_Turing" / "Alan_Turing_0002.jpg")],
        }
    ]
    printed = " ".join(capsys.readouterr().out.split())
    for title in ("Unreadable 3 2", "Wrong size 1 1", "Grey 2 2", "Too few images 1 1", "check-faces.json"):
        assert title in printed


def test_report_says_what_was_scanned(planted: tuple[Path, Path]) -> None:
    root, verification = planted
    check(str(root), against=[str(verification)], min_images=3, report="out.json", sheet="out.png")
    report = json.loads(Path("out.json").read_text())
    assert list(report) == ["format", "version", "facelit", "options", "data", "against", "findings"]
    assert (report["format"], report["version"], report["options"]) == ("facelit-check", 1, {"min_images": 3})
    files = [path for path in root.rglob("*") if path.is_file() and not path.name.startswith(".")]
    readable = [path for path in files if path.name not in ("text.jpg", "cut.jpg", "empty.png")]
    data = report["data"]
    assert data["path"] == str(root)
    assert data["fingerprint"] == open_store(root).fingerprint()
    assert (data["images"], data["identities"]) == (len(files), 6)
    assert data["bytes"] == sum(path.stat().st_size for path in files)
    assert data["formats"] == {
        name: sum(path.suffix == suffix for path in readable)
        for name, suffix in (("JPEG", ".jpg"), ("PNG", ".png"), ("WebP", ".webp"))
    }
    counts = sorted(len(list(folder.iterdir())) for folder in root.iterdir() if folder.is_dir())
    assert data["images_per_identity"] == {"min": counts[0], "median": (counts[2] + counts[3]) / 2, "max": counts[-1]}
    assert report["against"] == [{"path": str(verification), "people": 2, "images": 4, "unreadable": 0}]
    for finding in report["findings"]:
        assert list(finding) == ["key", "explanation", "count", "images", "identities", "items"]
        assert finding["count"] == len(finding["items"])
    by_key = {finding["key"]: finding for finding in report["findings"]}
    assert (by_key["duplicates_across"]["images"], by_key["duplicates_across"]["identities"]) == (4, 3)
    assert [item["identity"] for item in by_key["few_images"]["items"]] == ["ada lovelace", "lonely", "someone_else"]
    assert sorted(path.name for path in Path().iterdir()) == ["faces", "out.json", "out.png", "verification"]


def test_a_clean_tree_has_no_findings(tmp_path: Path, capsys) -> None:
    assert check(str(clean_tree(tmp_path / "clean"))) == 0
    assert items("check-clean.json") == {key: [] for key in KEYS_OF_FOLDER}
    assert "Not compared with a verification set" in capsys.readouterr().out
    with Image.open("check-clean.png") as sheet:
        sheet.load()


def test_grey_few_and_equal_images_do_not_stop_training(tmp_path: Path) -> None:
    root = clean_tree(tmp_path / "data")
    save(face(9).convert("L"), root / "one" / "0.jpg")
    shutil.copy(root / "person_0" / "0.jpg", root / "person_1" / "copy.jpg")
    assert check(str(root)) == 0
    save(face(10, (113, 112)), root / "one" / "1.jpg")
    assert check(str(root)) == 1


def test_people_of_lists_and_pairs_files(planted: tuple[Path, Path], tmp_path: Path) -> None:
    root, verification = planted
    names, pairs = tmp_path / "people.txt", tmp_path / "pairs.txt"
    names.write_text("ADA LOVELACE\nNobody Else\n")
    pairs.write_text("1\t1\nAlan_Turing\t1\t2\nAlan_Turing\t1\tlonely\t2\n")
    check(str(root), against=str(names), report="r.json")
    assert [item["identity"] for item in items("r.json")["in_verification_by_name"]] == ["ada lovelace"]
    assert items("r.json")["in_verification_by_image"] == []
    check(str(root), pairs=str(pairs), report="r.json")
    assert [item["identity"] for item in items("r.json")["in_verification_by_name"]] == ["lonely"]
    # Of the folder only the people in the pairs file count: not Ada Lovelace.
    check(str(root), against=str(verification), pairs=str(pairs), report="r.json")
    assert items("r.json")["in_verification_by_name"] == []
    assert len(items("r.json")["in_verification_by_image"]) == 1
    pairs.write_text("1\t1\nAda_Lovelace\t1\t2\nAda_Lovelace\t1\tlonely\t2\n")
    check(str(root), against=str(verification), pairs=str(pairs), report="r.json")
    assert len(items("r.json")["in_verification_by_name"]) == 1
    assert items("r.json")["in_verification_by_image"] == []


def test_images_of_a_bin(planted: tuple[Path, Path], tmp_path: Path) -> None:
    pytest.importorskip("facelit.storage.pairs_bin")
    import pickle

    root, verification = planted
    images = [path.read_bytes() for path in sorted(verification.rglob("*.jpg"))]
    (tmp_path / "lfw.bin").write_bytes(pickle.dumps((images, [True, False])))
    check(str(root), against=str(tmp_path / "lfw.bin"), report="r.json")
    found = items("r.json")
    assert [item["image"] for item in found["in_verification_by_image"]] == ["someone_else/1.jpg"]
    assert found["in_verification_by_name"] == []


def test_broken_verification_images_are_told(planted: tuple[Path, Path], capsys) -> None:
    root, verification = planted
    (verification / "Ada_Lovelace" / "Ada_Lovelace_0001.jpg").write_bytes(b"")
    check(str(root), against=str(verification), report="r.json")
    assert json.loads(Path("r.json").read_text())["against"][0]["unreadable"] == 1
    assert "1 of them cannot be read" in " ".join(capsys.readouterr().out.split())


def damaged(kind: str) -> bytes:
    buffer = io.BytesIO()
    size = (96, 128) if "wide" in kind else (112, 112)
    mode = {"grey": "L", "cmyk": "CMYK"}.get(kind.split("_")[0], "RGB")
    suffix = "png" if "png" in kind else "webp" if "webp" in kind else "jpeg"
    face(1, size).convert(mode).save(buffer, suffix, **({"progressive": True} if "progressive" in kind else {}))
    data = buffer.getvalue()
    if "cut" in kind:
        return data[: int(len(data) * 0.6)]
    if "tail" in kind:
        return data[:-2]  # no end-of-image mark
    if "flipped" in kind:
        return data[:400] + bytes(255 - value for value in data[400:440]) + data[440:]
    return data


@pytest.mark.parametrize("shape", ["rgb", "grey", "cmyk", "progressive", "png", "webp", "wide", "wide_png"])
@pytest.mark.parametrize("damage", ["whole", "cut", "tail", "flipped"])
def test_unreadable_is_what_a_training_run_would_refuse(tmp_path: Path, shape: str, damage: str) -> None:
    """The oracle is `read_crop`, with resizing, as sizes are another finding."""
    path = tmp_path / "data" / "a" / "x.jpg"
    path.parent.mkdir(parents=True)
    path.write_bytes(damaged(f"{shape}_{damage}"))
    scan = scan_images(open_store(tmp_path / "data"))
    refusal, crop = None, None
    try:
        crop = read_crop(path, resize=True)
    except BadImageError as error:
        refusal = error.reason
    assert scan.reasons == ({} if refusal is None else {0: refusal})
    assert scan.is_readable[0] == (refusal is None)
    if damage == "cut":
        assert refusal is not None
    if damage == "whole":
        assert (scan.facts["width"][0], scan.facts["height"][0]) == ((96, 128) if "wide" in shape else (112, 112))
    if crop is not None and "wide" not in shape:
        np.testing.assert_array_equal(read_image(path.read_bytes(), ""), crop)


def test_bombs_and_errors_that_no_one_expects_are_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = clean_tree(tmp_path / "data", 1, 2)
    Image.new("1", (10_000, 10_000)).save(root / "person_0" / "bomb.png")
    scan = scan_images(open_store(root))
    assert scan.is_readable.tolist() == [True, True, False]
    assert "decompression bomb" in scan.reasons[2]

    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("a decoder's own mistake")

    monkeypatch.setattr(images.simplejpeg, "decode_jpeg_header", fails)
    monkeypatch.setattr(Image, "open", fails)
    scan = scan_images(open_store(root))
    assert not scan.is_readable.any()
    assert "a decoder's own mistake" in scan.reasons[0]


def test_facts_against_pillow(planted: tuple[Path, Path]) -> None:
    """Pixels are equal where digests are; grey is where three channels are equal; all by Pillow, one file at a time."""
    store = open_store(planted[0])
    scan = scan_images(store)
    pixels = []
    for row in range(len(store)):
        if scan.is_readable[row]:
            with Image.open(store.place(row)) as image:
                rgb = image.convert("RGB")
                pixels.append((rgb.size, rgb.tobytes()))
                red, green, blue = (band.tobytes() for band in rgb.split())
                facts = scan.facts[row]
                assert facts["is_grey"] == (red == green == blue)
                assert (facts["width"], facts["height"]) == rgb.size
                assert FORMATS[facts["format"]] == {"JPEG": "JPEG", "PNG": "PNG", "WEBP": "WebP"}[str(image.format)]
    digests = [tuple(digest) for digest in scan.facts["digest"][scan.is_readable].tolist()]
    for one, digest in zip(pixels, digests, strict=True):
        assert [other == one for other in pixels] == [other == digest for other in digests]


@pytest.mark.parametrize("channel", [0, 1, 2])
def test_one_coloured_pixel_is_not_grey(tmp_path: Path, channel: int) -> None:
    pixels = np.array(face(0).convert("L").convert("RGB"))
    save(Image.fromarray(pixels), tmp_path / "data" / "a" / "grey.png")
    pixels[3, 5, channel] ^= 1
    save(Image.fromarray(pixels), tmp_path / "data" / "a" / "tinted.png")
    assert scan_images(open_store(tmp_path / "data")).facts["is_grey"].tolist() == [True, False]


def bright(seed: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(40, 256, (112, 112, 3), dtype=np.uint8)


@pytest.mark.parametrize("shift", [(0, 0), (40, 0), (-30, 25), (60, -60)])
@pytest.mark.parametrize("angle", [0, 0.4, -0.9])
def test_a_black_border_is_what_lies_beyond_the_photo(shift: tuple[int, int], angle: float) -> None:
    photo = np.asarray(Image.fromarray(bright(0)[:6, :6]).resize((112, 112), Image.Resampling.BILINEAR))
    cos, sin = np.cos(angle), np.sin(angle)
    centre = np.array([55.5, 55.5])
    turn = np.array([[cos, -sin], [sin, cos]])
    matrix = np.column_stack([turn, centre - turn @ centre + shift])
    crop = warp(photo, matrix)
    beyond = share_beyond((112, 112), matrix)
    assert black_border(crop).mean() == pytest.approx(beyond, abs=0.02)
    jpeg = io.BytesIO()
    Image.fromarray(crop).save(jpeg, "jpeg", quality=85)
    with Image.open(jpeg) as image:
        assert black_border(np.asarray(image.convert("RGB"))).mean() == pytest.approx(beyond, abs=0.04)


def test_what_is_black_but_reaches_no_edge_straight_is_no_border() -> None:
    pixels = bright(1)
    pixels[20:90, 20:90] = 0
    assert not black_border(pixels).any()
    pixels[:, 30] = BLACK  # a line from edge to edge, which touches the square
    assert np.argwhere(black_border(pixels)).tolist() == [[row, 30] for row in range(112)]
    pixels[50, :, 1] = np.minimum(pixels[50, :, 1], BLACK)  # one channel is not black
    assert black_border(pixels).sum() == 112
    assert black_border(np.zeros((3, 5, 3), np.uint8)).all()


def test_crops_that_end_in_black_are_listed_and_many_are_warned_of(tmp_path: Path, capsys) -> None:
    root = tmp_path / "data"
    for number in range(11):
        pixels = bright(number)
        pixels[: 28 if number == 0 else 27] = 0  # 25 % of one crop, 24 % of the others
        save(Image.fromarray(pixels), root / f"person_{number % 2}" / f"{number:02d}.png")
    assert check(str(root), report="r.json") == 0
    assert items("r.json")["black_border"] == [{"image": "person_0/00.png", "black_percent": 25}]
    out = capsys.readouterr().out
    assert "person_0/00.png: 25 % black" in out
    assert "--border replicate" not in out  # 1 in 11
    (root / "person_1" / "09.png").unlink()
    (root / "person_0" / "04.png").write_bytes(b"")  # not among those counted
    assert check(str(root), report="r.json") == 1
    assert "11 % of the images are black by a quarter or more" in capsys.readouterr().out
    assert [image["image"] for image in items("r.json")["black_border"]] == ["person_0/00.png"]


def test_only_readable_images_count(tmp_path: Path) -> None:
    root = clean_tree(tmp_path / "data", images=2)
    (root / "person_1" / "0.webp").write_bytes(b"no image")
    (root / "person_2" / "more.png").write_bytes(b"no image")
    check(str(root), report="r.json")
    assert items("r.json")["few_images"] == [{"identity": "person_1", "images": 1}]


def test_half_a_digest_is_not_enough(tmp_path: Path) -> None:
    """Digests are looked up by their first half first."""
    store = open_store(clean_tree(tmp_path / "data", 1))
    scan = scan_images(store)
    facts = scan.facts.copy()
    facts["digest"][1, 1] ^= 1
    same = VerificationSet("other", [], store, np.arange(3), Scan(facts, {}))
    (found,) = [one for one in find_all(store, scan, [same], 1) if one.key == "in_verification_by_image"]
    assert [item.entry["image"] for item in found.items()] == [store.name(0), store.name(2)]


def test_equal_pixels_of_another_shape_are_no_duplicates(tmp_path: Path) -> None:
    for name, size in (("a", (112, 56)), ("b", (56, 112)), ("c", (112, 56))):
        save(Image.new("RGB", size, (10, 20, 30)), tmp_path / "data" / name / "0.png")
    rows, starts = equal_groups(scan_images(open_store(tmp_path / "data")))
    assert (rows.tolist(), starts.tolist()) == ([0, 2], [0, 2])


def test_groups_are_those_of_a_dictionary() -> None:
    rng = np.random.default_rng(0)
    facts = np.zeros(500, FACTS)
    facts["digest"] = rng.integers(0, 15, (500, 2))
    facts["width"] = rng.random(500) < 0.9
    expected: dict[tuple[int, int], list[int]] = {}
    for row in range(500):
        if facts["width"][row]:
            expected.setdefault(tuple(facts["digest"][row].tolist()), []).append(row)
    rows, starts = equal_groups(Scan(facts, {}))
    groups = [rows[start:stop].tolist() for start, stop in pairwise(starts)]
    assert groups == [group for group in expected.values() if len(group) > 1]
    assert [part.tolist() for part in equal_groups(Scan(facts[:0], {}))] == [[], [0]]


def test_a_group_over_identities_is_reported_once_with_all_its_images(tmp_path: Path) -> None:
    root = clean_tree(tmp_path / "data")
    for target in ("person_0/again.jpg", "person_1/x.jpg", "person_2/y.jpg"):
        shutil.copy(root / "person_0" / "0.jpg", root / target)
    check(str(root), report="r.json")
    found = items("r.json")
    assert found["duplicates_within"] == []
    (group,) = found["duplicates_across"]
    assert group["images"] == ["person_0/0.jpg", "person_0/again.jpg", "person_1/x.jpg", "person_2/y.jpg"]
    assert group["identities"] == ["person_0", "person_1", "person_2"]


def test_any_number_of_processes_finds_the_same(planted: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_module, "_CHUNK", 4)
    store = open_store(planted[0])
    alone = scan_images(store, jobs=1)
    monkeypatch.setattr(scan_module, "_WORTH_A_POOL", 0)
    several = scan_images(store, jobs=2)
    np.testing.assert_array_equal(alone.facts, several.facts)
    assert alone.reasons == several.reasons
    assert sorted(alone.reasons) == np.flatnonzero(~alone.is_readable).tolist()
    for row, reason in alone.reasons.items():
        with pytest.raises(BadImageError) as refused:
            read_crop(store.place(row))
        assert refused.value.reason == reason
    some = scan_images(store, np.array([5, 2, 0]), jobs=1)
    np.testing.assert_array_equal(some.facts, alone.facts[[5, 2, 0]])
    # A digest is of the size and the pixels, and nothing else.
    row = int(np.flatnonzero(alone.is_readable)[0])
    with Image.open(store.place(row)) as image:
        plain = hashlib.blake2b(b"112x112" + image.convert("RGB").tobytes(), digest_size=16).digest()
    assert alone.facts["digest"][row].astype("<u8").tobytes() == plain


def test_the_sheet_shows_every_kind(planted: tuple[Path, Path]) -> None:
    root, verification = planted
    check(str(root), against=str(verification), sheet="all.png")
    with Image.open("all.png") as sheet:
        assert sheet.format == "PNG"
        pixels = np.asarray(sheet.convert("RGB"))
    check(str(verification), sheet="none.png")
    with Image.open("none.png") as sheet:
        bare = np.asarray(sheet.convert("RGB"))
    assert bare.shape[1] == pixels.shape[1]
    assert bare.shape[0] < 500 < 2000 < pixels.shape[0] < 4000
    assert 1200 < pixels.shape[1] < 2400
    assert (bare != 255).any()


def test_the_sheet_has_as_many_images_as_asked_for(tmp_path: Path) -> None:
    for number in range(17):
        save(face(number), tmp_path / "data" / f"alone_{number:02d}" / "0.png")  # too few images
    heights = []
    for most in (8, 16):
        check(str(tmp_path / "data"), sheet="sheet.png", sheet_images=most, jobs=1)
        with Image.open("sheet.png") as sheet:
            heights.append(sheet.height)
    assert heights[1] > heights[0] + 50


@pytest.mark.parametrize("hostile", ["$x_{1}^$", "[bold]", "\udcff\udcfe", "顔", "n" * 200])
def test_names_of_any_kind_are_printed_and_drawn(tmp_path: Path, hostile: str, capsys) -> None:
    root = clean_tree(tmp_path / "data", 1)
    shutil.copytree(root / "person_0", root / hostile)
    (root / hostile / "1.png").write_bytes(b"")
    assert check(str(root)) == 1
    assert items("check-data.json")["unreadable"][0]["image"] == f"{hostile}/1.png"
    if hostile == "[bold]":
        assert "[bold]/1.png" in capsys.readouterr().out


def finding_of(sizes: list[int], tmp_path: Path) -> Finding:
    """A finding of duplicate groups with these numbers of images."""
    for group, size in enumerate(sizes):
        for copy in range(size):
            save(face(group), tmp_path / "groups" / "one" / f"{group:02d}_{copy:02d}.png")
    store = open_store(tmp_path / "groups")
    (finding,) = [one for one in find_all(store, scan_images(store), [], 1) if one.key == "duplicates_within"]
    return finding


@pytest.mark.parametrize(
    ("sizes", "shown", "left_out"),
    [
        ([2], [2], [0]),
        ([2, 3, 2], [2, 3, 2], [0, 0, 0]),
        ([12], [8], [4]),
        ([5, 5], [5, 3], [0, 2]),
        ([2] * 9, [2] * 4, [0] * 4),
    ],
)
def test_a_row_of_the_sheet_holds_eight(
    tmp_path: Path, sizes: list[int], shown: list[int], left_out: list[int]
) -> None:
    chosen = choose(finding_of(sizes, tmp_path))
    assert [len(one.pictures) for one in chosen] == shown
    assert [one.left_out for one in chosen] == left_out
    assert sum(shown) <= TILES


@pytest.mark.parametrize(
    ("sizes", "images", "rows"),
    [
        ([2] * 9, 16, [[2] * 4, [2] * 4]),
        ([2] * 9, 200, [[2] * 4, [2] * 4, [2]]),
        ([12, 2, 12], 24, [[8], [2], [8]]),
        ([3, 3, 3], 12, [[3, 3], [3]]),
        ([2, 2], 1, [[2]]),
    ],
)
def test_more_images_make_more_rows(tmp_path: Path, sizes: list[int], images: int, rows: list[list[int]]) -> None:
    finding = finding_of(sizes, tmp_path)
    chosen = choose(finding, images)
    assert [[len(one.pictures) for one in row] for row in in_rows(chosen)] == rows
    assert [one for row in in_rows(chosen) for one in row] == chosen
    one_row, drawn = contact_sheet([finding], "", 8), contact_sheet([finding], "", images)
    assert drawn.get_figheight() - one_row.get_figheight() == pytest.approx(1.6 * (len(rows) - 1))


def test_examples_are_spread_over_all_items(tmp_path: Path) -> None:
    chosen = choose(finding_of([2] * 10, tmp_path))
    assert [one.pictures[0].store.name(one.pictures[0].row) for one in chosen] == [
        f"one/{group:02d}_00.png" for group in (0, 3, 6, 9)
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": "absent"}, "absent"),
        ({"data": "hollow"}, "no images here"),
        ({"against": "absent"}, "verification set not found: absent"),
        ({"against": "absent.txt"}, r"absent\.txt \(option against\)"),
        ({"against": "other/person_0/1.png.txt"}, r"not a text file.*option against"),
        ({"pairs": "absent.txt"}, r"absent\.txt \(option pairs\)"),
        ({"against": "other", "pairs": "pairs.txt"}, "none of the people in pairs.txt"),
        ({"report": "no/such/folder.json"}, "option report"),
        ({"sheet": "good"}, "option sheet"),
        ({"min_images": 0}, "option min_images"),
        ({"jobs": 0}, "option jobs"),
        ({"sheet_images": 0}, "option sheet_images: 1 to 200, not 0"),
    ],
)
def test_slips_are_told(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    clean_tree(tmp_path / "good", 1)
    clean_tree(tmp_path / "other", 1)
    shutil.copy(tmp_path / "other" / "person_0" / "1.png", tmp_path / "other" / "person_0" / "1.png.txt")
    (tmp_path / "hollow" / "nobody").mkdir(parents=True)
    (tmp_path / "pairs.txt").write_text("1\t1\nA\t1\t2\nA\t1\tB\t2\n")
    with pytest.raises(FacelitError, match=message):
        check(**{"data": "good", **options})
    assert not list(tmp_path.glob("check-*"))


def test_nothing_is_written_into_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sheet in the training folder would make it a folder that no tool opens."""
    root, verification = clean_tree(tmp_path / "small"), clean_tree(tmp_path / "lfw")
    (tmp_path / "link").symlink_to(root)
    monkeypatch.chdir(root)
    with pytest.raises(
        FacelitError, match=r"^check-small\.json and check-small\.png would .*--report FILE and --sheet FILE\.$"
    ):
        check(".")
    with pytest.raises(FacelitError, match=r"^check-small\.png would be inside the data, \.: .* --sheet FILE\.$"):
        check(".", report="../r.json")
    with pytest.raises(FacelitError, match=r"with --report FILE\.$"):
        check("../link", report="person_0/r.json", sheet="../s.png")
    with pytest.raises(FacelitError, match=r"--report FILE\.$"):
        check("../small", report="../link/r.json", sheet="../s.png")
    monkeypatch.chdir(verification)
    with pytest.raises(FacelitError, match=r"inside the data, \."):
        check("../small", against=".")
    assert not [path for path in tmp_path.rglob("*") if path.suffix == ".json" or path.name.startswith("check-")]
    monkeypatch.chdir(root)
    assert check(".", report="../r.json", sheet="../s.png") == 0
    assert check(".", against="../lfw", report="../r.json", sheet="../small.png") == 0


@pytest.mark.parametrize("option", ["report", "sheet"])
def test_what_cannot_be_written_is_told_before_the_scan(
    tmp_path: Path, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names have 255 bytes at most, even for root."""

    def no_scan(*_: object, **__: object) -> Scan:
        raise AssertionError("hours of reading")

    monkeypatch.setattr(scan_module, "read_image", no_scan)
    clean_tree(tmp_path / "data")
    with pytest.raises(FacelitError, match=f"cannot write this file .*--{option} FILE"):
        check("data", **{option: "n" * 300})  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_the_trial_of_writing_leaves_the_old_files(tmp_path: Path) -> None:
    clean_tree(tmp_path / "data")
    Path("r.json").write_text("old")
    with pytest.raises(FacelitError, match="verification set not found"):
        check("data", against="absent", report="r.json")
    assert Path("r.json").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "r.json"]


def with_ignored(root: Path) -> Path:
    """A clean tree with everything in it that is no part of a training set."""
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
    assert items("check-data.json") == {key: [] for key in KEYS}
    assert "Ignored" not in capsys.readouterr().out


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


@pytest.mark.parametrize(
    ("window", "most", "expected"),
    [
        (100, 3, [[[0, 1, 2], [3, 4, 5], [6, 7, 8]]]),
        (100, 9, [[[0, 1], [2, 3], [4, 5], [6, 7], [8]]]),
        (5, 1, [[[0, 1, 2, 3, 4]], [[5, 6, 7, 8]]]),
    ],
)
def test_a_large_set_is_read_in_a_limited_number_of_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, window: int, most: int, expected: list[list[list[int]]]
) -> None:
    root = clean_tree(tmp_path / "data")
    (root / "person_2" / "2.webp").write_bytes(b"")
    store = open_store(root)
    whole = scan_images(store)
    assert list(whole.reasons) == [8]
    pools: list[list[list[int]]] = []

    def spy(function: Any, tasks: Any, *options: Any) -> Any:
        pools.append([list(map(int, task)) for task in tasks])
        return run_in_processes(function, tasks, *options)

    monkeypatch.setattr(scan_module, "run_in_processes", spy)
    for name, value in (("_CHUNK", 2), ("_MOST_CHUNKS", most), ("_WINDOW", window)):
        monkeypatch.setattr(scan_module, name, value)
    scan = scan_images(store)
    np.testing.assert_array_equal(scan.facts, whole.facts)
    assert scan.reasons == whole.reasons
    assert pools == expected
    np.testing.assert_array_equal(scan_images(store, np.arange(9)[::-1]).facts, whole.facts[::-1])


def test_a_report_that_cannot_be_finished_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = clean_tree(tmp_path / "data")
    check(str(root), min_images=9)
    before = Path("check-data.json").read_bytes()
    broken = Finding(
        "few_images", "", "", 1, 1, 2, lambda number: Item({"identity": str(number)}, 1 / (1 - number), [])
    )
    with pytest.raises(ZeroDivisionError):
        write_report(Path("check-data.json"), {}, {}, [], [broken])
    assert Path("check-data.json").read_bytes() == before
    with pytest.raises(FacelitError, match=r"away/check\.json: cannot write this file"):
        write_report(Path("away/check.json"), {}, {}, [], [])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["check-data.json", "check-data.png", "data"]


def test_torch_is_not_imported() -> None:
    code = "import sys, facelit.tools.check; assert not {'torch', 'pytorch_lightning', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.lfw
def test_lfw_as_it_is(lfw: Path) -> None:
    """LFW's authors count 1,680 of 5,749 people with two images or more. Pillow finds 41 grey ones, md5sum no copies."""
    assert check(str(lfw / "aligned_112"), report="lfw.json", sheet="lfw.png") == 0
    counts = {finding["key"]: finding["count"] for finding in json.loads(Path("lfw.json").read_text())["findings"]}
    assert counts == {
        "unreadable": 0,
        "wrong_size": 0,
        "grey": 41,
        "black_border": 14,  # all of them photos with a black background
        "duplicates_within": 0,
        "duplicates_across": 0,
        "few_images": 5749 - 1680,
        "ignored": 0,
    }
