"""`facelit card`: writes a checkpoint's model card as Markdown."""

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
    """Writes a model card: data, results with their confidence intervals, thresholds, use and limits.

    Everything in it is read from the checkpoint and its run's folder; anything missing there is marked as not recorded. If the
    card is in the run's folder, it links to the ROC pictures; elsewhere they are copied next to it.

    Args:
        checkpoint: The checkpoint; by default the best one of the newest run below runs/.
        out: The Markdown file; by default card.md next to the checkpoint.
        overwrite: Replace an existing card, including anything added to it by hand.

    Returns:
        0.

    Raises:
        FacelitError: The checkpoint does not exist or is damaged, or the card cannot be written.
    """
    from facelit.checkpoints import newest_checkpoint
    from facelit.export.card_facts import gather
    from facelit.export.card_text import card_text

    path = Path(checkpoint) if checkpoint is not None else newest_checkpoint()
    if checkpoint is None:
        remark(f"Using {path} (choose another with --checkpoint).")
    target = path.parent / "card.md" if out is None else Path(out)
    _check_target(target, overwrite)
    facts = gather(path)
    pictures = {one.name: _place_picture(one, target, facts.run_folder) for one in facts.measured}
    inside = target.parent.resolve().is_relative_to(facts.run_folder.resolve())
    configs = [_relative(config, target) for config in facts.configs] if inside else []
    text = card_text(facts, pictures, configs)
    _write(target, text.encode("utf-8"))
    print(f"{target}: the model card of {path}.")
    if facts.config_text is not None:
        print("It contains the run's whole configuration, including paths: read it before you publish it.")
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
        raise FacelitError(f"{target.parent}: there is no such folder (option out). Create it first.")
    if target.exists() and not overwrite:
        raise FacelitError(f"{target} exists already. Replace it with --overwrite, or name another file with --out.")


def _place_picture(measured: Measured, target: Path, run_folder: Path) -> str | None:
    """Copies the picture next to a card outside the run's folder; returns its path relative to the card, or None."""
    if measured.picture is None:
        return None
    if target.parent.resolve().is_relative_to(run_folder.resolve()):
        return _relative(measured.picture, target)
    copy = target.with_name(f"{target.stem}-{measured.picture.name}")
    _write(copy, measured.picture.read_bytes())
    return copy.name


def _relative(path: Path, target: Path) -> str:
    """The path relative to the card, for a link."""
    return Path(os.path.relpath(path.resolve(), target.parent.resolve())).as_posix()


def _write(target: Path, content: bytes) -> None:
    with replace_file(target) as file:
        file.write(content)
