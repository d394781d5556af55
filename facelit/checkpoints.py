"""Reading checkpoints safely, with a clear error if one does not fit."""

from __future__ import annotations

import os
import pickle
import shlex
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from facelit.errors import FacelitError
from facelit.storage.downloads import what_lies_instead
from facelit.storage.files import replacing

CHECKPOINT_KEY = "facelit"
"""Where a checkpoint keeps facelit's own entries: `num_identities`, `rng_states`, `calibration`, `drawn`, `identity_places`, `weight_average`."""


_PIECE = 1 << 20
"""Bytes that are read at a time."""

SKIP_CHECKSUMS = "FACELIT_SKIP_CHECKSUMS"
"""Environment variable: where it is set and not empty, checkpoints are read without comparing their checksums."""

UNREADABLE = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    RuntimeError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    OSError,
    OverflowError,
    AttributeError,
)
"""What `torch.load` and `zipfile` raise on a file that is damaged, or is something else."""

_TYPES: Mapping[tuple[str, ...], type | tuple[type, ...]] = {
    ("state_dict",): dict,
    ("state_dict", "*"): Tensor,
    ("hyper_parameters",): dict,
    ("callbacks",): dict,
    ("loops",): dict,
    ("optimizer_states",): list,
    ("optimizer_states", "*"): dict,
    ("optimizer_states", "*", "state"): dict,
    ("optimizer_states", "*", "state", "*"): dict,
    ("optimizer_states", "*", "param_groups"): list,
    ("optimizer_states", "*", "param_groups", "*"): dict,
    ("optimizer_states", "*", "param_groups", "*", "params"): list,
    ("lr_schedulers",): list,
    ("lr_schedulers", "*"): dict,
    ("epoch",): int,
    ("global_step",): int,
    ("pytorch-lightning_version",): str,
    (CHECKPOINT_KEY,): dict,
    (CHECKPOINT_KEY, "num_identities"): (int, type(None)),
    (CHECKPOINT_KEY, "rng_states"): dict,
    (CHECKPOINT_KEY, "rng_states", "*"): Tensor,
    (CHECKPOINT_KEY, "identity_places"): (list, tuple),
    (CHECKPOINT_KEY, "identity_places", "*"): int,
    (CHECKPOINT_KEY, "weight_average"): dict,
    (CHECKPOINT_KEY, "weight_average", "raw"): dict,
    (CHECKPOINT_KEY, "weight_average", "raw", "*"): Tensor,
    (CHECKPOINT_KEY, "weight_average", "updates"): int,
    (CHECKPOINT_KEY, "calibration"): dict,
    (CHECKPOINT_KEY, "calibration", "*"): dict,
    (CHECKPOINT_KEY, "calibration", "*", "pairs"): int,
    (CHECKPOINT_KEY, "calibration", "*", "step"): int,
    (CHECKPOINT_KEY, "calibration", "*", "thresholds"): dict,
    (CHECKPOINT_KEY, "calibration", "*", "thresholds", "*"): dict,
    (CHECKPOINT_KEY, "calibration", "*", "thresholds", "*", "*"): (int, float),
}
"""What facelit relies on in a checkpoint, where it is present; a star stands for each entry of a dict or list."""


def read_checkpoint(path: Path | str) -> dict[str, Any]:
    """Loads a checkpoint without executing anything in it (`weights_only=True`).

    The checksums that torch writes into the file are compared, which reads it once more; `SKIP_CHECKSUMS` says how to do
    without. (A checkpoint in torch's format from before 1.6, which is not a zip file, has none.)

    Raises:
        FacelitError: The file is absent, damaged, or not a Lightning checkpoint.
    """
    path = Path(path)
    if path.is_dir():
        raise FacelitError(f"{path}: this is a folder, not a checkpoint.")
    if not path.is_file():
        raise FacelitError(f"checkpoint not found: {path}")
    if path.suffix.lower() in (".onnx", ".safetensors"):
        command = shlex.join(["facelit", "import", str(path), str(path.with_suffix(".ckpt"))])
        raise FacelitError(f"{path} is not a checkpoint. Turn it into one: {command}")
    if path.suffix.lower() == ".pt2":
        raise FacelitError(
            f"{path} is a torch.export program, not a checkpoint. Name the checkpoint that it was exported from."
        )
    try:
        is_zip = zipfile.is_zipfile(path)
        if is_zip:
            _check_entries(path)
        checkpoint = torch.load(path, weights_only=True, map_location="cpu", mmap=is_zip)
    except UNREADABLE as error:
        reason = str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
        reason = what_lies_instead(path) or reason
        raise FacelitError(f"{path}: not a checkpoint, or a damaged one ({reason}).") from None
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise FacelitError(f"{path}: this file holds no Lightning checkpoint (no `state_dict` in it).")
    _check_types(checkpoint, path)
    return checkpoint


def _check_entries(path: Path) -> None:
    """Compares the checksum of each file in a zip file; raises one of `UNREADABLE` where one differs."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("it is compressed, as no checkpoint of torch's is")
        if sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise ValueError("its entries are larger than the file")
        if os.environ.get(SKIP_CHECKSUMS):
            return
        for entry in entries:
            with archive.open(entry) as file:
                while file.read(_PIECE):  # compares at the end
                    pass


def _check_types(checkpoint: Mapping[str, Any], path: Path) -> None:
    for place, expected in _TYPES.items():
        for name, value in _values_at(checkpoint, place):
            if name.endswith("_extra_state"):  # torch lets a module keep anything there
                continue
            if not isinstance(value, expected) or (isinstance(value, bool) and expected is int):
                kinds = expected if isinstance(expected, tuple) else (expected,)
                wanted = " or ".join(kind.__name__ for kind in kinds)
                raise FacelitError(
                    f"{path}: not a checkpoint of facelit's, or a damaged one (`{name}` is of type {type(value).__name__},"
                    f" not {wanted})."
                )


def _values_at(value: Any, place: tuple[str, ...], name: str = "") -> Iterator[tuple[str, Any]]:
    """The values at a place of `_TYPES` with their names, as far as there are any; earlier places have been checked."""
    if not place:
        yield name, value
        return
    entries = value.items() if isinstance(value, Mapping) else enumerate(value)
    for key, inner in entries:
        if place[0] in ("*", key):
            yield from _values_at(inner, place[1:], f"{name}.{key}" if name else str(key))


def num_identities(checkpoint: Mapping[str, Any]) -> int | None:
    """Number of identities that the checkpoint's head has parameters for; None if it has none."""
    count: int | None = checkpoint.get(CHECKPOINT_KEY, {}).get("num_identities")
    return count


def store_calibration(path: Path | str, calibration: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes thresholds into a checkpoint file and leaves everything else in it unchanged.

    The file is replaced atomically. Thresholds of other sets are kept if they were measured on the same weights.

    Args:
        path: The checkpoint.
        calibration: By verification set; see `facelit.verification.calibration`. Its `step` becomes the checkpoint's.

    Raises:
        FacelitError: The file cannot be read or written.
    """
    path = Path(path)
    checkpoint = read_checkpoint(path)
    own = checkpoint.get(CHECKPOINT_KEY, {})
    step = checkpoint.get("global_step", 0)
    measured = {name: {**entry, "step": step} for name, entry in calibration.items()}
    others = {
        name: entry
        for name, entry in own.get("calibration", {}).items()
        if name not in measured and entry.get("step") == step
    }
    checkpoint[CHECKPOINT_KEY] = {**own, "calibration": {**measured, **others}}
    try:
        with replacing(path) as temporary:
            torch.save(checkpoint, temporary)
    except (OSError, RuntimeError) as error:  # torch's writer raises the latter where the disk is full
        reason = str(error).strip().splitlines()[0][:120]
        raise FacelitError(f"{path}: cannot write the thresholds into this checkpoint ({reason}).") from None


def check_fits(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], path: Path | str, what: str) -> None:
    """Compares names and shapes, and raises a `FacelitError` that names the first differences."""
    wrong = [
        f"{name} is {_shape(found.get(name))} in the checkpoint and {_shape(expected.get(name))} here"
        for name in sorted({*expected, *found})
        if _shape(found.get(name)) != _shape(expected.get(name))
    ]
    if wrong:
        more = f", and {len(wrong) - 2} more" if len(wrong) > 2 else ""
        raise FacelitError(f"{path} does not fit {what}: {'; '.join(wrong[:2])}{more}.")


def find_checkpoint(which: str, folders: Sequence[Path]) -> Path:
    """Resolves `last` or `best` to a file.

    Args:
        which: "last" for the newest `last.ckpt`, "best" for the best checkpoint that its run kept.
        folders: Folders to search for checkpoints.

    Raises:
        FacelitError: There is none.
    """
    existing = [path for folder in folders if (path := folder / "last.ckpt").is_file()]
    if not existing:
        several = f"{folders[0].parent.parent}/*/{folders[0].name}" if len(folders) > 1 else ""
        where = several or (folders[0] if folders else "the log folder: it holds no run")
        raise FacelitError(f"--ckpt_path {which}: there is no last.ckpt in {where}. Name a file, or start without.")
    last = max(existing, key=lambda path: path.stat().st_mtime)
    if which == "last":
        return last
    for state in read_checkpoint(last).get("callbacks", {}).values():
        best = state.get("best_model_path") if isinstance(state, dict) else None
        if best and isinstance(best, str):
            # If the run was moved, its best checkpoint is still next to its last one.
            return Path(best) if Path(best).is_file() else last.parent / Path(best).name
    raise FacelitError(f"--ckpt_path best: {last} knows of no best checkpoint. Use --ckpt_path last, or name a file.")


def newest_checkpoint(root: Path | str = "runs") -> Path:
    """The best checkpoint of the newest run below a folder, or its last one if none was chosen as best.

    Args:
        root: Folder of runs: `root/<name>/version_N/checkpoints`, or anything up to that deep.

    Raises:
        FacelitError: There is no run.
    """
    levels = ("checkpoints", "*/checkpoints", "*/*/checkpoints")
    runs = [folder.parent for level in levels for folder in sorted(Path(root).glob(level))]
    lasts = [run / "checkpoints" / "last.ckpt" for run in runs if (run / "checkpoints" / "last.ckpt").is_file()]
    if not lasts:
        raise FacelitError(
            f"no checkpoint is named, and there is no run below {root}/. Name one: --checkpoint FILE (`fit` trains one)."
        )
    last = max(lasts, key=lambda path: path.stat().st_mtime)
    try:
        best = find_checkpoint("best", [last.parent])
    except FacelitError:
        return last
    # If the run was copied, prefer the copy next to its last checkpoint.
    return next((path for path in (last.parent / best.name, best) if path.is_file()), last)


def last_finite_checkpoint(paths: Iterable[Path]) -> Path | None:
    """The newest checkpoint whose weights are all finite."""
    for path in sorted(paths, key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            state = read_checkpoint(path)["state_dict"]
        except FacelitError:
            continue
        numbers = (value for value in state.values() if isinstance(value, Tensor) and value.is_floating_point())
        if all(bool(torch.isfinite(value).all()) for value in numbers):
            return path
    return None


def _shape(value: Tensor | None) -> str:
    return "absent" if value is None else "x".join(map(str, value.shape)) or "a scalar"
