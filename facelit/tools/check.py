"""`facelit check`: what is wrong with a training set, before a run finds out."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from facelit.errors import FacelitError
from facelit.storage.open import open_store
from facelit.tools.check_report import print_summary, replace_file, summary, verification_summary, write_report
from facelit.tools.findings import Finding, find_all
from facelit.tools.scan import scan_images
from facelit.tools.verification_set import read_verification_sets

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

    Reads every image and finds unreadable files, wrong sizes, grey images, exact duplicates (of the decoded pixels) inside
    and across identities, identities with too few images, and people who are also in a verification set. Prints a table.
    Exit status 1 means that images were found at which training would stop: unreadable ones, or of another size.

    Args:
        data: The training set: root/<identity>/<image>, a folder that `facelit pack` wrote, or an InsightFace set.
        against: A verification set whose people and images must not be in the training set, or a list of several: a folder
            root/<name>/<image>, an InsightFace .bin (images only), or a .txt with one name a line or in the form of LFW's
            people.txt (names only).
        pairs: A pairs file in LFW's format. Of the folders in `against` only the people it names count; where there is no
            such folder, their names do.
        min_images: Report identities with fewer readable images than this.
        report: Where the full report goes, as JSON; check-<name of the data>.json in the current folder where not given.
        sheet: Where a picture with examples of each finding goes; check-<name of the data>.png where not given.
        jobs: Number of processes; one per core where not given.

    Returns:
        0, or 1 where images were found at which training would stop.

    Raises:
        FacelitError: A path is wrong, or an option is out of range.
    """
    name = Path(data).resolve().name or "data"
    report_path, sheet_path = Path(report or f"check-{name}.json"), Path(sheet or f"check-{name}.png")
    _check_options(min_images, {"report": report_path, "sheet": sheet_path})
    store = open_store(data)
    if not len(store):
        raise FacelitError(
            f"{data}: no images here. The layout is root/<identity>/<image> with .jpg, .png or .webp images."
        )
    verification = read_verification_sets([against] if isinstance(against, str) else against or [], pairs, jobs)
    scan = scan_images(store, jobs=jobs)
    findings = find_all(store, scan, verification, min_images)
    facts, compared = summary(store, scan), verification_summary(verification)
    console = Console()
    print_summary(console, facts, compared, findings)
    if not verification:
        console.print("Not compared with a verification set: name one with --against.")
    write_report(report_path, facts, min_images, compared, findings)
    _write_sheet(
        sheet_path, findings, f"facelit check {data}: {len(store):,} images of {len(store.identities):,} identities"
    )
    console.print(f"Full report: {report_path}\nPictures: {sheet_path}", markup=False, highlight=False, soft_wrap=True)
    return int(any(finding.count for finding in findings if finding.key in _STOPS_TRAINING))


check.examples = [  # type: ignore[attr-defined]  # read by facelit.cli_tools
    "datasets/vggface2/train",
    "datasets/vggface2/train --against datasets/lfw/aligned_112 --pairs datasets/lfw/pairs.txt",
    "datasets/faces_emore --against datasets/lfw.bin datasets/cfp_fp.bin --report faces.json --sheet faces.png",
]


def _check_options(min_images: int, outputs: dict[str, Path]) -> None:
    """Before the hours that a large set takes, not after."""
    if min_images < 1:
        raise FacelitError(f"option min_images: must be at least 1, not {min_images}.")
    for option, path in outputs.items():
        if path.is_dir():
            raise FacelitError(f"{path} (option {option}) is a folder: name a file.")
        if not path.parent.is_dir():
            raise FacelitError(f"{path.parent}: there is no such folder (option {option}). Make it first.")


def _write_sheet(path: Path, findings: list[Finding], title: str) -> None:
    from facelit.tools.contact_sheet import contact_sheet, save_png  # matplotlib: not for --help

    figure = contact_sheet(findings, title)
    replace_file(path, lambda temporary: save_png(figure, str(temporary)))
