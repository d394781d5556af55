"""Embeds many photos, for `embed`, `evaluate` and `cluster`."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from facelit.errors import FacelitError
from facelit.inference.model import FaceModel
from facelit.inference.photos import Crops, FoundFaces, Which
from facelit.storage.images import BadImageError
from facelit.storage.processes import default_jobs
from facelit.storage.progress import progress_bar

_WORTH_A_BAR = 200


class Faces(NamedTuple):
    """The faces in some photos.

    Attributes:
        photos: The index of each face's photo, int64 (N,), non-decreasing.
        embeddings: float32 (N, D), L2-normalised.
        skipped: Photos that cannot be used, and why.
        several: Number of faces by photo, for photos with more than one.
    """

    photos: npt.NDArray[np.int64]
    embeddings: npt.NDArray[np.float32]
    skipped: list[BadImageError]
    several: dict[str, int]

    def require_any(self, count: int) -> Faces:
        """Returns itself, if there is any face.

        Args:
            count: The number of photos, for the message.

        Raises:
            FacelitError: No photo could be used.
        """
        if not len(self.photos):
            some = f", for example {self.skipped[0]}" if self.skipped else ""
            raise FacelitError(f"none of the {count:,} photos can be used{some}")
        return self


def embed_photos(
    model: FaceModel,
    paths: Sequence[Path],
    aligned: bool = False,
    which: Which = "largest",
    flip_average: bool = False,
    batch_size: int = 64,
    keep: Callable[[int, Crops], None] = lambda photo, crops: None,
) -> Faces:
    """Finds and embeds the faces in photos, batch by batch, with a progress bar.

    Args:
        model: The network.
        paths: The photos.
        aligned: Whether they are crops already.
        which: The face to use in a photo with several.
        flip_average: Whether to average embeddings with the mirror image's.
        batch_size: The number of photos that go through the network at once.
        keep: Called with each photo's index and the crops of its faces.
    """

    def find(path: Path) -> FoundFaces | BadImageError:
        try:
            return model.find_faces(path, aligned, which)
        except BadImageError as error:
            return error

    skipped: list[BadImageError] = []
    several: dict[str, int] = {}
    owners: list[int] = []
    rows: list[npt.NDArray[np.float32]] = []
    # Crops are decoded ahead in threads; a detector must not be called by two threads at once.
    found = iter(read_ahead(find, paths, default_jobs(), 4 * batch_size) if aligned else map(find, paths))
    with progress_bar("Embedding", len(paths), _WORTH_A_BAR) as show:
        for start in range(0, len(paths), batch_size):
            crops: list[npt.NDArray[np.uint8]] = []
            for number, faces in enumerate(islice(found, batch_size), start=start):
                if isinstance(faces, BadImageError):
                    skipped.append(faces)
                    continue
                if faces.in_photo > 1:
                    several[str(paths[number])] = faces.in_photo
                crops += faces.crops
                owners += [number] * len(faces.crops)
                keep(number, np.stack(faces.crops))
            if crops:
                rows.append(model.embed(np.stack(crops), batch_size, flip_average))
            show(min(start + batch_size, len(paths)))
    embeddings = np.concatenate(rows) if rows else np.empty((0, model.embedding_dim), np.float32)
    return Faces(np.array(owners, np.int64), embeddings, skipped, several)


def read_ahead(read: Callable[[Any], Any], items: Sequence[Any], threads: int, ahead: int) -> Iterator[Any]:
    """`map(read, items)` in several threads, in order, with at most `ahead` results waiting."""
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[Any]] = deque()
        for item in items:
            waiting.append(pool.submit(read, item))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
