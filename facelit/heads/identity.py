"""IdentityHead: what all heads with a vector for each identity have in common.

How a batch passes through the five files of the sharded path; only steps marked S differ from a head that is not sharded:

1. ``identity.py``, :meth:`IdentityHead.forward`: embeddings in float32 or wider, labels in int64.
   S: ``facelit/distributed.py`` gathers both, so that every process has the global batch.
2. ``rows.py``: which identities this process holds. Labels become row numbers; S: those of identities that other processes
   hold fall outside. In training with a sample_rate below 1, ``_sample`` draws the rows that the batch is compared with.
3. ``identity_logits.py``: the logits of these rows, a group at a time, reduced to four numbers for each sample.
   S: ``distributed.py`` exchanges these (``stack_processes``), and ``_logits_of_all`` combines them.
4. ``identity.py``, ``_cross_entropy``: a subclass's :meth:`IdentityHead.target_logits` applies its margin.
5. ``center.py``: the center loss, if there is one. S: each process contributes the distances to its own centers.

The backward pass records the batch, from which ``facelit/optim/center_sgd.py`` then moves the centers. S: gradients of the rows
are complete on the process that holds them, and are not averaged; checkpoints and gradient clipping have their own rules, in
``facelit/training/sharding.py``.

[1] An et al.: Killing Two Birds with One Stone: Efficient and Robust Training of Face Recognition CNNs by Partial FC,
    CVPR 2022.
[2] Szegedy et al.: Rethinking the Inception Architecture for Computer Vision, CVPR 2016.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facelit.distributed import all_gather, all_gather_summing_grad, part_sizes, stack_processes, weigh_part, world_size
from facelit.heads.base import Head, HeadOutput, check_labels, directions, wants_metrics
from facelit.heads.center import CenterLoss
from facelit.heads.identity_logits import IdentityLogits, identity_logits
from facelit.heads.precision import at_least_float32
from facelit.heads.rows import Rows, draw_rows, own_rows, random_seed
from facelit.optim import CenterSGD, check_alpha

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass
class CenterTerm:
    """Center loss added to an identity loss: ``L + weight * L_C``.

    Args:
        weight: the weight of the center loss, lambda in the paper; see :class:`~facelit.heads.CenterLoss`.
        alpha: the fraction of the way that a center moves in one step, in (0, 1]; independent of the weight and of the
            learning rate.
        normalized: whether the loss is of embeddings divided by their lengths.
    """

    weight: float = 0.003
    alpha: float = 0.5
    normalized: bool = False

    def __post_init__(self) -> None:
        if not self.weight >= 0:
            raise ValueError(f"weight must not be negative, but is {self.weight}")
        check_alpha(self.alpha)


class IdentityHead(Head):
    """Cross entropy over the identities, each of which has a vector; plus center loss, if asked for.

    Subclasses define the logits: :attr:`scale` and :meth:`target_logits`. Targets may be smoothed as in [2]. Logits and
    loss are float32 under autocast. At most 128 MB of logits are held at a time (see
    :func:`~facelit.heads.identity_logits.identity_logits`).

    A sharded head (Partial FC of [1]) holds the vectors and centers of this process's identities: embeddings are gathered,
    each process computes the logits of its own identities, and four numbers per sample are exchanged. It is created
    without memory; :meth:`shard` allocates its rows once the processes are connected. With the same seed, vectors start
    the same whether the head is sharded or not, on any number of processes.

    Metrics: loss_softmax, identity_accuracy (fraction of the batch whose own identity has the highest logit, before any
    margin) and embedding_norm (mean Euclidean norm); with a center loss also loss_center (unweighted), center_distance
    (mean Euclidean distance of the embeddings to their centers) and alpha. They are means over this process's part of
    the batch; over the global batch if the head is sharded.

    Args:
        num_identities: the number of identities, C.
        embedding_dim: the length of an embedding, D.
        bias: whether each identity also has a bias; only without a :attr:`scale`.
        label_smoothing: fraction of the target that is spread over all identities, from 0 to 1.
        center: center loss to add (``center.weight``, ``center.alpha``, ``center.normalized``); None for none.
        sharded: whether the processes divide the identities among themselves (Partial FC).
        sample_rate: fraction of the identities that a training batch is compared with, drawn anew for each batch; those
            in the batch are always included. 1 for all.

    Attributes:
        weight: (C, D) float32 parameter; (rows of this process, D) if sharded.
        bias: (C,) likewise; None if there is none.
        scale: multiplies the cosines; None where logits are plain scalar products.

    Raises:
        ValueError: if a size is not positive, or a fraction is out of range. From the forward pass: if the shapes do not
            fit, or a label is out of range (on the CPU; on a GPU the loss is wrong instead).
    """

    scale: float | None = None

    def __init__(
        self,
        num_identities: int,
        embedding_dim: int,
        bias: bool = False,
        label_smoothing: float = 0.0,
        center: CenterTerm | None = None,
        sharded: bool = False,
        sample_rate: float = 1.0,
    ) -> None:
        super().__init__()
        if num_identities < 1 or embedding_dim < 1:
            raise ValueError(
                f"num_identities={num_identities} and embedding_dim={embedding_dim}: both must be positive"
            )
        if not 0 <= label_smoothing <= 1:
            raise ValueError(f"label_smoothing must be in [0, 1], not {label_smoothing}")
        if not 0 < sample_rate <= 1:
            raise ValueError(f"sample_rate must be in (0, 1], not {sample_rate}")
        self.num_identities: int = num_identities
        self.embedding_dim = embedding_dim
        self.label_smoothing = label_smoothing
        self.sharded = sharded
        self.sample_rate = sample_rate
        self.center = center
        self.rows = Rows(0, num_identities)
        self._seed = random_seed()
        device = torch.device("meta") if sharded else None
        self.weight = nn.Parameter(torch.empty(num_identities, embedding_dim, dtype=torch.float32, device=device))
        self.bias = nn.Parameter(torch.empty(num_identities, dtype=torch.float32, device=device)) if bias else None
        self.center_loss = (
            None if center is None else CenterLoss(num_identities, embedding_dim, sharded, center.normalized)
        )
        if not sharded:
            self._draw_parameters()

    def shard(self) -> None:
        """Allocates and initialises a sharded head's rows of this process; call it once, when the processes are connected."""
        if not self.sharded:
            return
        if self.num_identities < world_size():
            raise ValueError(
                f"sharded: {self.num_identities} identities cannot be divided among {world_size()} processes"
            )
        self.rows = own_rows(self.num_identities)
        dtype = self.weight.dtype
        self.weight = nn.Parameter(torch.empty(self.rows.size, self.embedding_dim, dtype=dtype))
        if self.bias is not None:
            self.bias = nn.Parameter(torch.empty(self.rows.size, dtype=dtype))
        self._draw_parameters()
        if self.center_loss is not None:
            self.center_loss.shard(self.rows)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Moves as any module does; rows that :meth:`shard` has not allocated yet stay without memory."""

        def move(tensor: Tensor) -> Tensor:
            try:
                return fn(tensor)
            except NotImplementedError:  # torch's own, for a tensor without memory
                # After any error Lightning moves the model to the CPU, even if it was never configured.
                if tensor.is_meta:
                    return tensor
                raise

        super()._apply(move, recurse)  # type: ignore[no-untyped-call]  # torch's own
        return self

    def draw(self, vectors: Tensor, generator: torch.Generator) -> None:
        """Initialises the identities' vectors, in place: nn.Linear's distribution, unless a subclass has its own."""
        bound = self.embedding_dim**-0.5
        vectors.uniform_(-bound, bound, generator=generator)

    def identity_parameters(self) -> dict[str, nn.Parameter]:
        """The vectors, biases and centers."""
        centers = None if self.center_loss is None else self.centers
        named = {"weight": self.weight, "bias": self.bias, "center_loss.centers": centers}
        return {name: parameter for name, parameter in named.items() if parameter is not None}

    @property
    def centers(self) -> nn.Parameter:
        """The centers of the center loss: (C, D) float32, or (rows of this process, D) if the head is sharded.

        Raises:
            AttributeError: if the head has no center loss.
        """
        if self.center_loss is None:
            raise AttributeError
        return self.center_loss.centers

    def __getattr__(self, name: str) -> Any:
        if name == "centers":  # Python asks here once the property has failed, and shows this message alone
            raise AttributeError(f"this {type(self).__name__} has no centers: give it center=CenterTerm(...)")
        return super().__getattr__(name)

    def make_optimizer(self) -> CenterSGD | None:
        """The optimizer that moves the centers; step it after the network's own."""
        if self.center is None or self.center_loss is None:
            return None
        return CenterSGD([self.centers], self.center.alpha)

    def target_logits(self, own: Tensor, norms: Tensor) -> Tensor:
        """What replaces a sample's own logit in the loss: a margin lowers it.

        Args:
            own: (N,) the samples' logits for their own identities.
            norms: (N,) Euclidean norms of the embeddings, detached.

        Returns:
            (N,) logits; here those given.
        """
        return own

    def logits(self, embeddings: Tensor) -> Tensor:
        """One score for each identity, without the margin.

        Args:
            embeddings: (N, D) floating-point.

        Returns:
            (N, C) logits, float32 or wider; if the head is sharded, of this process's identities only.
        """
        with torch.autocast(embeddings.device.type, enabled=False):
            x = self._prepare(at_least_float32(embeddings))
            weight = self.weight.to(x.dtype)
            if self.scale is not None:
                return self.scale * x @ F.normalize(weight, dim=1).T
            return x @ weight.T if self.bias is None else x @ weight.T + self.bias

    def forward(self, embeddings: Tensor, labels: Tensor) -> HeadOutput:  # noqa: D102  # Head's
        if embeddings.shape != (len(labels), self.embedding_dim):
            expected = (len(labels), self.embedding_dim)
            raise ValueError(f"expected embeddings of shape {expected}, got {tuple(embeddings.shape)}")
        check_labels(labels, self.num_identities)
        with torch.autocast(embeddings.device.type, enabled=False):
            embeddings, labels = at_least_float32(embeddings), labels.long()
            if self.sharded:
                embeddings, labels = all_gather_summing_grad(embeddings), all_gather(labels)
            logits, norms = self._logits_of_all(embeddings, labels), embeddings.detach().norm(dim=1)
            identity_loss = self._cross_entropy(logits, norms)
            loss, metrics = identity_loss, {}
            if self.center is not None and self.center_loss is not None:
                center_loss = self.center_loss(embeddings, labels)
                loss = loss + self.center.weight * center_loss
                if wants_metrics():
                    metrics = self._center_metrics(center_loss, embeddings, labels)
        if wants_metrics():
            metrics |= self._metrics(identity_loss, logits, norms)
        return HeadOutput(loss if self.sharded else weigh_part(loss, len(labels)), metrics)

    def _draw_parameters(self) -> None:
        with torch.no_grad():
            self.weight.copy_(draw_rows(self.rows, self.embedding_dim, self._seed, self.draw))
            if self.bias is not None:
                self.bias.copy_(draw_rows(self.rows, 1, self._seed + 2**61, self.draw).squeeze(1))

    def _prepare(self, embeddings: Tensor) -> Tensor:
        return embeddings if self.scale is None else directions(embeddings)

    def _logits_of_all(self, embeddings: Tensor, labels: Tensor) -> IdentityLogits:
        """Over this process's identities; then, if the head is sharded, over those of all processes."""
        own_labels = labels - self.rows.first
        weight: Tensor = self.weight
        bias: Tensor | None = self.bias
        if self.training and self.sample_rate < 1:
            index = self._sample(own_labels)
            place = torch.searchsorted(index, own_labels).clamp(max=len(index) - 1)
            own_labels = place.where(index[place] == own_labels, -1)
            weight, bias = weight.index_select(0, index), None if bias is None else bias.index_select(0, index)
        x = self._prepare(embeddings)
        logits = identity_logits(x, weight, own_labels, bias, self.scale, with_total=self.label_smoothing > 0)
        if not self.sharded or world_size() == 1:
            return logits
        own, others, highest, total = stack_processes(torch.stack(logits)).unbind(dim=1)  # each (world_size, N)
        return IdentityLogits(own.sum(dim=0), others.logsumexp(dim=0), highest.amax(dim=0), total.sum(dim=0))

    def _sample(self, own_labels: Tensor) -> Tensor:
        """Sorted row numbers to compare with: the batch's own and others at random. Never waits for the device."""
        count = self.rows.size
        priority = torch.rand(count + 1, dtype=torch.float32, device=own_labels.device)  # bfloat16 would tie
        priority[own_labels.where((own_labels >= 0) & (own_labels < count), count)] = 2
        chosen = priority[:count].topk(self._num_sampled(count, len(own_labels)), sorted=False).indices
        return chosen.sort().values

    def _num_sampled(self, count: int, batch: int) -> int:
        return max(math.ceil(self.sample_rate * count), min(batch, count))

    def _cross_entropy(self, logits: IdentityLogits, norms: Tensor) -> Tensor:
        """Mean over the batch of log sum_j exp(z_j) minus the logits' mean under the smoothed target [2]."""
        target = self.target_logits(logits.own, norms)
        missing = -F.logsigmoid(target - logits.others)  # -log of its own identity's probability
        if not self.label_smoothing:
            return missing.mean()
        counts = part_sizes(self.num_identities, world_size() if self.sharded else 1)
        if self.training and self.sample_rate < 1:
            counts = tuple(self._num_sampled(count, len(norms)) for count in counts)
        mean_logit = (logits.total - logits.own + target) / sum(counts)
        return (missing + self.label_smoothing * (target - mean_logit)).mean()

    @torch.no_grad()
    def _metrics(self, loss: Tensor, logits: IdentityLogits, norms: Tensor) -> dict[str, Tensor]:
        return {
            "loss_softmax": loss.detach(),
            # torchmetrics would need all N x C logits, or each sample's predicted identity: neither exists here.
            "identity_accuracy": (logits.own > logits.highest).float().mean(),
            "embedding_norm": norms.mean(),
        }

    @torch.no_grad()
    def _center_metrics(self, loss: Tensor, embeddings: Tensor, labels: Tensor) -> dict[str, Tensor]:
        assert self.center is not None and self.center_loss is not None  # noqa: PT018  # for mypy
        return {
            "loss_center": loss.detach(),
            "center_distance": self.center_loss.distances(embeddings, labels).mean(),
            "alpha": torch.full_like(loss.detach(), self.center.alpha),
        }
