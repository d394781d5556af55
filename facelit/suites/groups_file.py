"""`--groups FILE`: which group an image or an identity belongs to."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from facelit.errors import FacelitError
from facelit.storage.images import is_image
from facelit.storage.people import comparable
from facelit.storage.text import read_text

_KEYS = ("image", "identity")
_MOST_GROUPS = 100


class ImageGroups(NamedTuple):
    """The groups of a set's images.

    Attributes:
        values: Each image's group by column, lists of length N; empty where it is not known.
        missing: Names of the images that the file does not have.
    """

    values: dict[str, list[str]]
    missing: list[str]


class GroupsFile:
    """A TSV or CSV with a header: a column `image` or `identity`, and a column for each way of grouping.

    An image is named by its path relative to the set's folder, with or without its suffix; an identity by the folder of its images.
    Names are compared as `facelit.storage.people.comparable` does. An empty field means that the group is not known.

    Args:
        path: The file; tabs separate its fields if there is one in the header, else commas.

    Raises:
        FacelitError: The file is missing or malformed (with the line number), names something twice, or a column has more values than
            groups would have.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        text = read_text(path, "groups file", "--groups")
        delimiter = "\t" if "\t" in text.partition("\n")[0] else ","
        rows = csv.reader(text.splitlines(), delimiter=delimiter, strict=True)
        try:
            header = [field.strip() for field in next(rows, [])]
            self._key, self.columns = self._read_header(header)
            self._groups: dict[str, list[str]] = {}
            for row in rows:
                if row and any(field.strip() for field in row):
                    self._add(rows.line_num, [field.strip() for field in row], header)
        except csv.Error as error:
            raise FacelitError(
                f"{path}, line {rows.line_num}: this is not a table ({error}; option --groups)."
            ) from None
        self._check_values()

    def _read_header(self, header: list[str]) -> tuple[str, list[str]]:
        keys = [name for name in header if name.lower() in _KEYS]
        if len(keys) != 1:
            raise FacelitError(
                f"{self.path}, line 1: expected a header with one column image or identity, found {', '.join(header)[:100]!r} (option"
                " --groups)."
            )
        columns = [name for name in header if name != keys[0]]
        if not columns or "" in columns or len(set(columns)) < len(columns):
            raise FacelitError(
                f"{self.path}, line 1: beside {keys[0]}, expected columns with different names, such as sex or age_band, found"
                f" {', '.join(columns)[:100]!r} (option --groups)."
            )
        return keys[0].lower(), columns

    def _add(self, line: int, row: list[str], header: list[str]) -> None:
        if len(row) != len(header):
            raise FacelitError(
                f"{self.path}, line {line}: {len(row)} fields, but the header has {len(header)} (option --groups)."
            )
        fields = dict(zip(header, row, strict=True))
        name = next(value for column, value in fields.items() if column.lower() == self._key)
        groups = [fields[column] for column in self.columns]
        key = _image_key(name) if self._key == "image" else comparable(name)
        if self._groups.setdefault(key, groups) != groups:
            raise FacelitError(
                f"{self.path}, line {line}: {name} is there twice, in different groups (option --groups)."
            )

    def _check_values(self) -> None:
        if not self._groups:
            raise FacelitError(f"{self.path}: there is nothing below the header (option --groups).")
        for place, column in enumerate(self.columns):
            count = len({groups[place] for groups in self._groups.values()})
            if count > _MOST_GROUPS:
                raise FacelitError(
                    f"{self.path}: column {column} has {count:,} different values; groups are few. Put values into bands, such as"
                    " 20-29 (option --groups)."
                )

    def of_images(self, names: Sequence[str]) -> ImageGroups:
        """The groups of images.

        Args:
            names: Their paths relative to the set's folder, with slashes.
        """
        found = [self._find(name) for name in names]
        unknown = [""] * len(self.columns)
        values = {column: [(groups or unknown)[place] for groups in found] for place, column in enumerate(self.columns)}
        return ImageGroups(values, [name for name, groups in zip(names, found, strict=True) if groups is None])

    def _find(self, name: str) -> list[str] | None:
        if self._key == "image":
            return self._groups.get(_image_key(name))
        folder = name.rpartition("/")[0]
        while folder:  # `001/frontal`, then `001`
            if (groups := self._groups.get(comparable(folder))) is not None:
                return groups
            folder = folder.rpartition("/")[0]
        return None


def _image_key(name: str) -> str:
    name = name.replace("\\", "/").removeprefix("./")
    return comparable(name.rpartition(".")[0] if is_image(name.rpartition("/")[2]) else name)
