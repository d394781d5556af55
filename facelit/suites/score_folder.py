"""What was measured of a checkpoint, in `<out>/<checkpoint name>`: a file of scores for each set, and `about.json`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from facelit.checkpoints import newest_checkpoint
from facelit.errors import FacelitError
from facelit.inference.console import remark
from facelit.storage.files import cannot_write, check_writable, replace_file
from facelit.suites.sets import ReadSet
from facelit.verification.scored_pairs import ScoredPairs
from facelit.version import __version__

if TYPE_CHECKING:
    from facelit.inference import FaceModel

ABOUT = "about.json"
_PIECE = 1 << 20
_DEEPEST = 20
"""Folders above a checkpoint that its name may take in."""


def find_checkpoints(named: Sequence[str]) -> list[Path]:
    """The files that are named; for a run's folder, its best checkpoint.

    Raises:
        FacelitError: There is no such file or run, or one is named twice.
    """
    paths = [_find_checkpoint(Path(name)) for name in named]
    resolved = [path.resolve() for path in paths]
    for number, path in enumerate(paths):
        if resolved[number] in resolved[:number]:
            raise FacelitError(f"{path}: this checkpoint is named twice.")
    return paths


def _find_checkpoint(path: Path) -> Path:
    if path.is_dir():
        try:
            return newest_checkpoint(path)
        except FacelitError:
            raise FacelitError(f"{path}: no run of facelit's is in this folder. Name a checkpoint.") from None
    if not path.is_file():
        raise FacelitError(f"checkpoint not found: {path}")
    return path


def checkpoint_names(paths: Sequence[Path], flip_average: bool) -> list[str]:
    """A name for each checkpoint, of its file and, where it lies in a run, of the run: `center-version_0-last`.

    Equal ones get the folders above in front. Scores of embeddings averaged with the mirror image's are others: `-flip`.
    """
    depths = [2 if path.absolute().parent.name == "checkpoints" else 0 for path in paths]
    names = list(map(_name, paths, depths))
    for _ in range(_DEEPEST):
        depths = [depth + (names.count(name) > 1) for depth, name in zip(depths, names, strict=True)]
        names = list(map(_name, paths, depths))
    twins = [names[:number].count(name) for number, name in enumerate(names)]
    names = [f"{name}-{twin + 1}" if twin else name for name, twin in zip(names, twins, strict=True)]
    return [f"{name}-flip" if flip_average else name for name in names]


def _name(path: Path, depth: int) -> str:
    """The file's name without `.ckpt`, after that many of the folders above it."""
    folders = [part for part in path.absolute().parent.parts[1:] if part != "checkpoints"]
    return "-".join([*folders[max(0, len(folders) - depth) :], path.name.removesuffix(".ckpt")])


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal.

    Raises:
        FacelitError: It cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while piece := file.read(_PIECE):
                digest.update(piece)
    except OSError as error:
        raise FacelitError(f"{path}: cannot read this checkpoint ({error.strerror or error}).") from None
    return digest.hexdigest()


def groups_path(folder: Path, name: str) -> Path:
    """Where the rates by group of a set are."""
    return folder / f"{name}.groups.json"


class ScoreFolder:
    """The folder of one checkpoint. An entry of a set is in `about.json` only while its file of scores is whole.

    Args:
        folder: Created once there is something to write.
        checkpoint: The checkpoint.
        sha256: Of its file.
        flip_average: Whether embeddings are averaged with the mirror image's.

    Raises:
        FacelitError: The folder holds something else, or scores of another checkpoint.
    """

    def __init__(self, folder: Path, checkpoint: Path, sha256: str, flip_average: bool) -> None:
        self.folder = folder
        self._identity = {"checkpoint": str(checkpoint.absolute()), "sha256": sha256, "flip_average": flip_average}
        self._outdated: list[str] = []
        self._about = self._read()

    def _read(self) -> dict[str, Any]:
        path = self.folder / ABOUT
        new = {"facelit": __version__, **self._identity, "sets": {}}
        if self.folder.exists() and not self.folder.is_dir():
            raise FacelitError(f"{self.folder}: this is a file; the scores go into a folder of that name (--out).")
        if not path.is_file():
            # Hidden: what a killed process had begun to write.
            if self.folder.is_dir() and any(not one.name.startswith(".") for one in self.folder.iterdir()):
                raise FacelitError(
                    f"{self.folder}: this folder is not one of `facelit suites`. Name another one (--out)."
                )
            return new
        try:
            about = json.loads(path.read_text(encoding="utf-8"))
            found = {name: about[name] for name in self._identity}
            entries = {name: str(entry["fingerprint"]) for name, entry in about["sets"].items()}
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            raise FacelitError(
                f"{path}: not a file of `facelit suites`, or a damaged one. Remove it, or name another folder (--out)."
            ) from None
        if found["sha256"] == self._identity["sha256"]:
            return {**about, **self._identity, "sets": {name: about["sets"][name] for name in entries}}
        if found["checkpoint"] != self._identity["checkpoint"]:
            raise FacelitError(
                f"{self.folder}: these are scores of another checkpoint, {found['checkpoint']}. Name another folder (--out)."
            )
        remark(f"{self._identity['checkpoint']} has changed: its scores in {self.folder} are measured again.")
        self._outdated = [name for name in entries if Path(name).name == name]
        return new

    def load(self, read: ReadSet) -> ScoredPairs | None:
        """The scores of a set, if they have been measured."""
        name = read.suite_set.name
        entry = self._about["sets"].get(name)
        if entry is None or entry["fingerprint"] != read.fingerprint or not self._file(name).is_file():
            return None
        try:
            pairs = ScoredPairs.load(self._file(name))
        except FacelitError as error:
            remark(f"{error} It is measured again.")
            return None
        if pairs.root != read.suite_set.root:  # the same images at another place
            pairs = replace(pairs, root=read.suite_set.root)
            self._write_scores(pairs)
        return pairs

    def make(self) -> None:
        """Makes the folder, before the work, and removes scores of weights that the checkpoint no longer has.

        Raises:
            FacelitError: It cannot be made or written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(self.folder, error, " Name another folder (--out).") from None
        check_writable(self.folder / ABOUT, "out")
        for name in self._outdated:
            self._file(name).unlink(missing_ok=True)
            groups_path(self.folder, name).unlink(missing_ok=True)

    def save(self, pairs: ScoredPairs, read: ReadSet, model: FaceModel) -> None:
        """Writes the scores of a set.

        Raises:
            FacelitError: They cannot be written.
        """
        backbone = model.backbone
        self._about.update(
            facelit=__version__,
            backbone=" of ".join(
                type(part).__name__ for part in (backbone, getattr(backbone, "network", None)) if part is not None
            ),
            parameters=sum(parameter.numel() for parameter in backbone.parameters()),
            embedding_dim=model.embedding_dim,
            step=model.step,
        )
        self._about["sets"].pop(pairs.name, None)
        self._write_about()
        groups_path(self.folder, pairs.name).unlink(missing_ok=True)  # of other scores
        self._write_scores(pairs)
        source = read.suite_set.source
        self._about["sets"][pairs.name] = {
            "fingerprint": read.fingerprint,
            "images": len(source),
            "pairs": len(pairs),
            "missing_pairs": source.num_missing_pairs,
        }
        self._write_about()

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.npz"

    def _write_scores(self, pairs: ScoredPairs) -> None:
        with replace_file(self._file(pairs.name)) as file:
            pairs.save(file)

    def _write_about(self) -> None:
        write_json(self.folder / ABOUT, self._about)


def write_json(path: Path, content: Any) -> None:
    """Writes or replaces a JSON file.

    Raises:
        FacelitError: It cannot be written.
    """
    with replace_file(path) as file:
        file.write((json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass"))
