"""`facelit check`: finds what is wrong with a training set before a run does."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from facelit.check.findings import find_all
from facelit.check.ignored import Ignored, find_ignored, ignored_finding, why_empty
from facelit.check.report import (
    print_summary,
    summary,
    verification_summary,
    write_report,
)
from facelit.check.scan import scan_images
from facelit.check.verification_set import read_verification_sets
from facelit.errors import FacelitError
from facelit.pictures.findings import Finding
from facelit.storage.base import CropStore
from facelit.storage.files import check_writable, replace_file
from facelit.storage.folder import FolderStore
from facelit.storage.open import open_store

_STOPS_TRAINING = ("unreadable", "wrong_size")


def check(
    data: str,
    against: str | list[str] | None = None,
    pairs: str | None = None,
    min_images: int = 2,
    report: str | None = None,
    sheet: str | None = None,
    jobs: int | None = None,
) -> int:
    """Scans a training set for defects; writes a report and a contact sheet.

    Reads every image and finds unreadable files, wrong sizes, grey images, exact duplicates (of the decoded pixels) within
    and across identities, identities with too few images, people who are also in a verification set, and anything in the
    folder that is not part of the set (other kinds of files, images one folder too deep, empty identities). Prints a table.
    Exit status 1 means that some images would stop training: unreadable ones, or of the wrong size.

    Args:
        data: The training set: root/<identity>/<image>, a folder that `facelit pack` wrote, or an InsightFace set.
        against: A verification set whose people and images must not be in the training set, or a list of several: a folder
            root/<name>/<image>, an InsightFace .bin (images only), or a .txt with one name per line or in the format of LFW's
            people.txt (names only).
        pairs: A pairs file in LFW's format: of the folders in `against` only the people named in it count; without such a
            folder the names themselves are compared.
        min_images: Report identities with fewer readable images than this.
        report: Where to write the full report, as JSON, outside the data; by default check-<name of the data>.json in the
            current folder.
        sheet: Where to write a picture with examples of each finding; by default check-<name of the data>.png.
        jobs: The number of processes; by default one per core.

    Returns:
        0, or 1 if some images would stop training.

    Raises:
        FacelitError: A path is wrong, or an option is out of range.
    """
    name = Path(data).resolve().name or "data"
    report_path, sheet_path = Path(report or f"check-{name}.json"), Path(sheet or f"check-{name}.png")
    against = [against] if isinstance(against, str) else against or []
    _check_options(min_images, {"report": report_path, "sheet": sheet_path}, [data, *against])
    store, ignored = _open(data)
    verification = read_verification_sets(against, pairs, jobs)
    scan = scan_images(store, jobs=jobs)
    findings = find_all(store, scan, verification, min_images, ignored.empty if ignored else ())
    findings += [ignored_finding(ignored)] if ignored else []
    facts, compared = summary(store, scan), verification_summary(verification)
    console = Console()
    print_summary(console, facts, compared, findings)
    if ignored and str(ignored):
        console.print(f"Ignored: {ignored}.", markup=False, highlight=False, soft_wrap=True)
    if not verification:
        console.print("Not compared with a verification set: name one with --against.")
    write_report(report_path, facts, min_images, compared, findings)
    _write_sheet(
        sheet_path, findings, f"facelit check {data}: {len(store):,} images of {len(store.identities):,} identities"
    )
    console.print(f"Full report: {report_path}\nPictures: {sheet_path}", markup=False, highlight=False, soft_wrap=True)
    return int(any(finding.count for finding in findings if finding.key in _STOPS_TRAINING))


check.examples = [  # type: ignore[attr-defined]  # read by facelit.cli.parser
    "datasets/vggface2/train",
    "datasets/vggface2/train --against datasets/lfw/aligned_112 --pairs datasets/lfw/pairs.txt",
    "datasets/faces_emore --against datasets/lfw.bin datasets/cfp_fp.bin --report faces.json --sheet faces.png",
]


def _check_options(min_images: int, outputs: dict[str, Path], sets: Sequence[str]) -> None:
    """Checks the options before the scan, which may take hours."""
    if min_images < 1:
        raise FacelitError(f"option min_images: must be at least 1, not {min_images}.")
    for option, path in outputs.items():
        if os.path.isdir(path):
            raise FacelitError(f"{path} (option {option}) is a folder: name a file.")
        if not path.parent.is_dir():
            raise FacelitError(f"{path.parent}: there is no such folder (option {option}). Create it first.")
    for folder in sets:
        # An image directly in the folder, as the sheet would be, makes it an invalid set.
        inside = {
            option: path
            for option, path in outputs.items()
            if path.parent.resolve().is_relative_to(Path(folder).resolve())
        }
        if inside:
            raise FacelitError(
                f"{' and '.join(map(str, inside.values()))} would be inside the data, {folder}: choose another place with"
                f" {' and '.join(f'--{option} FILE' for option in inside)}."
            )
    for option, path in outputs.items():
        check_writable(path, option)


def _open(data: str) -> tuple[CropStore, Ignored | None]:
    """Opens a training set, and finds the files of a plain folder that are not part of it."""
    store = open_store(data)
    is_folder = isinstance(store, FolderStore)
    if not len(store):
        instead = why_empty(store.path) if is_folder else ""
        raise FacelitError(
            f"{data}: no images here. The expected layout is root/<identity>/<image> with .jpg, .png or .webp images."
            f" {instead}".rstrip()
        )
    return store, find_ignored(store.path) if is_folder else None


def _write_sheet(path: Path, findings: list[Finding], title: str) -> None:
    from facelit.pictures.contact_sheet import contact_sheet, save_png  # matplotlib: not for --help

    figure = contact_sheet(findings, title)
    with replace_file(path) as file:
        save_png(figure, file)
