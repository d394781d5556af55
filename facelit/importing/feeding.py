"""Checks a network's preprocessing on faces: whether it works at all, and whether another convention suits it better."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from facelit.errors import FacelitError
from facelit.importing.checkpoint import fed
from facelit.importing.kinds import Feed
from facelit.importing.kinds.kind import RANGES
from facelit.importing.network import ForeignNetwork
from facelit.verification.embeddings import cosine_scores

if TYPE_CHECKING:
    from facelit.data import VerificationSource

NUM_PAIRS = 200
"""The number of pairs, half of them genuine, to check on: eight conventions times 400 images take seconds to minutes."""

_DRAWN = 8
_BATCH = 32
_RESAMPLES = 1000
_BETTER = 0.05
"""Another convention is worth a warning if it separates pairs better by this share..."""
_CERTAIN = 0.99
"""...in this share of resamples."""


class Convention(NamedTuple):
    """A preprocessing convention, and how well it separates genuine and impostor pairs.

    Attributes:
        feed: The preprocessing.
        separation: The distance between the mean scores of genuine and impostor pairs, in standard deviations (d').
        certainty: The share of resamples of the pairs in which it is above the chosen convention's.
    """

    feed: Feed
    separation: float
    certainty: float


def try_out(network: ForeignNetwork, feed: Feed) -> str | None:
    """Runs the network on a few drawn faces.

    Returns:
        A warning, or None if all is well.

    Raises:
        FacelitError: It does not accept such images, or returns NaN or infinity.
    """
    from facelit.pictures.drawn_faces import draw_face

    faces = _as_images([draw_face(0, identity, 0) for identity in range(_DRAWN)])
    try:
        with torch.inference_mode():
            embeddings = fed(network, feed)(faces)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        height, width = feed.size
        raise FacelitError(
            f"{network.title} does not take images of {height}x{width} (option size): {reason}"
        ) from None
    if not bool(torch.isfinite(embeddings).all()):
        raise FacelitError(f"{network.title}: its embeddings of drawn faces are NaN or infinite. Is the file whole?")
    directions = torch.nn.functional.normalize(embeddings.double(), dim=1)
    if bool(((directions @ directions.T) > 1 - 1e-9).all()):
        return "all drawn faces get the same embedding: these weights tell nobody apart."
    return None


def compare_conventions(
    network: ForeignNetwork, feed: Feed, pairs: VerificationSource
) -> tuple[Convention, Convention]:
    """Scores pairs under the likely conventions.

    Args:
        network: The network to check.
        feed: The preprocessing as far as known; its size is kept.
        pairs: Pairs of people, of which `NUM_PAIRS` are used, evenly spread over the set.

    Returns:
        The given convention, and the best of all.
    """
    chosen = _choose_pairs(pairs)
    numbers = np.unique(np.concatenate([pairs.first[chosen], pairs.second[chosen]]))
    images = _as_images([pairs.image(int(number)) for number in numbers])
    first, second = (np.searchsorted(numbers, side[chosen]) for side in (pairs.first, pairs.second))
    scores = {way: _score(network, way, images, first, second) for way in _conventions(feed)}
    same = pairs.is_same[chosen]
    drawn = _resamples(same)
    reference = np.array([_separation(scores[feed][rows], same[rows]) for rows in drawn])
    found = []
    for way, values in scores.items():
        resampled = np.array([_separation(values[rows], same[rows]) for rows in drawn])
        found.append(Convention(way, _separation(values, same), float((resampled > reference).mean())))
    return found[0], max(found, key=lambda one: one.separation)


def clearly_better(best: Convention, chosen: Convention) -> bool:
    """Whether another convention is worth a warning."""
    margin = chosen.separation * (1 + _BETTER)
    return best.feed != chosen.feed and best.separation > margin and best.certainty >= _CERTAIN


def _conventions(feed: Feed) -> Iterator[Feed]:
    """Yields the likely conventions, the given one first."""
    yield feed
    for colour in ("RGB", "BGR"):
        for usual in RANGES.values():
            other = feed._replace(colour=colour, mean=usual.mean, std=usual.std)
            if other != feed:
                yield other


def _score(
    network: ForeignNetwork, feed: Feed, images: Tensor, first: npt.NDArray[np.int64], second: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    backbone = fed(network, feed)
    with torch.inference_mode():
        embeddings = torch.cat([backbone(batch) for batch in torch.split(images, _BATCH)])
    return np.nan_to_num(cosine_scores(embeddings.float(), first, second))


def _choose_pairs(pairs: VerificationSource) -> npt.NDArray[np.int64]:
    chosen = []
    for kind in (True, False):
        places = np.flatnonzero(pairs.is_same == kind)
        chosen.append(places[np.linspace(0, len(places) - 1, min(NUM_PAIRS // 2, len(places))).astype(int)])
    return np.concatenate(chosen)


def _resamples(same: npt.NDArray[np.bool_]) -> list[npt.NDArray[np.int64]]:
    """Draws pairs with replacement, keeping the numbers of genuine and impostor pairs."""
    rng = np.random.default_rng(0)
    kinds = [np.flatnonzero(same), np.flatnonzero(~same)]
    return [np.concatenate([rng.choice(places, len(places)) for places in kinds]) for _ in range(_RESAMPLES)]


def _separation(scores: npt.NDArray[np.float64], same: npt.NDArray[np.bool_]) -> float:
    genuine, impostor = scores[same], scores[~same]
    spread = np.sqrt((genuine.var() + impostor.var()) / 2)
    return float((genuine.mean() - impostor.mean()) / max(spread, 1e-12))


def _as_images(crops: list[npt.NDArray[np.uint8]]) -> Tensor:
    """Crops, uint8 (112, 112, 3), as a batch in facelit's convention."""
    images = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).contiguous()
    return images.to(torch.float32).sub_(127.5).div_(127.5)
