"""`facelit report`: one HTML page about runs and checkpoints."""

from __future__ import annotations

from pathlib import Path

from facelit.errors import FacelitError
from facelit.inference.console import remark
from facelit.storage.files import check_writable, replace_file

_MOST_PAIRS, _SHOWN = 100, 3


def report(
    what: list[str], out: str = "report", pairs: int = 8, no_pictures: bool = False, title: str | None = None
) -> int:
    """Writes one HTML page about runs and checkpoints, to look at in a browser.

    For each verification set: ROC and DET of the checkpoints over one another, a histogram of the scores with a threshold to drag, a
    table of figures with 95 % intervals, the hardest pairs with their pictures, and whether the better of two checkpoints is
    better (McNemar's test). For runs: training curves, validation figures and configurations. The page is a single file that needs no
    network; it follows light and dark, fits a phone and prints.

    Args:
        what: Folders of runs, folders that `facelit suites` wrote, or checkpoints whose scores lie in one of those.
        out: The folder to write index.html into.
        pairs: The number of hardest pairs of each kind; 0 for none.
        no_pictures: Leave the pictures of the hardest pairs out: their names and scores remain.
        title: The page's heading.

    Returns:
        0.

    Raises:
        FacelitError: A folder is neither of these, a checkpoint has no scores, or the page cannot be written.
    """
    if not 0 <= pairs <= _MOST_PAIRS:
        raise FacelitError(f"--pairs must be 0 to {_MOST_PAIRS}, not {pairs}.")
    from facelit.report.hardest import Pictures
    from facelit.report.page import library, write_page
    from facelit.report.run_section import without_validation
    from facelit.report.sources import find

    target = _target(Path(out))
    library()
    found = find(what)
    pictures = Pictures(not no_pictures)
    page = write_page(found, title or "Face verification report", pairs, pictures).encode()
    with replace_file(target) as file:
        file.write(page)
    for run in found.runs:
        if not run.sets:
            remark(without_validation(run))
    _remark_missing(pictures.missing)
    if any(run.configs for run in found.runs):
        remark("It contains the runs' whole configurations, including paths: read them before you publish it.")
    print(f"{target}: {len(page) / 1e6:.1f} MB, one file that needs no network. Open it in a browser.")
    return 0


report.examples = [  # type: ignore[attr-defined]  # read by facelit.cli.parser
    "runs/center/version_0",
    "suites --out report",
    "runs/center/version_0 suites/center suites/arcface --no_pictures",
]


def _target(folder: Path) -> Path:
    """The page's path, whose folder is there and which replaces nothing but a page of ours."""
    from facelit.report.page import MARK

    target = folder / "index.html"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if target.exists() and MARK.encode() not in target.read_bytes()[:100_000]:
            raise FacelitError(f"{target} is there, and no report of facelit's: name another folder with --out.")
    except OSError as error:
        raise FacelitError(f"--out {folder}: cannot write into this folder ({error.strerror or error}).") from None
    check_writable(target, "out")
    return target


def _remark_missing(missing: dict[str, str]) -> None:
    if missing:
        remark(f"{len(missing)} pictures of hardest pairs are left out:")
    for place, reason in list(missing.items())[:_SHOWN]:
        remark(f"  {place}: {reason}")
    if len(missing) > _SHOWN:
        remark(f"  and {len(missing) - _SHOWN} more")
