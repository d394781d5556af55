"""`facelit check`: finds what is wrong with a training set before a run does."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from facelit.check.faces import OUTLIER, Embed, Faces, embed_faces, usable_rows
from facelit.check.findings import border_warning, find_all
from facelit.check.ignored import Ignored, find_ignored, ignored_finding, why_empty
from facelit.check.label_noise import noise_findings
from facelit.check.lists import Lists, write_lists
from facelit.check.overlap import Overlap, borderline_findings, find_overlap, overlap_finding
from facelit.check.report import (
    print_summary,
    summary,
    verification_summary,
    write_report,
)
from facelit.check.scan import Scan, scan_images
from facelit.check.verification_set import VerificationSet, read_verification_sets
from facelit.errors import FacelitError
from facelit.pictures.contact_sheet import check_images
from facelit.pictures.findings import Finding
from facelit.storage.base import CropStore
from facelit.storage.console import open_console
from facelit.storage.files import check_writable, replace_file
from facelit.storage.folder import FolderStore
from facelit.storage.open import open_store
from facelit.storage.text import one_line

_STOPS_TRAINING = ("unreadable", "wrong_size")
_BORDERLINE_IMAGES = 64
_SHEET_IMAGES = 8


def check(
    data: str,
    against: str | list[str] | None = None,
    pairs: str | list[str] | None = None,
    checkpoint: str | None = None,
    threshold: float | None = None,
    outlier: float | None = None,
    near_copy: float | None = None,
    min_images: int = 2,
    identity_depth: int = 1,
    report: str | None = None,
    sheet: str | None = None,
    sheet_images: int = _SHEET_IMAGES,
    device: str | None = None,
    jobs: int | None = None,
) -> int:
    """Scans a training set for defects; writes a report and a contact sheet.

    Reads every image and finds unreadable files, wrong sizes, grey images, crops that are black where the photo ended, exact
    duplicates (of the decoded pixels) within and across identities, identities with too few images, people who are also in a verification set, and anything in the
    folder that is not part of the set (other kinds of files, images one folder too deep, empty identities). Prints a table.
    Exit status 1 means that some images would stop training: unreadable ones, or of the wrong size.

    With a checkpoint it also compares faces, and finds identities that look like a person of a verification set, whatever they are
    called, crops that are far from the others of their identity, and crops that are nearly the same picture. Beside the report it
    writes them as lists that training takes (exclude_identities and exclude_images), and a picture of the pairs of people nearest
    to the threshold.

    Args:
        data: The training set: root/<identity>/<image>, a folder that `facelit pack` wrote, or an InsightFace set.
        against: A verification set whose people and images must not be in the training set, or a list of several: a folder
            root/<name>/<image>, an InsightFace .bin (images only), or a .txt with one name per line or in the format of LFW's
            people.txt (names only).
        pairs: A pairs file in LFW's format: of the folders in `against` only the people named in it count; without such a
            folder the names themselves are compared. Or a file per set, in the order of `against`, with "none" for a set without.
        checkpoint: A trained checkpoint; faces are compared by its embeddings.
        threshold: The cosine of two people's mean embeddings from which they count as one person. By default it is measured on
            each verification set: 99 in 100 of its people score lower with everybody else in the set (0.5 for sets of fewer than
            100 people, and for a .bin).
        outlier: List crops whose cosine to their identity's mean is below this (by default 0.30), or below this + 0.10 and 0.30
            below the identity's median.
        near_copy: List crops whose cosine to another one of their identity is above this. By default above 0.985, and from 0.85 on
            those whose pictures are nearly the same, too, or each other's mirror images.
        min_images: Report identities with fewer readable images than this.
        identity_depth: How many folders lead to an identity's images: 2 for data/F0001/MID1/<image>, identity F0001/MID1.
        report: Where to write the full report, as JSON, outside the data; by default check-<name of the data>.json in the
            current folder. With a checkpoint, lists and a picture go beside it, under its name: -exclude-identities.txt,
            -exclude-images.txt, -borderline.png.
        sheet: Where to write a picture with examples of each finding; by default check-<name of the data>.png.
        sheet_images: The most images of each finding in that picture.
        device: Where the checkpoint's network runs, such as cpu or cuda; by default a GPU if there is one.
        jobs: The number of processes; by default one per core.

    Returns:
        0, or 1 if some images would stop training.

    Raises:
        FacelitError: A path is wrong, or an option is out of range.
    """
    name = Path(data).resolve().name or "data"
    report_path, sheet_path = Path(report or f"check-{name}.json"), Path(sheet or f"check-{name}.png")
    against = [against] if isinstance(against, str) else against or []
    pairs = [pairs] if isinstance(pairs, str) else pairs or []
    _check_options(min_images, {"report": report_path, "sheet": sheet_path}, [data, *against])
    check_images(sheet_images)
    _check_face_options(checkpoint, {"threshold": threshold, "outlier": outlier, "near_copy": near_copy})
    if checkpoint is not None:
        for path in Lists.beside(report_path):
            check_writable(path, "report")
    store, ignored = _open(data, identity_depth)
    embed = None if checkpoint is None else _open_network(checkpoint, device)
    verification = read_verification_sets(against, pairs, jobs)
    scan = scan_images(store, jobs=jobs)
    findings = find_all(store, scan, verification, min_images, ignored.empty if ignored else ())
    compared = None
    options: dict[str, Any] = {"min_images": min_images}
    if embed is not None:
        outlier = OUTLIER if outlier is None else outlier
        options |= {"checkpoint": checkpoint, "outlier": outlier, "near_copy": near_copy}
        compared = _compare_faces(store, scan, verification, embed, threshold, outlier, near_copy)
        findings += compared.findings
    findings += [ignored_finding(ignored)] if ignored else []
    facts, told = summary(store, scan), verification_summary(verification, compared.overlaps if compared else None)
    console = open_console()
    print_summary(console, facts, told, findings)
    if warning := border_warning(scan):
        console.print(warning, markup=False, highlight=False, soft_wrap=True)
    if ignored and str(ignored):
        console.print(one_line(f"Ignored: {ignored}."), markup=False, highlight=False, soft_wrap=True)
    if not verification:
        console.print("Not compared with a verification set: name one with --against.")
    write_report(report_path, facts, options, told, findings)
    title = f"facelit check {data}: {len(store):,} images of {len(store.identities):,} identities"
    _write_sheet(sheet_path, findings, title, sheet_images)
    places = [f"Full report: {report_path}", f"Pictures: {sheet_path}"]
    if compared is not None:
        places += _write_lists(Lists.beside(report_path), data, findings, compared, sheet_images)
    console.print("\n".join(places), markup=False, highlight=False, soft_wrap=True)
    return int(any(finding.count for finding in findings if finding.key in _STOPS_TRAINING))


check.aliases = {"checkpoint": ("--ckpt_path",)}  # type: ignore[attr-defined]  # read by facelit.cli.parser
check.examples = [  # type: ignore[attr-defined]  # likewise
    "datasets/vggface2/train",
    "datasets/vggface2/train --against datasets/lfw/aligned_112 --pairs datasets/lfw/pairs.txt",
    "datasets/faces_emore --against datasets/lfw.bin datasets/cfp_fp.bin --report faces.json --sheet faces.png",
    "mine --against lfw cfp --pairs lfw/pairs.txt cfp/pairs_FP.txt --checkpoint runs/center/version_0/checkpoints/last.ckpt",
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


def _check_face_options(checkpoint: str | None, options: dict[str, float | None]) -> None:
    for option, value in options.items():
        if value is None:
            continue
        if checkpoint is None:
            raise FacelitError(f"option {option}: comparing faces takes a network: --checkpoint FILE")
        if not -1 <= value <= 1:  # NaN too
            raise FacelitError(f"option {option}: must be between -1 and 1 (cosine similarity), not {value}.")


def _open(data: str, identity_depth: int) -> tuple[CropStore, Ignored | None]:
    """Opens a training set, and finds the files of a plain folder that are not part of it."""
    store = open_store(data, identity_depth)
    is_folder = isinstance(store, FolderStore)
    if not len(store):
        instead = why_empty(store.path) if is_folder else ""
        raise FacelitError(
            f"{data}: no images here. The expected layout is root/<identity>/<image> with .jpg, .png, .webp or other images."
            f" {instead}".rstrip()
        )
    return store, find_ignored(store.path, identity_depth) if is_folder else None


def _open_network(checkpoint: str, device: str | None) -> Embed:
    from facelit.inference import load  # torch
    from facelit.inference.console import remark_drawings

    model = load(checkpoint, device)
    remark_drawings(model)
    return lambda crops: model.embed(crops, batch_size=len(crops))


class _Compared(NamedTuple):
    """What came of comparing faces; `overlaps` has an entry for each verification set."""

    store: CropStore
    faces: Faces
    overlaps: list[Overlap | None]
    findings: list[Finding]


def _compare_faces(
    store: CropStore,
    scan: Scan,
    verification: Sequence[VerificationSet],
    embed: Embed,
    threshold: float | None,
    outlier: float,
    near_copy: float | None,
) -> _Compared:
    faces = embed_faces(store, usable_rows(scan), embed, outlier, near_copy)
    overlaps = [find_overlap(faces, one, embed, threshold) for one in verification]
    found = [one for one in overlaps if one is not None]
    findings = [overlap_finding(store, faces, found)] if found else []
    return _Compared(store, faces, overlaps, findings + noise_findings(store, faces, outlier, near_copy))


def _write_lists(
    paths: Lists, data: str, findings: Sequence[Finding], compared: _Compared, sheet_images: int
) -> list[str]:
    """Writes the lists and the picture; gives what to print about them."""
    lines = write_lists(paths, data, findings)
    overlaps = [one for one in compared.overlaps if one is not None]
    if overlaps:
        shown = max(sheet_images, _BORDERLINE_IMAGES)
        borderline = borderline_findings(compared.store, compared.faces, overlaps, shown // 2)
        _write_sheet(paths.borderline, borderline, f"facelit check {data}: people nearest to the threshold", shown)
        lines.append(f"People nearest to the threshold: {paths.borderline}")
    return lines


def _write_sheet(path: Path, findings: Sequence[Finding], title: str, images: int) -> None:
    from facelit.pictures.contact_sheet import contact_sheet, save_png  # matplotlib: not for --help

    figure = contact_sheet(findings, title, images)
    with replace_file(path) as file:
        save_png(figure, file)
