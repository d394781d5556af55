"""Shared by `embed`, `verify` and `identify`: finding the checkpoint, remarks, and checks of output paths."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from facelit.errors import FacelitError

if TYPE_CHECKING:  # torch: not for --help
    from facelit.inference import FaceModel, Threshold

_SHOWN = 10


def open_model(
    checkpoint: str | None, device: str | None, detector: str = "mtcnn", detector_model: str | None = None
) -> FaceModel:
    """Opens the given checkpoint, or the best one of the newest run below `runs/`, and says which.

    Args:
        checkpoint: Its path.
        device: Where the network runs.
        detector: What will find faces in photos; see `facelit.align.open_detector`.
        detector_model: Its model file.

    Raises:
        FacelitError: There is no checkpoint, it cannot be used, or the detector and its file do not go together.
    """
    from facelit.inference.photos import FaceFinder

    finder = FaceFinder(name=detector, model=detector_model)  # before torch and the checkpoint are loaded
    model = _load(checkpoint, device)
    model.finder = finder
    return model


def _load(checkpoint: str | None, device: str | None) -> FaceModel:
    from facelit.checkpoints import newest_checkpoint
    from facelit.inference import load

    if checkpoint is None:
        found = newest_checkpoint()
        remark(f"Using {found} (--checkpoint names another).")
        return load(found, device)
    return load(checkpoint, device)


def remark(text: str) -> None:
    """Prints a remark to standard error, so that the output of --json stays JSON."""
    print(text, file=sys.stderr)


def remark_several_faces(faces: Mapping[str, int], asked: bool) -> None:
    """Says which face was used, unless the user chose one.

    Args:
        faces: How many there are, by photo; those with one are not mentioned.
        asked: Whether the user did.
    """
    several = [] if asked else [(photo, count) for photo, count in faces.items() if count > 1]
    for photo, count in several[:_SHOWN]:
        remark(f"{photo}: {count} faces; the largest one is taken (--which central takes the most central one).")
    if len(several) > _SHOWN:
        remark(f"and {len(several) - _SHOWN:,} more photos with several faces")


def remark_other_weights(model: FaceModel, threshold: Threshold) -> None:
    """Warns if the thresholds were measured at another training step than that of the weights."""
    if threshold.step is not None and threshold.step != model.step:
        remark(
            f"{model.checkpoint_path}: its thresholds were measured at step {threshold.step:,}, its weights are of step"
            f" {model.step:,}."
        )


def check_output(path: str | None, option: str, suffixes: tuple[str, ...]) -> None:
    """Checks an output path before the work starts.

    Raises:
        FacelitError: The file cannot be written there, or has another suffix.
    """
    if path is None:
        return
    if Path(path).suffix.lower() not in suffixes:
        raise FacelitError(f"--{option} {path}: the file's name must end with {' or '.join(suffixes)}.")
    if Path(path).is_dir():
        raise FacelitError(f"--{option} {path}: this is a folder: name a file.")
    if not Path(path).absolute().parent.is_dir():
        raise FacelitError(f"--{option} {path}: there is no folder {Path(path).parent}. Make it first.")
