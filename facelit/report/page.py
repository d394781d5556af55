"""The page: one HTML file with its style, its scripts and its data inside."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from datetime import datetime
from importlib.resources import files
from typing import Any

from facelit.errors import FacelitError
from facelit.report.charts import Chart
from facelit.report.comparison import about_card, summary_section
from facelit.report.group_tables import group_cards
from facelit.report.hardest import Pictures
from facelit.report.markup import text
from facelit.report.run_section import runs_section
from facelit.report.set_figures import SetFigures
from facelit.report.set_section import set_data, set_section
from facelit.report.sources import Found
from facelit.storage.progress import progress_bar
from facelit.version import __version__

MARK = '<meta name="generator" content="facelit report">'
"""By which a page of ours is known."""


def library() -> str:
    """plotly.js, as the Python package plotly carries it.

    Raises:
        FacelitError: The package is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise FacelitError('the charts need plotly: pip install -e ".[report]"') from None
    return str(get_plotlyjs())


def write_page(found: Found, title: str, count: int, pictures: Pictures) -> str:
    """The page's HTML.

    Args:
        found: What it is about.
        title: Its heading.
        count: Hardest pairs of each kind; 0 for none.
        pictures: Where their images come from; afterwards it knows which are missing.

    Raises:
        FacelitError: plotly is not installed, or two checkpoints were not measured on the same pairs.
    """
    plotly = library()  # before the work
    names = [one.name for one in found.measured]
    set_names = list(dict.fromkeys(name for one in found.measured for name in one.sets))
    sets = {
        name: {one.name: SetFigures(one.sets[name]) for one in found.measured if name in one.sets} for name in set_names
    }
    parts, links = [], []
    charts: dict[str, Chart] = {}
    data: list[dict[str, Any]] = []
    if sets:
        parts.append(summary_section(sets, names))
        links.append(("summary", "Summary"))
    with progress_bar("Sets", len(sets), 2) as show:
        for number, (name, figures) in enumerate(sets.items()):
            known = {one.name: one.groups[name] for one in found.measured if name in one.groups}
            missing = max((one.missing_pairs(name) for one in found.measured), default=0)
            groups = group_cards(name, known, names)
            parts.append(set_section(number, name, figures, names, missing, groups, count, pictures))
            one, drawn = set_data(number, figures, names)
            data.append(one)
            charts |= drawn
            links.append((f"set-{number}", name))
            show(number + 1)
    if found.runs:
        html, drawn = runs_section(found.runs)
        parts.append(html)
        charts |= drawn
        links.append(("training", "Training"))
    if found.measured:
        parts.append(f'<section id="about">{about_card(found.measured)}</section>')
    return _frame(title, _what(found, len(sets)), links, "".join(parts), {"charts": charts, "sets": data}, plotly)


def _what(found: Found, num_sets: int) -> str:
    counts = ((len(found.measured), "checkpoint"), (num_sets, "verification set"), (len(found.runs), "run"))
    said = [f"{count} {name}{'s' * (count > 1)}" for count, name in counts if count]
    return f"{', '.join(said)} · {datetime.now().astimezone():%d %B %Y, %H:%M} · facelit {__version__}"


def _frame(
    title: str, note: str, links: Sequence[tuple[str, str]], body: str, data: dict[str, Any], plotly: str
) -> str:
    script = (files("facelit.report") / "page.js").read_text(encoding="utf-8")
    style = (files("facelit.report") / "page.css").read_text(encoding="utf-8")
    scripts = [plotly.replace("</script", "<\\/script"), script]
    policy = (
        f"default-src 'none'; script-src {' '.join(_hash(one) for one in scripts)}; style-src 'unsafe-inline'; img-src data: blob:;"
        " base-uri 'none'; form-action 'none'"
    )
    nav = "".join(f'<a href="#{anchor}">{text(name)}</a>' for anchor, name in links)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
{MARK}
<title>{text(title)}</title>
<style>
{style}</style>
</head>
<body>
<header><div><h1>{text(title)}</h1><p class="note">{text(note)}</p></div></header>
<nav aria-label="Parts of the page"><div>{nav}</div></nav>
<main>
<noscript><p class="card">The charts and the threshold need JavaScript; the tables do not.</p></noscript>
{body}
<footer>A pair is accepted where its cosine similarity is at least the threshold. This file holds everything it shows and asks no other for
anything. Charts: plotly.js (MIT licence).</footer>
</main>
<script type="application/json" id="page-data">{_json(data)}</script>
<script>{scripts[0]}</script>
<script>{script}</script>
</body>
</html>
"""


def _json(data: Any) -> str:
    """JSON that ends no script element, whatever names are in it."""
    written = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return written.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
