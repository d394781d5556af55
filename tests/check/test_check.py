"""`facelit check` finds what was planted, and nothing else."""

from __future__ import annotations

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
from facelit.check.findings import equal_groups, find_all
from facelit.check.scan import BLACK, FACTS, Scan, black_border, scan_images
from facelit.check.verification_set import VerificationSet
from facelit.errors import FacelitError
from facelit.storage.open import open_store
from facelit.storage.packing import pack
from facelit.storage.recordio import write_recordio
from facelit.tools.check import check
from planted_crops import clean_tree, face, items, save

KEYS = [
    "unreadable",
    "wrong_size",
    "grey",
    "black_border",
    "duplicates_within",
    "duplicates_across",
    "few_images",
    "same_name",
]
KEYS_OF_FOLDER = [*KEYS, "ignored"]
KEYS_OF_FOLDER_WITH_SET = [*KEYS, "in_verification_by_name", "in_verification_by_image", "ignored"]


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


def test_black_borders_in_files_of_every_kind_packed_or_not(tmp_path: Path) -> None:
    """Grey, 16 bits, a palette, CMYK, an alpha channel: what counts is what training sees, where transparent pixels are white."""
    pixels = bright(0)
    pixels[:40] = 0  # 35 %
    grey = pixels[..., 0]
    alpha = np.full((112, 112, 1), 255, np.uint8)
    clear = alpha.copy()
    clear[:40] = 0
    kinds = {
        "cmyk.jpg": Image.fromarray(pixels).convert("CMYK"),
        "grey.png": Image.fromarray(grey),
        "grey16.png": Image.fromarray(grey.astype(np.uint16) * 257),
        "opaque.png": Image.fromarray(np.concatenate([pixels, alpha], axis=2)),
        "palette.png": Image.fromarray(pixels).quantize(64),
        "transparent.png": Image.fromarray(np.concatenate([pixels, clear], axis=2)),
    }
    for name, image in kinds.items():
        save(image, tmp_path / "data" / "person_0" / name)
    pack(open_store(tmp_path / "data"), tmp_path / "packed")
    write_recordio(open_store(tmp_path / "data"), tmp_path / "recordio")
    for place in ("data", "packed", "recordio"):
        black = scan_images(open_store(tmp_path / place)).facts["black"].tolist()
        assert [35 if share in (34, 35) else share for share in black] == [35, 35, 35, 35, 35, 0], place


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
    facts["digest"][1, 1] ^= np.uint64(1)
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
        "black_border": 11,  # all of them photos with a black background
        "duplicates_within": 0,
        "duplicates_across": 0,
        "few_images": 5749 - 1680,
        "same_name": 0,
        "ignored": 0,
    }
