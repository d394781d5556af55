"""Reports the findings of `facelit check`, for machines (JSON) and for people (a table)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from facelit.check.overlap import Overlap
from facelit.check.scan import FORMATS, Scan
from facelit.check.verification_set import VerificationSet
from facelit.pictures.findings import Finding
from facelit.storage.base import CropStore
from facelit.storage.files import replace_file
from facelit.storage.text import one_line
from facelit.version import __version__

VERSION = 1
"""The version of the report's format."""

_EXAMPLES = 2


def summary(store: CropStore, scan: Scan) -> dict[str, Any]:
    """The facts about a training set, for the report's entry `data`."""
    per_identity = np.bincount(store.labels, minlength=len(store.identities))
    formats = np.bincount(scan.facts["format"][scan.is_readable], minlength=len(FORMATS))
    return {
        "path": os.fspath(store.path),
        "fingerprint": store.fingerprint(),
        "images": len(store),
        "identities": len(store.identities),
        "images_per_identity": {
            "min": int(per_identity.min(initial=len(store))),
            "median": float(np.median(per_identity)) if len(per_identity) else 0.0,
            "max": int(per_identity.max(initial=0)),
        },
        "bytes": int(scan.facts["num_bytes"].sum(dtype=np.int64)),
        "formats": {name: int(count) for name, count in zip(FORMATS, formats, strict=True) if count},
    }


def verification_summary(
    against: Sequence[VerificationSet], overlaps: Sequence[Overlap | None] | None = None
) -> list[dict[str, Any]]:
    """The sets that were compared with, for the report's entry `against`.

    Args:
        against: The sets.
        overlaps: If faces were compared: each set's overlap, or None for a set without images.
    """
    return [
        {
            "path": one.path,
            "people": len(one.people),
            "images": len(one.rows),
            "unreadable": 0 if one.scan is None else int((~one.scan.is_readable).sum()),
            **({} if overlap is None else {"threshold": round(overlap.threshold, 4), "measured": overlap.measured}),
        }
        for one, overlap in zip(against, overlaps or [None] * len(against), strict=True)
    ]


def write_report(
    path: Path,
    data: dict[str, Any],
    options: dict[str, Any],
    against: list[dict[str, Any]],
    findings: Sequence[Finding],
) -> None:
    """Writes the report: UTF-8 JSON, one item per line, made one at a time.

    Args:
        path: The file to write, atomically.
        data: See `summary`.
        options: The options that the findings depend on, such as `min_images`.
        against: See `verification_summary`.
        findings: All findings; each is written as `key`, `explanation`, `count` (of its items), `images` and `identities`
            (the numbers affected), and the `items`.
    """
    head = {"format": "facelit-check", "version": VERSION, "facelit": __version__, "options": options}
    with replace_file(path) as file:
        file.writelines(line.encode() for line in _lines({**head, "data": data, "against": against}, findings))


def _lines(head: dict[str, Any], findings: Sequence[Finding]) -> Iterator[str]:
    yield json.dumps(head, indent=1)[:-2] + ',\n "findings": ['
    for number, finding in enumerate(findings):
        fields = {
            "key": finding.key,
            "explanation": finding.explanation,
            "count": finding.count,
            "images": finding.num_images,
            "identities": finding.num_identities,
        }
        yield ("," if number else "") + "\n  " + json.dumps(fields)[:-1] + ', "items": ['
        for position, item in enumerate(finding.items()):
            yield ("," if position else "") + "\n   " + json.dumps(item.entry)
        yield "]}"
    yield "\n ]\n}\n"


def print_summary(
    console: Console, data: dict[str, Any], against: list[dict[str, Any]], findings: Sequence[Finding]
) -> None:
    """Prints the facts, and a table of the findings with the first examples of each."""
    per_identity = data["images_per_identity"]
    formats = ", ".join(f"{count:,} {name}" for name, count in data["formats"].items())
    facts = (
        f"{data['path']}: {data['images']:,} images ({formats or 'none readable'}; {data['bytes'] / 1e6:,.1f} MB) of"
        f" {data['identities']:,} identities; images per identity: {per_identity['min']} to {per_identity['max']:,}, median"
        f" {per_identity['median']:g}."
    )
    console.print(_text(facts), soft_wrap=True)
    for one in against:
        broken = f"; {one['unreadable']:,} of them cannot be read and were not compared" if one["unreadable"] else ""
        line = f"Compared with {one['path']}: {one['people']:,} names, {one['images']:,} images{broken}.{_threshold_of(one)}"
        console.print(_text(line), soft_wrap=True)
    table = Table("Finding", box=None, pad_edge=False, header_style="bold")
    table.add_column("Images", justify="right")
    table.add_column("Identities", justify="right")
    table.add_column("For example", overflow="fold")
    for finding in findings:
        examples = [one_line(item.label) for item in islice(finding.items(), _EXAMPLES)]
        more = [f"and {finding.count - _EXAMPLES:,} more"] if finding.count > _EXAMPLES else []
        style = "" if finding.count or finding.note else "dim"
        counts = (f"{finding.num_images:,}", f"{finding.num_identities:,}")
        table.add_row(finding.title, *counts, _text("\n".join(examples + more) or finding.note), style=style)
    console.print(table)


def _threshold_of(one: dict[str, Any]) -> str:
    if "threshold" not in one:
        return ""
    why = "; 99 % of its own people are below it with everybody else there" if one["measured"] else ""
    return f" Faces count as one person's from a score of {one['threshold']:.3f} on{why}."


def _text(text: str) -> Text:
    """Text without markup, and without surrogates for undecodable bytes, which terminals reject."""
    return Text(text.encode("utf-8", "replace").decode())
