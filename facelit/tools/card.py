"""`facelit card`: what a checkpoint is, what it was measured at, and what it is not for, as Markdown beside it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from facelit.errors import FacelitError
from facelit.inference.console import remark
from facelit.storage.files import replace_file

if TYPE_CHECKING:
    from facelit.export.card_facts import Measured


def card(checkpoint: str | None = None, out: str | None = None, overwrite: bool = False) -> int:
    """Writes a model card: data, results with their confidence, thresholds, use and limits.

    Everything in it is read from the checkpoint and its run's folder; what they do not tell is said to be not recorded. The ROC
    pictures are linked where the card is in the run's folder, and copied beside it elsewhere.

    Args:
        checkpoint: The checkpoint; the best one of the newest run below runs/ where not given.
        out: The Markdown file; card.md beside the checkpoint where not given.
        overwrite: Replace a card that is there already, along with what was added to it by hand.

    Returns:
        0.

    Raises:
        FacelitError: The checkpoint is absent or damaged, or the card cannot be written.
    """
    from facelit.checkpoints import newest_checkpoint
    from facelit.export.card_facts import gather
    from facelit.export.card_text import card_text

    path = Path(checkpoint) if checkpoint is not None else newest_checkpoint()
    if checkpoint is None:
        remark(f"Using {path} (--checkpoint names another).")
    target = path.parent / "card.md" if out is None else Path(out)
    _check_target(target, overwrite)
    facts = gather(path)
    pictures = {one.name: _place_picture(one, target, facts.run_folder) for one in facts.measured}
    inside = target.parent.resolve().is_relative_to(facts.run_folder.resolve())
    configs = [_relative(config, target) for config in facts.configs] if inside else []
    text = card_text(facts, pictures, configs)
    _write(target, text.encode("utf-8"))
    print(f"{target}: the card of {path}.")
    if facts.config_text is not None:
        print("It contains the run's whole configuration, with the paths in it: read it before you publish it.")
    return 0


card.examples = [  # type: ignore[attr-defined]  # read by facelit.cli.parser
    "",
    "--checkpoint runs/center/version_0/checkpoints/last.ckpt",
    "--checkpoint runs/center/version_0/checkpoints/last.ckpt --out published/README.md",
]


def _check_target(target: Path, overwrite: bool) -> None:
    if target.is_dir():
        raise FacelitError(f"{target} (option out) is a folder: name a file.")
    if not target.parent.is_dir():
        raise FacelitError(f"{target.parent}: there is no such folder (option out). Make it first.")
    if target.exists() and not overwrite:
        raise FacelitError(f"{target} exists already. Replace it with --overwrite, or name another file with --out.")


def _place_picture(measured: Measured, target: Path, run_folder: Path) -> str | None:
    """The picture's path as the card links it, relative to the card; None where there is no picture."""
    if measured.picture is None:
        return None
    if target.parent.resolve().is_relative_to(run_folder.resolve()):
        return _relative(measured.picture, target)
    copy = target.with_name(f"{target.stem}-{measured.picture.name}")
    _write(copy, measured.picture.read_bytes())
    return copy.name


def _relative(path: Path, target: Path) -> str:
    """As a link in the card."""
    return Path(os.path.relpath(path.resolve(), target.parent.resolve())).as_posix()


def _write(target: Path, content: bytes) -> None:
    with replace_file(target) as file:
        file.write(content)
