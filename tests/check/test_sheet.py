"""The contact sheet of `facelit check`: what it shows, and how much of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from facelit.check.findings import Finding, find_all
from facelit.check.scan import scan_images
from facelit.pictures.contact_sheet import TILES, choose, contact_sheet, in_rows
from facelit.storage.open import open_store
from facelit.tools.check import check
from planted_crops import clean_tree, face, items, save


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


def test_the_sheet_has_as_many_images_as_asked_for(tmp_path: Path) -> None:
    for number in range(17):
        save(face(number), tmp_path / "data" / f"alone_{number:02d}" / "0.png")  # too few images
    heights = []
    for most in (8, 16):
        check(str(tmp_path / "data"), sheet="sheet.png", sheet_images=most, jobs=1)
        with Image.open("sheet.png") as sheet:
            heights.append(sheet.height)
    assert heights[1] > heights[0] + 50


def test_a_name_of_several_lines_takes_one(tmp_path: Path) -> None:
    """More of them would run over the row below."""
    finding_of([2], tmp_path)
    for file in (tmp_path / "groups" / "one").iterdir():
        file.rename(file.with_name(f"a\nb {file.name}"))
    store = open_store(tmp_path / "groups")
    (finding,) = [one for one in find_all(store, scan_images(store), [], 1) if one.key == "duplicates_within"]
    captions = [text.get_text() for text in contact_sheet([finding], "title").axes[0].texts]
    assert "one\na b 00_00.png\n" in captions
