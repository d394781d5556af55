"""What `facelit check` proposes to leave out of training, as lists that training takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from facelit.pictures.findings import Finding
from facelit.storage.exclusion import write_exclusion

_PEOPLE = ("in_verification_by_face", "in_verification_by_name")
_IMAGES = ("outliers", "near_copies", "in_verification_by_image")


class Lists(NamedTuple):
    """What is written where faces were compared: two lists, and a picture of the pairs nearest to the threshold."""

    identities: Path
    images: Path
    borderline: Path

    @classmethod
    def beside(cls, report: Path) -> Lists:
        """Named after the report."""
        ends = ("-exclude-identities.txt", "-exclude-images.txt", "-borderline.png")
        return cls(*(report.with_name(report.name.removesuffix(".json") + end) for end in ends))


def write_lists(paths: Lists, data: str, findings: Sequence[Finding]) -> list[str]:
    """Writes both lists; one with nothing in it is not written, and an earlier run's is removed.

    Args:
        paths: Where to.
        data: The training set, as the user named it.
        findings: Those by which identities and images are left out are picked from them.

    Returns:
        What to print: what each list holds, and the option that takes it.

    Raises:
        FacelitError: A list cannot be written.
    """
    by_key = {finding.key: finding for finding in findings}
    people: dict[str, tuple[str, ...]] = {}
    for finding in (by_key[key] for key in _PEOPLE if key in by_key):
        for name, *remarks in _identities_of(finding):
            people.setdefault(name, (name, *remarks))
    images: dict[str, tuple[str, ...]] = {}
    for finding in (by_key[key] for key in _IMAGES if key in by_key):
        for name, why in _images_of(finding):
            images.setdefault(name, (name, why))
    heading = f"facelit check {data}: "
    return [
        *_write(
            paths.identities, heading + "who is in a verification set too; score, set, person", people, "identities"
        ),
        *_write(paths.images, heading + "images that spoil their identity, and why", images, "images"),
    ]


def _write(path: Path, heading: str, rows: dict[str, tuple[str, ...]], what: str) -> list[str]:
    if not rows:
        path.unlink(missing_ok=True)
        return []
    unwritten = write_exclusion(path, heading, rows.values())
    lines = [f"{len(rows) - len(unwritten):,} {what} to leave out: --data.train.exclude_{what} {path}"]
    if unwritten:
        lines.append(
            f"{len(unwritten):,} {what} are missing from it, as no line can hold their names ({unwritten[0]!r}, ...): rename them."
        )
    return lines


def _identities_of(finding: Finding) -> Iterator[tuple[str, ...]]:
    for item in finding.items():
        best = item.entry["verification"][0]
        score = f"{best['score']:.3f}" if "score" in best else "by name"
        yield item.entry["identity"], score, best["set"], best["name"]


def _images_of(finding: Finding) -> Iterator[tuple[str, str]]:
    for item in finding.items():
        entry = item.entry
        if finding.key == "outliers":
            why = f"far from its identity ({entry['score']:.2f}, median {entry['median']:.2f})"
        elif finding.key == "near_copies":
            why = f"nearly {entry['kept']} ({entry['score']:.4f}, pictures {entry['correlation']:.3f})"
        else:
            why = f"the same image as {entry['verification'][0]}"
        yield entry["image"], why
