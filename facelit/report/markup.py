"""Pieces of HTML. Whatever comes from files or options passes through `text`."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from facelit.verification.intervals import Rate

COLOURS = 6
"""Classes `k0` ... of the page's style sheet."""


def text(value: object) -> str:
    """A value as HTML shows it, whatever is in it; bytes that are not text become question marks."""
    return html.escape(str(value).encode("utf-8", "replace").decode())


def dot(name: str, number: int) -> str:
    """A name beside its colour."""
    return f'<span class="dot"><i class="k{number % COLOURS}"></i><span>{text(name)}</span></span>'


def legend(names: Sequence[str], colours: Sequence[int]) -> str:
    """Names beside their colours; nothing for a single one."""
    if len(names) < 2:
        return ""
    items = "".join(f"<li>{dot(name, colour)}</li>" for name, colour in zip(names, colours, strict=True))
    return f'<ul class="legend">{items}</ul>'


def table(head: Iterable[str], rows: Iterable[str]) -> str:
    """A table that scrolls on its own where the page is narrow.

    Args:
        head: HTML of the column heads.
        rows: HTML of the rows, each a `<tr>`.
    """
    heads = "".join(f'<th scope="col">{one}</th>' for one in head)
    return f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def row(head: str, cells: Iterable[str], kind: str = "") -> str:
    """A row of a table: HTML of its head and of its cells."""
    opening = f'<tr class="{kind}">' if kind else "<tr>"
    return f'{opening}<th scope="row">{head}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'


def with_interval(rate: Rate) -> str:
    """A rate above the ends of its interval."""
    return f"{rate.value:.4f}<small>{rate.low:.4f} – {rate.high:.4f}</small>"


def chart(name: str, label: str) -> str:
    """Where the page's script draws a chart.

    Args:
        name: The chart's name in the page's data.
        label: What it shows, for screen readers.
    """
    return f'<div class="chart" data-chart="{text(name)}" role="img" aria-label="{text(label)}"></div>'


def card(content: str) -> str:
    """A box."""
    return f'<div class="card">{content}</div>'


def section(anchor: str, title: str, note: str, content: str) -> str:
    """A part of the page.

    Args:
        anchor: Its id.
        title: Its heading, as plain text.
        note: HTML beside the heading.
        content: HTML.
    """
    heading = f'<div class="heading"><h2>{text(title)}</h2><span class="note">{note}</span></div>'
    return f'<section id="{anchor}">{heading}{content}</section>'
