"""Where `facelit check` writes: never into the data, never half, and known before the scan."""

from __future__ import annotations

from pathlib import Path

import pytest

from facelit.check import scan as scan_module
from facelit.check.findings import Finding, Item
from facelit.check.report import write_report
from facelit.check.scan import Scan
from facelit.errors import FacelitError
from facelit.tools.check import check
from planted_crops import clean_tree


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
