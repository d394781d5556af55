"""What was found in a set of images: told in a report, and shown on a contact sheet."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from facelit.storage.base import ImageStore


class Picture(NamedTuple):
    """An image that shows a finding, and what to write below its name."""

    store: ImageStore
    row: int
    note: str = ""


class Item(NamedTuple):
    """One thing that was found.

    Attributes:
        entry: What the report says of it.
        label: The same in a few words.
        pictures: What it looks like; those of one item are shown side by side.
    """

    entry: dict[str, Any]
    label: str
    pictures: list[Picture]


@dataclass(frozen=True)
class Finding:
    """All things of one kind. Items are made when they are asked for: there may be millions.

    Attributes:
        key: Its name in the report.
        title: Its name in the table.
        explanation: What it means for training.
        num_images: Images concerned.
        num_identities: Identities concerned; 0 where it is not about identities.
        count: Number of items.
        item: Item by number.
        note: What the table says beside a count of 0, where that is not good news.
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
