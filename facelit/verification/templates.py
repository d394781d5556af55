"""Templates: several images of one person as one embedding, and a list of pairs of them scored in blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from facelit.verification.all_pairs import BINS, PairCounts, bins_of

Embeddings = npt.NDArray[np.float32]
Integers = npt.NDArray[np.integer[Any]]
Booleans = npt.NDArray[np.bool_]

Weighting = Literal["norm_score", "norm", "score", "equal"]
"""What an image counts in its template: as much as its embedding is long and its detection score is high, as much as one of the
two says, or as much as any other."""

_ROWS = 8192
_PAIRS = 1 << 12
"""8 MB of either side at 512 numbers. The allocator keeps that for the next block; 64 MB it would get from the system each time."""


class TemplateRows(NamedTuple):
    """Which images make up which template: a row for each image in each template, integers (R,).

    `template` and `image` count from 0; `media` is any number: the frames of one video share it.
    """

    template: Integers
    media: Integers
    image: Integers

    def usable(self, images: Booleans) -> TemplateRows:
        """The rows of some images only, given as bool (N,)."""
        kept = images[self.image]
        return TemplateRows(self.template[kept], self.media[kept], self.image[kept])


class ListedPairs(NamedTuple):
    """Pairs of templates: their numbers, int32 (P,), and whether they show the same person, bool (P,)."""

    first: npt.NDArray[np.int32]
    second: npt.NDArray[np.int32]
    is_same: Booleans


def image_weights(
    embeddings: Embeddings, scores: npt.NDArray[np.float32], weighting: Weighting
) -> npt.NDArray[np.float64]:
    """The factor that each embedding is multiplied by before it goes into a template.

    Args:
        embeddings: float32 (N, D), not normalised; may be a memory map.
        scores: Detection scores, (N,).
        weighting: See `Weighting`.

    Returns:
        float64 (N,).
    """
    weights = scores.astype(np.float64) if "score" in weighting else np.ones(len(embeddings))
    if weighting in ("score", "equal"):
        for start in range(0, len(embeddings), _ROWS):
            block = slice(start, start + _ROWS)
            lengths = np.linalg.norm(embeddings[block].astype(np.float64), axis=1)
            weights[block] = np.divide(weights[block], lengths, out=np.zeros_like(lengths), where=lengths > 0)
    return weights


def pool_templates(
    embeddings: Embeddings, weights: npt.NDArray[np.float64], rows: TemplateRows, num_templates: int
) -> Embeddings:
    """Embeddings of templates: images of one medium are averaged, the media of a template are summed.

    Whitelam et al., IARPA Janus Benchmark-B, CVPR Workshops 2017 (templates and media); the sum over media is that of the published
    evaluations on IJB (Cao et al., VGGFace2, FG 2018, and InsightFace's).

    Args:
        embeddings: float32 (N, D), not normalised; may be a memory map.
        weights: See `image_weights`, (N,).
        rows: Which images make up which template.
        num_templates: T.

    Returns:
        float32 (T, D), L2-normalised; zeros for a template without an image, or with weights of 0 only.
    """
    order = np.lexsort((rows.image, rows.media, rows.template))
    template, media, image = (column[order] for column in rows)
    pooled = np.zeros((num_templates, embeddings.shape[1]), np.float32)
    if not len(template):
        return pooled
    begins = np.concatenate([[True], (np.diff(template) != 0) | (np.diff(media) != 0)])
    _, medium, frames = np.unique(np.cumsum(begins), return_inverse=True, return_counts=True)
    factors = weights[image] / frames[medium]
    for block in _whole_templates(template):
        parts = embeddings[image[block]].astype(np.float64) * factors[block, None]
        present, starts = np.unique(template[block], return_index=True)
        sums = np.add.reduceat(parts, starts, axis=0)
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        pooled[present] = np.divide(sums, lengths, out=np.zeros_like(sums), where=lengths > 0)
    return pooled


def _whole_templates(template: Integers) -> Iterator[slice]:
    """Stretches of about `_ROWS` rows that end where a template does."""
    ends = np.append(np.flatnonzero(np.diff(template)) + 1, len(template))
    start = 0
    while start < len(template):
        # The last end within reach; a template that is longer than that is a stretch of its own.
        place = max(int(np.searchsorted(ends, start + _ROWS, side="right")) - 1, int(np.searchsorted(ends, start + 1)))
        yield slice(start, int(ends[place]))
        start = int(ends[place])


def count_listed_pairs(
    templates: Embeddings, pairs: ListedPairs, group_of: Integers, show: Callable[[int], None] = lambda pairs: None
) -> PairCounts:
    """Scores pairs of templates. A pair with a template of zeros scores -1: it is never accepted.

    Args:
        templates: float32 (T, D), L2-normalised or zeros.
        pairs: P of them.
        group_of: Group of each template, integers from 0, (T,); the same for all templates of a person.
        show: Told how many pairs are done.
    """
    num_groups = int(group_of.max()) + 1
    empty = ~np.asarray(templates.any(axis=1))
    whole = np.zeros(2 * BINS, np.int64)
    of_group = np.zeros(2 * num_groups * BINS, np.int64)
    for start in range(0, len(pairs.first), _PAIRS):
        block = slice(start, start + _PAIRS)
        first, second, kind = pairs.first[block], pairs.second[block], pairs.is_same[block].astype(np.int64)
        scores = np.einsum("ij,ij->i", templates[first], templates[second])
        scores[empty[first] | empty[second]] = -1
        bins = bins_of(scores)
        np.add.at(whole, kind * BINS + bins, 1)
        one, other = group_of[first], group_of[second]
        np.add.at(of_group, (kind * num_groups + one) * BINS + bins, 1)
        apart = one != other
        np.add.at(of_group, ((kind * num_groups + other) * BINS + bins)[apart], 1)
        show(min(block.stop, len(pairs.first)))
    impostor, genuine = whole.reshape(2, BINS)
    impostor_of, genuine_of = of_group.reshape(2, num_groups, BINS)
    return PairCounts(genuine, impostor, genuine_of, impostor_of)
