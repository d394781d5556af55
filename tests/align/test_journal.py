"""What a folder of crops remembers, also after a kill."""

from __future__ import annotations

from pathlib import Path

import pytest

from facelit.align import journal
from facelit.align.journal import FOLDER, Journal, Outcome
from facelit.errors import FacelitError

FACE = "\t".join(["1.25"] * 14 + ["0.9000"])
DONE = Outcome(
    "a/1.jpg", (10, 1_700_000_000_123_456_789), (FACE, FACE), ("a/1.jpg", "a/1_face2.jpg"), "all-black-jpg-95", 0.25
)
NO_FACE = Outcome("a/ü\udc80.jpg", (11, 5))
BROKEN = Outcome("b/3.jpg", (12, 6), reason="the file is empty")
OPTIONS = {"src": "/photos", "min_face": None}
CROPS = {"which": "largest", "quality": None}


def write(target: Path, *outcomes: Outcome) -> Path:
    kept = Journal(target)
    for outcome in outcomes:
        kept.write(outcome)
    kept.close()
    return kept.path


def test_lines_come_back(tmp_path: Path) -> None:
    journal.begin(tmp_path, OPTIONS, CROPS)
    write(tmp_path, DONE, NO_FACE)
    write(tmp_path, BROKEN)
    assert journal.read(tmp_path) == {outcome.photo: outcome for outcome in (DONE, NO_FACE, BROKEN)}


def test_a_later_line_counts(tmp_path: Path) -> None:
    journal.begin(tmp_path, OPTIONS, CROPS)
    later = DONE._replace(found=(FACE,), crops=("a/1.jpg",))
    write(tmp_path, DONE, later)
    assert journal.read(tmp_path) == {DONE.photo: later}


@pytest.mark.parametrize("cut", [1, 2, 30])
def test_a_line_that_was_cut_off_is_not_believed(tmp_path: Path, cut: int) -> None:
    journal.begin(tmp_path, OPTIONS, CROPS)
    path = write(tmp_path, DONE, NO_FACE)
    path.write_bytes(path.read_bytes()[: -cut - 1])
    assert set(journal.read(tmp_path)) == {DONE.photo}


@pytest.mark.parametrize("line", ["[]", "[1, 2, 3, 4, 5]", "null", "{}", '["x"]', "\x00\x00"])
def test_nonsense_is_left_out(tmp_path: Path, line: str) -> None:
    journal.begin(tmp_path, OPTIONS, CROPS)
    path = write(tmp_path, DONE)
    path.write_text(line + "\n" + path.read_text())
    assert journal.read(tmp_path) == {DONE.photo: DONE}


def test_journals_become_one(tmp_path: Path) -> None:
    journal.begin(tmp_path, OPTIONS, CROPS)
    write(tmp_path, DONE)
    write(tmp_path, BROKEN)
    journal.compact(tmp_path, [DONE, BROKEN])
    assert len(list((tmp_path / FOLDER).glob("journal-*"))) == 1
    assert journal.read(tmp_path) == {outcome.photo: outcome for outcome in (DONE, BROKEN)}


def test_a_folder_is_begun_once(tmp_path: Path) -> None:
    target = tmp_path / "new" / "crops"
    journal.begin(target, OPTIONS, CROPS)
    journal.begin(target, OPTIONS, CROPS)
    for name, value, words in (
        ("src", "/other", "aligned with src /photos, not /other.* start anew"),
        ("min_face", 40, "aligned with min_face none, not 40"),
    ):
        for recrop in (False, True):
            with pytest.raises(FacelitError, match=words):
                journal.begin(target, {**OPTIONS, name: value}, CROPS, recrop)


def test_crops_are_made_in_another_way_only_where_asked_for(tmp_path: Path) -> None:
    journal.begin(tmp_path, OPTIONS, CROPS)
    for name, value, words in (
        ("which", "all", "aligned with which largest, not all.* add --recrop"),
        ("quality", 95, "aligned with quality none, not 95.* add --recrop"),
    ):
        other = {**CROPS, name: value}
        with pytest.raises(FacelitError, match=words):
            journal.begin(tmp_path, OPTIONS, other)
        journal.begin(tmp_path, OPTIONS, other, recrop=True)
        journal.begin(tmp_path, OPTIONS, CROPS)  # nothing is written yet
    journal.remember(tmp_path, OPTIONS, {**CROPS, "which": "all"})
    journal.begin(tmp_path, OPTIONS, {**CROPS, "which": "all"})
    with pytest.raises(FacelitError, match="aligned with which all, not largest"):
        journal.begin(tmp_path, OPTIONS, CROPS)


def test_a_folder_of_an_earlier_version(tmp_path: Path) -> None:
    journal.begin(tmp_path, OPTIONS, CROPS)
    path = tmp_path / FOLDER / "options.json"
    path.write_text(path.read_text().replace('"version": 2', '"version": 1'))
    with pytest.raises(FacelitError, match="another version of facelit"):
        journal.begin(tmp_path, OPTIONS, CROPS, recrop=True)


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"")
    with pytest.raises(FacelitError, match="not a folder that `facelit align` began"):
        journal.begin(tmp_path, OPTIONS, CROPS)
    with pytest.raises(FacelitError, match="not a folder that `facelit align` began"):
        journal.begin(tmp_path / "holiday.jpg", OPTIONS, CROPS)
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.jpg"]


def test_a_damaged_memory(tmp_path: Path) -> None:
    journal.begin(tmp_path, OPTIONS, CROPS)
    for text in ("{", "[]"):
        (tmp_path / FOLDER / "options.json").write_text(text)
        with pytest.raises(FacelitError, match="is damaged"):
            journal.begin(tmp_path, OPTIONS, CROPS)


def test_one_run_at_a_time(tmp_path: Path) -> None:
    pytest.importorskip("fcntl", reason="no locks on Windows")
    journal.begin(tmp_path, OPTIONS, CROPS)
    (tmp_path / FOLDER / ".7-x.jpg.tmp").write_bytes(b"half")
    with journal.locked(tmp_path):
        assert not list((tmp_path / FOLDER).glob(".*.tmp"))
        with pytest.raises(FacelitError, match="another `facelit align`"), journal.locked(tmp_path):
            pass
    with journal.locked(tmp_path):
        pass
