"""Embeddings of a long list of faces with known landmarks, kept in a file as they come, so that a run that was stopped goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from facelit.align.photos import read_photo
from facelit.align.template import estimate_similarity, warp
from facelit.errors import FacelitError
from facelit.inference.model import FaceModel
from facelit.inference.photo_embedding import read_ahead
from facelit.storage import system
from facelit.storage.files import cannot_write, replace_file
from facelit.storage.images import BadImageError, Crop
from facelit.storage.processes import default_jobs
from facelit.storage.progress import progress_bar

_WORTH_A_BAR = 200
_VERSION = 1
_WAYS_OUT = "Name another folder with --out, or delete that file"


class KeptEmbeddings(NamedTuple):
    """What `embed_faces` made.

    Attributes:
        embeddings: float32 (N, D), not normalised, memory-mapped; NaN for images that cannot be used.
        skipped: These images, and why.
        kept: How many embeddings an earlier run had left.
    """

    embeddings: npt.NDArray[np.float32]
    skipped: list[BadImageError]
    kept: int


def embed_faces(
    model: FaceModel,
    paths: Sequence[Path],
    landmarks: npt.NDArray[np.float32],
    digest: str,
    folder: Path,
    flip_average: bool = False,
    batch_size: int = 64,
    skip_bad: bool = False,
) -> KeptEmbeddings:
    """Crops and embeds faces, after those that an earlier run with the same weights has embedded.

    Rows are appended to `embeddings.npy` (`embeddings-flip.npy`) in `folder`, a NumPy array from its first byte on. What was made
    of what stands in a JSON file beside it. Images that could not be used are tried again.

    Args:
        model: The network.
        paths: N images.
        landmarks: In each image's pixels, float32 (N, 5, 2).
        digest: Of the list: rows of another list are refused.
        folder: Where the file lies.
        flip_average: Whether to average embeddings with the mirror image's.
        batch_size: Crops that go through the network at once.
        skip_bad: Whether to leave out images that cannot be used instead of stopping.

    Raises:
        BadImageError: An image cannot be used.
        FacelitError: The folder cannot be written, holds embeddings of something else, or another run is at work there.
    """
    name = "embeddings-flip" if flip_average else "embeddings"
    made_of = {
        "format": "facelit-embeddings",
        "version": _VERSION,
        "checkpoint": model.fingerprint,
        "faces": digest,
        "flip_average": flip_average,
        "shape": [len(paths), model.embedding_dim],
    }
    path = folder / f"{name}.npy"
    skipped: list[BadImageError] = []

    def crop(number: int) -> Crop | BadImageError:
        try:
            return _crop(paths[number], landmarks[number])
        except BadImageError as error:
            if not skip_bad:
                raise BadImageError(
                    error.place, error.reason, f"{error.way_out} To go on without such images: --on_bad_image skip."
                ) from None
            return error

    try:
        with _opened(path, made_of) as (file, start):
            todo, kept = _missing(path, start, file.tell() - start, len(paths), model.embedding_dim)
            found = read_ahead(crop, todo, default_jobs(), 4 * batch_size)
            with progress_bar("Embedding", len(paths), _WORTH_A_BAR, kept) as show:
                for first in range(0, len(todo), batch_size):
                    batch = todo[first : first + batch_size]
                    rows = np.full((len(batch), model.embedding_dim), np.nan, np.float32)
                    crops = list(islice(found, len(batch)))
                    usable = [place for place, one in enumerate(crops) if not isinstance(one, BadImageError)]
                    skipped += [one for one in crops if isinstance(one, BadImageError)]
                    if usable:
                        pixels = np.stack([crops[place] for place in usable])
                        rows[usable] = model.embed(pixels, batch_size, flip_average, normalise=False)
                    _write(file, start, batch, rows)
                    show(kept + first + len(batch))
    except OSError as error:
        raise cannot_write(path, error, " Name another folder with --out.") from None
    if len(skipped) == len(paths):
        raise FacelitError(f"none of the {len(paths):,} images can be used, for example {skipped[0]}")
    return KeptEmbeddings(np.load(path, mmap_mode="r"), skipped, kept)


def _crop(path: Path, points: npt.NDArray[np.float32]) -> Crop:
    photo = read_photo(path)
    try:
        return warp(photo, estimate_similarity(points))
    except FacelitError:
        raise BadImageError(str(path), "its five points lie in one point", "Mend the landmarks.") from None


@contextmanager
def _opened(path: Path, made_of: dict[str, Any]) -> Iterator[tuple[BinaryIO, int]]:
    """The file, locked and at its end, and where its rows start; one made of something else is refused."""
    described = path.with_suffix(".json")
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab+") as lock:
        if not system.lock(lock, wait=False):
            raise FacelitError(
                f"{path}: another run is at work on this file. Wait until it is done, or name another folder with --out."
            )
        if lock.tell() and not described.exists():
            raise FacelitError(f"{path}: nothing says what it was made of ({described.name} is gone). {_WAYS_OUT}.")
        if not lock.tell():
            with replace_file(described) as file:
                file.write((json.dumps(made_of, indent=1) + "\n").encode())
            np.lib.format.write_array_header_1_0(
                lock, {"descr": "<f4", "fortran_order": False, "shape": tuple(made_of["shape"])}
            )
            lock.flush()
        _compare(path, described, made_of)
        with open(path, "rb+") as file:
            try:
                np.lib.format.read_magic(file)
                np.lib.format.read_array_header_1_0(file)
            except ValueError:
                raise FacelitError(f"{path}: is damaged. {_WAYS_OUT}.") from None
            start = file.tell()
            file.seek(0, 2)
            yield file, start


def _compare(path: Path, described: Path, made_of: dict[str, Any]) -> None:
    try:
        found = json.loads(described.read_text(encoding="utf-8"))
        different = [name for name, value in made_of.items() if found[name] != value]
    except (ValueError, TypeError, LookupError):
        raise FacelitError(f"{described}: is damaged. {_WAYS_OUT} and {path.name}.") from None
    if different:
        words = {"checkpoint": "of another checkpoint", "faces": "of other images or landmarks"}
        what = next((words[name] for name in different if name in words), "of another version")
        raise FacelitError(f"{path}: holds embeddings {what}. {_WAYS_OUT}.")


def _missing(path: Path, start: int, size: int, count: int, length: int) -> tuple[list[int], int]:
    """Rows that are to be made, rising, and how many are not: what a kill left of the last row is not one."""
    done = min(count, size // (4 * length))
    bad = []
    if done:
        bad = np.flatnonzero(np.isnan(np.memmap(path, "<f4", "r", start, (done, length))[:, 0])).tolist()
    return [*bad, *range(done, count)], done - len(bad)


def _write(file: BinaryIO, start: int, numbers: Sequence[int], rows: npt.NDArray[np.float32]) -> None:
    """Stretch by stretch: rows that are made again lie anywhere, the others at the end."""
    cuts = (np.flatnonzero(np.diff(numbers) != 1) + 1).tolist()
    for part, first in zip(np.split(rows, cuts), [numbers[cut] for cut in (0, *cuts)], strict=True):
        file.seek(start + first * 4 * rows.shape[1])
        file.write(part.astype("<f4").tobytes())
    file.flush()
