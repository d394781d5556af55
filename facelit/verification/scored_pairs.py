"""The scores of one network on one verification set, as a file that can be compared and drawn later."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from facelit.errors import FacelitError
from facelit.verification.protocol import VerificationResult, evaluate_pairs

_FORMAT = "facelit scored pairs 1"
_WAY_OUT = "`facelit suites ... --out DIR` writes such files; run it again."
_UNREADABLE = (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, KeyError, OverflowError, RuntimeError)
"""What `np.load` raises on a file that is damaged, or is something else."""


@dataclass(frozen=True, eq=False)
class ScoredPairs:
    """A verification set's pairs, each with its score by one network.

    Attributes:
        name: The set: "lfw", "cfp_fp", ...
        similarities: Cosine similarity of each pair, float32 (N,).
        genuine: True for genuine pairs, bool (N,).
        folds: Fold of each pair, int64 (N,).
        first: Name of each pair's first image, length N: a path relative to `root`; a name of another kind, such as `lfw.bin[12]`, where
            `root` is None; or "" where it is unknown.
        second: Likewise, of the second image.
        root: Folder of the images; None where they are not files of their own.

    Raises:
        FacelitError: The lengths differ, or a similarity is NaN or infinite.
    """

    name: str
    similarities: npt.NDArray[np.float32]
    genuine: npt.NDArray[np.bool_]
    folds: npt.NDArray[np.int64]
    first: list[str]
    second: list[str]
    root: str | None

    def __post_init__(self) -> None:
        _check(self, f"scores of {self.name}")

    def __len__(self) -> int:
        return len(self.similarities)

    def evaluate(self) -> VerificationResult:
        """The figures of LFW's protocol; see `evaluate_pairs`.

        Raises:
            FacelitError: All pairs are of one kind, or there is only one fold.
        """
        try:
            return evaluate_pairs(self.similarities, self.genuine, self.folds)
        except ValueError as error:
            raise FacelitError(f"scores of {self.name}: {error}.") from None

    def save(self, file: str | os.PathLike[str] | BinaryIO) -> None:
        """Writes everything as a compressed `.npz` without pickles.

        Args:
            file: A path that ends with `.npz`, or a file open for writing: that of `facelit.storage.files.replace_file`, where a half
                written file must never be seen.
        """
        np.savez_compressed(
            file,
            format=np.array(_FORMAT),
            name=np.array(self.name),
            similarities=np.asarray(self.similarities, np.float32),
            genuine=np.asarray(self.genuine, np.bool_),
            folds=np.asarray(self.folds, np.int64),
            first=np.array(self.first, np.str_),
            second=np.array(self.second, np.str_),
            root=np.array(self.root or ""),
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ScoredPairs:
        """Reads what `save` wrote; nothing in the file is run.

        Raises:
            FacelitError: The file is absent, damaged or something else, or a score in it is NaN or infinite.
        """
        path = Path(path)
        if not path.is_file():
            raise FacelitError(f"scores not found: {path}. {_WAY_OUT}")
        try:
            content = np.load(path, allow_pickle=False)
            if not isinstance(content, np.lib.npyio.NpzFile):
                raise ValueError("it holds a single array")
            with content:
                arrays = {name: content[name] for name in content.files}
        except _UNREADABLE as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:120].rstrip(".")
            raise FacelitError(f"{path}: not a file of scores, or a damaged one ({reason}). {_WAY_OUT}") from None
        kinds = {
            "similarities": "f",
            "genuine": "b",
            "folds": "i",
            "first": "U",
            "second": "U",
            "root": "U",
            "name": "U",
        }
        if str(arrays.get("format", "")) != _FORMAT or any(
            name not in arrays or arrays[name].dtype.kind != kind for name, kind in kinds.items()
        ):
            raise FacelitError(f"{path}: these are not scores that facelit wrote. {_WAY_OUT}")
        return cls._of(arrays, path)

    @classmethod
    def _of(cls, arrays: Mapping[str, npt.NDArray[Any]], path: Path) -> ScoredPairs:
        try:
            return cls(
                str(arrays["name"]),
                arrays["similarities"],
                arrays["genuine"],
                arrays["folds"],
                arrays["first"].tolist(),
                arrays["second"].tolist(),
                str(arrays["root"]) or None,
            )
        except FacelitError as error:
            raise FacelitError(f"{path}: {error} {_WAY_OUT}") from None


def _check(pairs: ScoredPairs, what: str) -> None:
    lengths = [len(part) for part in (pairs.genuine, pairs.folds, pairs.first, pairs.second)]
    if np.ndim(pairs.similarities) != 1 or lengths != [len(pairs.similarities)] * 4:
        raise FacelitError(
            f"{what}: {np.shape(pairs.similarities)} similarities, but {lengths} kinds, folds and names."
        )
    broken = int((~np.isfinite(pairs.similarities)).sum())
    if broken:
        raise FacelitError(f"{what}: {broken:,} of {len(pairs.similarities):,} similarities are NaN or infinite.")
