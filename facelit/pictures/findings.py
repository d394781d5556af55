"""Findings in a set of images, for reports and contact sheets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from facelit.storage.base import ImageStore


class Picture(NamedTuple):
    """An image that shows a finding, and a note to print below its name."""

    store: ImageStore
    row: int
    note: str = ""


class Item(NamedTuple):
    """One item of a finding.

    Attributes:
        entry: Its entry in the report.
        label: The same in a few words.
        pictures: Images that show it, side by side on a contact sheet.
    """

    entry: dict[str, Any]
    label: str
    pictures: list[Picture]


@dataclass(frozen=True)
class Finding:
    """All items of one kind. Items are made on request, as there may be millions.

    Attributes:
        key: Its name in the report.
        title: Its name in the table.
        explanation: What it means for training.
        num_images: The number of images affected.
        num_identities: The number of identities affected; 0 if it is not about identities.
        count: The number of items.
        item: Makes the item with a given number.
        note: A remark in the table on a count of 0 that is not good news.
    """

    key: str
    title: str
    explanation: str
    num_images: int
    num_identities: int
    count: int
    item: Callable[[int], Item]
    note: str = ""

    def items(self) -> Iterator[Item]:
        """All items."""
        return map(self.item, range(self.count))
