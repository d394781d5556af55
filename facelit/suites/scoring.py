"""One network's scores on the sets; every distinct crop goes through it once."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from facelit.errors import FacelitError
from facelit.inference import FaceModel
from facelit.inference.photo_embedding import read_ahead
from facelit.storage.processes import default_jobs
from facelit.storage.progress import progress_bar
from facelit.suites.sets import ReadSet
from facelit.verification.embeddings import cosine_scores
from facelit.verification.scored_pairs import ScoredPairs

_WORTH_A_BAR = 200


class PairScorer:
    """Scores sets with one network, and keeps the embeddings: CFP-FF and CFP-FP share their frontal images.

    Args:
        model: The network.
        label: What to call it in messages.
        flip_average: Whether to average embeddings with the mirror image's.
        batch_size: The number of crops that go through the network at once.
    """

    def __init__(self, model: FaceModel, label: str, flip_average: bool = False, batch_size: int = 64) -> None:
        self.model = model
        self.label = label
        self.flip_average = flip_average
        self.batch_size = batch_size
        self._embeddings: dict[bytes, npt.NDArray[np.float32]] = {}

    def score(self, read: ReadSet) -> ScoredPairs:
        """Cosine similarity of each pair.

        Raises:
            FacelitError: The network gives NaN or infinity, or an image can no longer be read.
        """
        name, source, root, _ = read.suite_set
        self._embed(read)
        rows = torch.from_numpy(np.stack([self._embeddings[digest] for digest in read.digests]))
        scores = cosine_scores(rows, source.first, source.second).astype(np.float32)
        first, second = read.suite_set.pair_names()
        try:
            return ScoredPairs(name, scores, source.is_same, source.folds, first, second, root)
        except FacelitError as error:
            raise FacelitError(f"{self.model.checkpoint_path}: {error}") from None

    def _embed(self, read: ReadSet) -> None:
        number_of = {digest: number for number, digest in enumerate(read.digests) if digest not in self._embeddings}
        digests, numbers = list(number_of), list(number_of.values())
        crops = read_ahead(read.suite_set.source.image, numbers, default_jobs(), 4 * self.batch_size)
        with progress_bar(f"{self.label}: {read.suite_set.name}", len(numbers), _WORTH_A_BAR) as show:
            for start in range(0, len(numbers), self.batch_size):
                batch = digests[start : start + self.batch_size]
                pixels = np.stack([next(crops) for _ in batch])
                rows = self.model.embed(pixels, self.batch_size, self.flip_average)
                self._embeddings.update(zip(batch, rows, strict=True))
                show(start + len(batch))
