"""Triplet loss with online mining over the global batch.

[1] Schroff, Kalenichenko, Philbin: FaceNet: A Unified Embedding for Face Recognition and Clustering, CVPR
    2015.
[2] Hermans, Beyer, Leibe: In Defense of the Triplet Loss for Person Re-Identification, arXiv 1703.07737,
    2017.
"""

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from facelit.distributed import all_gather, all_gather_with_grad
from facelit.errors import FacelitError
from facelit.heads.base import Head, HeadOutput, directions, wants_metrics
from facelit.heads.precision import at_least_float32

Mining = Literal["semihard", "hard", "all", "random"]


class Mined(NamedTuple):
    """The triplets that a mining rule chose from a batch.

    Attributes:
        total: scalar, sum of ``d_ap - d_an + margin`` over the active triplets, with gradient.
        active: scalar int64, how many there are.
        candidates: scalar int64, how many there could be at most.
    """

    total: Tensor
    active: Tensor
    candidates: Tensor


def squared_distances(embeddings: Tensor) -> Tensor:
    """Squared Euclidean distances between the normalised embeddings: ``2 - 2 cos``.

    No square root, and so no infinite gradient where two embeddings coincide. Near 0 the absolute error is that of
    the scalar product, about 1e-7 in float32 (1e-3 if TF32 is allowed on a GPU). A zero embedding stays zero, at
    distance 2 from all others, and gets no gradient.

    Args:
        embeddings: (B, D) floating-point, not normalised.

    Returns:
        (B, B) distances from 0 to 4.
    """
    unit = directions(embeddings)
    return (2 - 2 * unit @ unit.T).clamp(min=0)


def pair_masks(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Which pairs of a batch are genuine and which are impostor pairs.

    Args:
        labels: (B,) int64.

    Returns:
        Two (B, B) bool masks: genuine (two images of one identity) and impostor.
    """
    same = labels.unsqueeze(0) == labels.unsqueeze(1)
    return same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device), ~same


def _sum_active(violation: Tensor, candidate: Tensor, active: Tensor) -> Mined:
    # where, not a product: without a triplet a violation is -inf. The sum of none is a zero with a gradient.
    return Mined(torch.where(active, violation, 0).sum(), active.sum(), candidate.sum())


def mine_semihard(distances: Tensor, labels: Tensor, margin: float) -> Mined:
    """For each genuine pair the nearest negative with ``d_ap < d_an < d_ap + margin``: sec. 3.2 of [1].

    A genuine pair is a candidate if its anchor has a negative at all, and active if it has one in that range.
    """
    genuine, impostor = pair_masks(labels)
    with torch.no_grad():
        ordered, order = distances.masked_fill(~impostor, torch.inf).sort(dim=1)
        # The first negative that is strictly farther than the positive; B where there is none.
        first = torch.searchsorted(ordered, distances.contiguous(), right=True)
        nearest = order.gather(1, first.clamp(max=len(labels) - 1))  # (B, B) negative for anchor and positive
    d_an = distances.gather(1, nearest)
    violation = distances - d_an + margin
    active = genuine & impostor.gather(1, nearest) & (distances < d_an) & (violation > 0)
    return _sum_active(violation, genuine & impostor.any(dim=1, keepdim=True), active)


def mine_hard(distances: Tensor, labels: Tensor, margin: float) -> Mined:
    """For each anchor its farthest positive and its nearest negative: batch hard, eq. 5 of [2].

    An anchor is a candidate if it has a positive and a negative.
    """
    genuine, impostor = pair_masks(labels)
    d_ap = distances.masked_fill(~genuine, -torch.inf).max(dim=1).values
    d_an = distances.masked_fill(~impostor, torch.inf).min(dim=1).values
    violation = d_ap - d_an + margin
    return _sum_active(violation, genuine.any(dim=1) & impostor.any(dim=1), violation > 0)


def mine_all(distances: Tensor, labels: Tensor, margin: float) -> Mined:
    """Every triplet with ``d_an < d_ap + margin``, in O(B^2) memory: batch all of [2].

    With an anchor's negatives sorted by distance, a genuine pair is active with the first n of them, and contributes
    ``n * (d_ap + margin) - (sum of the first n d_an)``: no list of B^3 triplets is needed. Every triplet of a genuine
    pair and a negative is a candidate.
    """
    genuine, impostor = pair_masks(labels)
    ordered = distances.masked_fill(~impostor, torch.inf).sort(dim=1).values
    limits = distances + margin  # (B, B): a negative nearer than this is active
    n = torch.searchsorted(ordered.detach(), limits.detach().contiguous()).where(genuine, 0)
    finite = ordered.masked_fill(ordered.isinf(), 0)
    running = F.pad(finite.cumsum(dim=1), (1, 0))  # (B, B + 1): the sum of the first 0, 1, ..., B
    total = (n * limits - running.gather(1, n)).sum()
    candidates = (genuine.sum(dim=1) * impostor.sum(dim=1)).sum()
    return Mined(total, n.sum(), candidates)


def take_drawn(distances: Tensor, labels: Tensor, margin: float) -> Mined:
    """The triplets that a sampler drew: the batch is anchor, positive, negative, anchor, positive, ...

    Raises:
        FacelitError: if the labels are not in that order; on a GPU this is only checked when metrics are logged.
    """
    triplets = labels.view(-1, 3) if len(labels) % 3 == 0 else None
    # On a GPU the check waits for the device, as the metrics do anyway.
    if triplets is None or (
        (labels.device.type == "cpu" or wants_metrics())
        and not bool(((triplets[:, 0] == triplets[:, 1]) & (triplets[:, 0] != triplets[:, 2])).all())
    ):
        raise FacelitError(
            'mining="random" needs batches of anchor, positive, negative, anchor, ..., as '
            'facelit.data.RandomTripletSampler draws them: use that sampler, or mining="semihard"'
        )
    anchors = torch.arange(0, len(labels), 3, device=labels.device)
    violation = distances[anchors, anchors + 1] - distances[anchors, anchors + 2] + margin
    return _sum_active(violation, torch.ones_like(violation, dtype=torch.bool), violation > 0)


_RULES: dict[Mining, Callable[[Tensor, Tensor, float], Mined]] = {
    "semihard": mine_semihard,
    "hard": mine_hard,
    "all": mine_all,
    "random": take_drawn,
}


class TripletHead(Head):
    """Triplet loss of [1] on L2-normalised embeddings and squared distances, mined over the global batch.

    The loss is the mean of ``d_ap - d_an + margin`` over the active triplets: those that the mining rule selects and
    for which it is positive. If there are none, loss and gradient are 0. In distributed training embeddings and labels
    are gathered first, so that loss and gradient are those of one process with the whole batch. Computed in float32
    under autocast.

    Metrics: active_fraction (active triplets / candidates), candidates (anchor-positive pairs for semihard, anchors for
    hard, triplets for all and random), genuine_distance and impostor_distance (mean squared distance of the global
    batch's pairs; 0 without any) and embedding_norm (mean Euclidean norm).

    Args:
        margin: how much farther a negative has to be than a positive, as a squared distance between unit vectors.
        mining: which triplets count.

            - ``"semihard"``: for each anchor and positive, the nearest negative that is farther than the positive, by
              less than the margin.
            - ``"hard"``: for each anchor, the farthest positive and the nearest negative.
            - ``"all"``: every triplet that violates the margin.
            - ``"random"``: those triplets drawn by ``facelit.data.RandomTripletSampler`` that violate it.

    Raises:
        ValueError: if the margin is not positive, or there is no such mining.
        FacelitError: from the forward pass, if mining is "random" and the batch is not made of drawn triplets (on a GPU
            this is only checked when metrics are logged).
    """

    def __init__(self, margin: float = 0.2, mining: Mining = "semihard") -> None:
        super().__init__()
        if not margin > 0:
            raise ValueError(f"margin must be positive, not {margin}")
        if mining not in get_args(Mining):
            raise ValueError(f"mining must be one of {', '.join(get_args(Mining))}, not {mining!r}")
        self.margin = margin
        self.mining: Mining = mining

    def forward(self, embeddings: Tensor, labels: Tensor) -> HeadOutput:  # noqa: D102  # Head's
        with torch.autocast(embeddings.device.type, enabled=False):
            embeddings = all_gather_with_grad(at_least_float32(embeddings))
            labels = all_gather(labels)
            distances = squared_distances(embeddings)
            mined = _RULES[self.mining](distances, labels, self.margin)
            # A NaN violates no margin: without the second term a broken network would show a loss of 0.
            loss = mined.total / mined.active.clamp(min=1) + 0 * embeddings.sum()
        if not wants_metrics():
            return HeadOutput(loss, {})
        return HeadOutput(loss, self._metrics(embeddings.detach(), distances.detach(), labels, mined))

    def _metrics(self, embeddings: Tensor, distances: Tensor, labels: Tensor, mined: Mined) -> dict[str, Tensor]:
        genuine, impostor = pair_masks(labels)
        return {
            "active_fraction": mined.active / mined.candidates.clamp(min=1),
            "candidates": mined.candidates.to(distances.dtype),
            "genuine_distance": (distances * genuine).sum() / genuine.sum().clamp(min=1),
            "impostor_distance": (distances * impostor).sum() / impostor.sum().clamp(min=1),
            "embedding_norm": embeddings.norm(dim=1).mean(),
        }

    def diagnose(self, metrics: Mapping[str, float]) -> str | None:
        """Warns of a batch without triplets, and of collapse, where all embeddings have become one."""
        if metrics.get("candidates", 1) == 0:
            return (
                "The batch contains no triplet: it needs several identities with several images each. "
                "Use a sampler that draws P identities x K images."
            )
        if metrics["impostor_distance"] < 0.01 * self.margin:
            return (
                "The embeddings have collapsed: different identities are at a mean squared distance of "
                f"{metrics['impostor_distance']:.2g} (margin {self.margin:g}). What usually helps: a lower "
                'learning rate; mining="semihard" or "all" instead of "hard" at first; starting from a softmax or '
                "center-loss checkpoint (--model.init_backbone); batches of P identities x K images that really "
                "contain several images of each identity."
            )
        return None
