"""FAR and FRR within groups of people, as `facelit suites --groups` counted them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from facelit.errors import FacelitError
from facelit.report.markup import card, dot, row, table, text

_UNREADABLE = (KeyError, IndexError, TypeError, ValueError, AttributeError)
"""What values of other types than expected raise."""


def group_cards(set_name: str, groups: Mapping[str, Any], names: Sequence[str]) -> str:
    """A box with the tables of each checkpoint.

    Args:
        set_name: The verification set.
        groups: By checkpoint, the content of `<set>.groups.json`.
        names: All checkpoints, in the order of their colours.

    Raises:
        FacelitError: The content is not what `facelit suites` writes.
    """
    cards = []
    for name, found in groups.items():
        try:
            heading = f" of {dot(name, names.index(name))}" if len(names) > 1 else ""
            cards.append(
                card(f"<h3>Groups{heading}</h3>{_threshold(found)}{''.join(map(_column, found['columns']))}{_NOTE}")
            )
        except _UNREADABLE:
            raise FacelitError(
                f"{set_name}.groups.json of {name}: not what `facelit suites --groups` writes. Run it again."
            ) from None
    return "".join(cards)


_NOTE = (
    '<p class="note">Below each rate: Wilson\'s 95 % interval of independent pairs. A pair is in a group if both of its people are; FAR within a'
    " group is of people who look more alike than any two, and higher for that alone.</p>"
)


def _threshold(found: Mapping[str, Any]) -> str:
    value = "nothing is accepted" if found["threshold"] is None else f"threshold {float(found['threshold']):.4f}"
    missing = len(found["missing_images"])
    absent = f" {missing:,} of {int(found['images']):,} images have no group." if missing else ""
    return f"<p>One threshold for all groups: {value} ({text(found['origin'])}).{absent}</p>"


def _column(found: Mapping[str, Any]) -> str:
    rows = [_row(text(one["group"]), one) for one in found["groups"]]
    if found["across"]["genuine"] or found["across"]["impostor"]:
        rows.append(_row("two groups", found["across"]))
    unknown = (
        f'<p class="note">{int(found["unknown"]):,} pairs have an image of no group.</p>' if found["unknown"] else ""
    )
    head = [text(found["column"]), "FRR", "FAR"]
    return f"<h4>By {text(found['column'])}</h4>{table(head, rows)}{unknown}"


def _row(head: str, one: Mapping[str, Any]) -> str:
    frr = _rate(one["frr"], f"{int(one['rejected']):,} of {int(one['genuine']):,} genuine")
    return row(head, [frr, _rate(one["far"], f"{int(one['accepted']):,} of {int(one['impostor']):,} impostor")])


def _rate(rate: Any, counts: str) -> str:
    if rate is None:
        return f"–<small>{counts}</small>"
    value, low, high = (float(one) for one in rate)
    return f"{value:.4f}<small>{low:.4f} – {high:.4f}</small><small>{counts}</small>"
