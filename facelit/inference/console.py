"""Shared by `embed`, `verify` and `identify`: finding the checkpoint, remarks, and checking output paths."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from facelit.errors import FacelitError
from facelit.storage.files import check_writable
from facelit.storage.photo_files import photo_files
from facelit.storage.text import one_line

if TYPE_CHECKING:  # they import torch, which --help must not wait for
    from facelit.inference import FaceModel, Threshold

_SHOWN = 10


def open_model(
    checkpoint: str | None, device: str | None, detector: str = "mtcnn", detector_model: str | None = None
) -> FaceModel:
    """Opens a checkpoint: the given one, or the best of the newest run below `runs/`, whose path is printed.

    Args:
        checkpoint: The checkpoint's path.
        device: The device for the network.
        detector: The face detector for photos; see `facelit.align.open_detector`.
        detector_model: The detector's model file.

    Raises:
        FacelitError: There is no checkpoint, it cannot be used, or the detector and its model file do not match.
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
        remark(f"Using {found} (choose another with --checkpoint).")
        return load(found, device)
    return load(checkpoint, device)


def photos_in(folder: Path) -> list[Path]:
    """All photos below the folder that a command was given; see `facelit.storage.photo_files.photo_files`.

    Raises:
        FacelitError: There is no such folder, or no photo in it.
    """
    found = photo_files(folder)
    if not found:
        from facelit.storage.open import why_no_files  # pyarrow: not for --help

        state = "holds no photo" if folder.is_dir() else "is not a folder" if folder.exists() else "does not exist"
        raise FacelitError(f"{folder} {state}. {why_no_files(folder)}".rstrip())
    return found


def remark(text: str) -> None:
    """Prints a remark to standard error, so that the output of --json stays JSON; on one line, whatever names are in it."""
    print(one_line(text), file=sys.stderr)


def remark_several_faces(faces: Mapping[str, int], asked: bool) -> None:
    """Says which face was used in photos with several, unless the user chose.

    Args:
        faces: The number of faces by photo.
        asked: Whether the user chose which face to use.
    """
    several = [] if asked else [(photo, count) for photo, count in faces.items() if count > 1]
    for photo, count in several[:_SHOWN]:
        remark(f"{photo}: {count} faces; the largest is used (--which central uses the most central).")
    if len(several) > _SHOWN:
        remark(f"and {len(several) - _SHOWN:,} more photos with several faces")


def remark_drawings(model: FaceModel, threshold: Threshold | None = None) -> None:
    """Warns if the network was trained on drawn faces, or else if the threshold, where there is one, was measured on some."""
    if model.drawings.trained:
        remark(
            f"{model.checkpoint_path} was trained on facelit's drawn faces: what it says about photos of people means nothing."
        )
    elif threshold is not None and threshold.measured_on in model.drawings.measured:
        remark(
            f"{model.checkpoint_path}: its threshold of {threshold.measured_on} was measured on drawn faces and does not hold for"
            " photos (--on names another set, --threshold a limit of your own)."
        )


def remark_other_weights(model: FaceModel, threshold: Threshold) -> None:
    """Warns if the thresholds were measured at a different training step from the weights'."""
    if threshold.step is not None and threshold.step != model.step:
        remark(
            f"{model.checkpoint_path}: its thresholds were measured at step {threshold.step:,}, its weights are from step"
            f" {model.step:,}."
        )


def check_output(path: str | None, option: str, suffixes: tuple[str, ...]) -> None:
    """Checks an output path before the work starts.

    Raises:
        FacelitError: The file cannot be written there, or has a different suffix.
    """
    if path is None:
        return
    if Path(path).suffix.lower() not in suffixes:
        raise FacelitError(f"--{option} {path}: the file's name must end with {' or '.join(suffixes)}.")
    if Path(path).is_dir():
        raise FacelitError(f"--{option} {path} is a folder: name a file.")
    if not Path(path).absolute().parent.is_dir():
        raise FacelitError(f"--{option} {path}: there is no folder {Path(path).parent}. Create it first.")
    check_writable(Path(path), option)
