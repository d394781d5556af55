"""Lists of people: plain names, or LFW's `people.txt` with its folds."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from facelit.errors import FacelitError


def read_people(
    path: str | Path, folds: Collection[int] | None = None, option: str = "exclude_identities"
) -> frozenset[str]:
    """Names listed in a file.

    Two forms are read. Plain: one name a line. LFW's: a line with the number of folds (left out where there is one),
    then for each fold a line with its number of people and that many rows `name<TAB>images`.

    Args:
        path: The text file; LF or CRLF line ends.
        folds: Only the people of these folds, counted from 1.
        option: The option that named the file, for messages.

    Raises:
        FacelitError: The file is missing, empty or malformed, or does not have the folds asked for.
    """
    path = Path(path)
    if not path.is_file():
        raise FacelitError(f"list of people not found: {path} (option {option}).")
    try:
        rows = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError:
        raise FacelitError(f"{path}: this is not a text file; a list of people is (option {option}).") from None
    rows = [row for row in rows if row and not row.startswith("#")]
    if not rows:
        raise FacelitError(f"{path}: the list of people is empty (option {option}).")
    by_fold = _people_by_fold(path, rows)
    if folds is None:
        return frozenset(name for fold in by_fold for name in fold)
    if not folds:
        raise FacelitError("exclude_folds is empty: name at least one fold, or leave it out to exclude them all.")
    absent = sorted(fold for fold in folds if not 1 <= fold <= len(by_fold))
    if absent:
        raise FacelitError(f"{path}: has {len(by_fold)} fold(s), so not fold {absent[0]} (option exclude_folds).")
    return frozenset(name for fold in folds for name in by_fold[fold - 1])


def _people_by_fold(path: Path, rows: list[str]) -> list[list[str]]:
    if not rows[0].isdigit():
        return [[row.split("\t")[0] for row in rows]]
    # people.txt starts with the number of folds, peopleDevTrain.txt at once with its number of people.
    has_fold_count = len(rows) > 1 and rows[1].isdigit()
    position = int(has_fold_count)
    by_fold: list[list[str]] = []
    while position < len(rows):
        if not rows[position].isdigit():
            raise FacelitError(f"{path}: expected a fold's number of people, found {rows[position]!r}.")
        count = int(rows[position])
        people = rows[position + 1 : position + 1 + count]
        if len(people) < count:
            raise FacelitError(f"{path}: fold {len(by_fold) + 1} promises {count} people and lists {len(people)}.")
        by_fold.append([row.split("\t")[0] for row in people])
        position += 1 + count
    return by_fold
