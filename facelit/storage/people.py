"""People's names: lists of them (plain, or LFW's `people.txt` with its folds), and when two names are one person's."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from facelit.errors import FacelitError
from facelit.storage.text import read_text, unquoted

_NUMBER = re.compile(r"[^\W\d_]{0,4}[\W_]*\d[\d\W_]*|m\.[0-9a-z_]+", re.ASCII | re.IGNORECASE)
"""Names that are not a person's: `0000045`, `n000002`, `id_17`, Freebase's `m.0b4x2_`."""
_TYPED = str.maketrans(dict.fromkeys("‘’ʼ", "'") | dict.fromkeys("‐‒–—−", "-"))
"""Signs that word processors put in place of those that were typed."""
_MOSTLY = 0.9
"""So many names of a set have to be numbers for all to count as such."""


def comparable(name: str) -> str:
    """A name in the form in which names are compared, everywhere in facelit.

    Two names are one person's if they differ in case, in spaces against underscores, in backslashes (as Windows writes `F0001/MID1`)
    against slashes, in how accents are stored (a Mac takes é apart, others do not: Unicode's NFC and NFD), in apostrophes and hyphens
    that a word processor has made typographic, or in characters that nobody sees (zero-width spaces, marks of direction, soft hyphens).
    """
    if not name.isascii():
        name = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold()).translate(_TYPED)
        name = "".join(letter for letter in name if unicodedata.category(letter) != "Cf")
    return re.sub(r"[\s_]+", "_", name.lower().replace("\\", "/")).strip("_")


def is_code(name: str) -> bool:
    """Whether a name is a number or a code, not a person's: `0000045`, `n000002`, `m.0b4x2_`."""
    return _NUMBER.fullmatch(name) is not None


def unmatched(names: Iterable[str], identities: Iterable[str]) -> list[str]:
    """Those of the names that are nobody's among the identities, sorted; see `comparable`."""
    known = set(map(comparable, identities))
    return sorted(name for name in names if comparable(name) not in known)


def same_people(names: Iterable[str]) -> list[list[int]]:
    """Which of a set's names are one person's, by `comparable`: the places of each group, in order. Codes are not compared.

    `Ann` and `ann` are two identities of one person; `m.01_` and `m.01` are two codes.
    """
    places: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        if not name.isdecimal():  # RecordIO has millions of those
            places.setdefault(comparable(name), []).append(place)
    return [group for key, group in places.items() if len(group) > 1 and key and not is_code(key)]


def why_incomparable(identities: Sequence[str], names: Sequence[str]) -> str:
    """Why equal names cannot be expected although the people may be the same; empty where they can.

    Args:
        identities: Of a training set.
        names: Of people in another set.
    """
    if not len(names):
        return "it has no names"
    if not len(identities):
        return ""
    for whose, ones in (("the training set's", identities), ("its", names)):
        numbers = sum(map(is_code, ones))
        if numbers >= _MOSTLY * len(ones):
            return f"{whose} identities are numbers or codes ({ones[0]}), not people's names"
    for whose, ones, others in (("the training set's", identities, names), ("its", names, identities)):
        prefix = _common_prefix(ones)
        if prefix and not any(comparable(other).startswith(comparable(prefix)) for other in others):
            return f"{whose} names all start with {prefix!r}, the others do not"
    return ""


def _common_prefix(names: Sequence[str]) -> str:
    """What all names start with, up to a separator: `pins_`."""
    if len(names) < 2:
        return ""
    first, last = min(names), max(names)  # in order, what these two share all share
    shared = next((place for place, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    found = re.match(r".*[\s_.-]", first[:shared])
    return found.group() if found else ""


def read_people(
    path: str | Path, folds: Collection[int] | None = None, option: str = "exclude_identities"
) -> frozenset[str]:
    """Names listed in a file.

    Two forms are read. Plain: one name a line (a number is a name, too). LFW's: a line with the number of folds (left out where
    there is one), then for each fold a line with its number of people and that many rows `name<TAB>images`; a file counts as
    LFW's only if all of it has this form.

    Args:
        path: The text file, UTF-8, with or without a byte order mark; LF or CRLF line ends.
        folds: Only the people of these folds, counted from 1.
        option: The option that named the file, for messages.

    Raises:
        FacelitError: The file is missing, empty or malformed, or does not have the folds asked for.
    """
    rows = [line.strip() for line in read_text(path, "list of people", option).splitlines()]
    rows = [row for row in rows if row and not row.startswith("#")]
    if not rows:
        raise FacelitError(f"{path}: the list of people is empty (option {option}).")
    by_fold = _people_by_fold(Path(path), rows)
    if folds is None:
        return frozenset(name for fold in by_fold for name in fold)
    if not folds:
        raise FacelitError("exclude_folds is empty: name at least one fold, or leave it out to exclude them all.")
    absent = sorted(fold for fold in folds if not 1 <= fold <= len(by_fold))
    if absent:
        raise FacelitError(f"{path}: has {len(by_fold)} fold(s), so not fold {absent[0]} (option exclude_folds).")
    return frozenset(name for fold in folds for name in by_fold[fold - 1])


def _people_by_fold(path: Path, rows: list[str]) -> list[list[str]]:
    # `ls -d */` and `find .` make lists of folders.
    names = [unquoted(row.split("\t")[0]).removeprefix("./").rstrip("/\\") for row in rows]
    if not is_count(rows[0]) or all(map(str.isdecimal, rows)):  # CASIA's identities are numbers
        return [names]
    # people.txt starts with the number of folds, peopleDevTrain.txt at once with its number of people.
    has_fold_count = len(rows) > 1 and is_count(rows[1])
    position = int(has_fold_count)
    by_fold: list[list[str]] = []
    while position < len(rows):
        if not is_count(rows[position]):
            raise _neither_form(path, f"expected a fold's number of people, found {rows[position][:80]!r}")
        count = int(rows[position])
        people = names[position + 1 : position + 1 + count]
        if len(people) < count:
            raise _neither_form(path, f"fold {len(by_fold) + 1} promises {count} people and lists {len(people)}")
        by_fold.append(people)
        position += 1 + count
    if has_fold_count and int(rows[0]) != len(by_fold):
        raise _neither_form(path, f"promises {rows[0]} folds and has {len(by_fold)}")
    return by_fold


def is_count(field: str) -> bool:
    """Whether it is a number that can count people or images: `int` refuses 5,000 digits."""
    return field.isdecimal() and len(field) <= 9


def _neither_form(path: Path, what: str) -> FacelitError:
    return FacelitError(
        f"{path}: {what}. (It starts with a number, and so was read as LFW's people.txt. If the number is a name, put another name"
        " first.)"
    )
