"""Center loss pulls embeddings towards the center of their identity.

Wen, Zhang, Li, Qiao: A Discriminative Feature Learning Approach for Deep Face Recognition, ECCV 2016 [1].
"""

from functools import partial

import torch
from torch import Tensor, nn

from facelit.distributed import parts_of_batch, stack_processes
from facelit.heads.base import check_labels, directions
from facelit.heads.precision import KeepsFloat32, at_least_float32
from facelit.heads.rows import Rows, draw_rows, random_seed
from facelit.optim import record_batch


def _differences(embeddings: Tensor, centers: Tensor, labels: Tensor, sharded: bool) -> Tensor:
    """(N, D) embeddings minus their centers; 0 where another process holds the center."""
    if not sharded:
        return embeddings - centers.index_select(0, labels)
    inside = (labels >= 0) & (labels < len(centers))
    return (embeddings - centers.index_select(0, labels.clamp(0, len(centers) - 1))) * inside.unsqueeze(1)


class CenterLoss(KeepsFloat32):
    """Half the mean squared distance of the embeddings to the centers of their identities: eq. 2 of [1].

    ``L_C = 1/2 * mean_i ||x_i - c_{y_i}||^2``. The paper sums over the batch where this averages, so that the
    loss does not grow with the batch. In an implementation that sums both the softmax loss and the center
    loss, or averages both (the authors' Caffe code does the latter), lambda carries over unchanged. Where the
    softmax loss is averaged but the center loss is summed over a batch of N, multiply the published lambda by
    N.

    The centers follow :class:`~facelit.optim.CenterSGD`, not the gradient; in a plain PyTorch loop::

        center_loss = CenterLoss(num_identities, embedding_dim)
        center_optimizer = CenterSGD([center_loss.centers], alpha=0.5)
        for images, labels in loader:
            x = backbone(images)
            optimizer.zero_grad()
            (cross_entropy(classifier(x), labels) + lam * center_loss(x, labels)).backward()
            optimizer.step()
            center_optimizer.step()

    A batch moves the centers once its loss has been backpropagated, however small lam is; a loss that is never
    backpropagated, or of a module in eval mode, does not. If the embeddings need no gradient (a frozen backbone), a
    forward pass in training mode with gradients enabled counts instead.

    Cost and gradient involve only the rows in the batch. The loss is computed in float32 under autocast, and the centers
    stay in float32 when the module is cast to half precision. They start uniformly distributed in
    +-sqrt(3 / embedding_dim), the xavier filler of the authors' Caffe code.

    A sharded one holds the centers of this process's identities only and expects the global batch, which
    :class:`~facelit.heads.identity.IdentityHead` gathers.

    Args:
        num_identities: the number of identities, C.
        embedding_dim: the length of an embedding, D.
        sharded: whether the processes divide the centers among themselves; :meth:`shard` then creates them.
        normalized: whether embeddings are divided by their lengths first, so that only their directions count, as in
            verification by cosine. The paper's are not; a weight means something else then.

    Attributes:
        centers: (C, D) float32 parameter that requires no gradient; (rows of this process, D) if sharded.

    Raises:
        ValueError: if a size is not positive.
    """

    def __init__(
        self, num_identities: int, embedding_dim: int, sharded: bool = False, normalized: bool = False
    ) -> None:
        super().__init__()
        if num_identities < 1 or embedding_dim < 1:
            raise ValueError(
                f"num_identities={num_identities} and embedding_dim={embedding_dim}: both must be positive"
            )
        self.num_identities = num_identities
        self.sharded = sharded
        self.normalized = normalized
        self.rows = Rows(0, num_identities)
        self._seed = random_seed()
        device = "meta" if sharded else "cpu"
        centers = torch.empty(num_identities, embedding_dim, dtype=torch.float32, device=device)
        self.centers = nn.Parameter(centers if sharded else self._draw(embedding_dim), requires_grad=False)

    def _draw(self, embedding_dim: int) -> Tensor:
        bound = (3 / embedding_dim) ** 0.5
        return draw_rows(self.rows, embedding_dim, self._seed, lambda x, g: x.uniform_(-bound, bound, generator=g))

    def shard(self, rows: Rows) -> None:
        """Creates and initialises the centers of this process's identities."""
        self.rows = rows
        self.centers = nn.Parameter(self._draw(self.centers.shape[1]).to(self.centers.dtype), requires_grad=False)

    def distances(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Euclidean distances to the centers, detached.

        Args:
            embeddings: (N, D) floating-point.
            labels: (N,) int64, from 0 to C - 1.

        Returns:
            (N,) distances, float32 or wider.
        """
        embeddings, labels = self._prepare(embeddings.detach()), labels.long() - self.rows.first
        squared = _differences(embeddings, self.centers, labels, self.sharded).square().sum(dim=1)
        return self._sum_over_processes(squared).sqrt()

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Computes the loss of a batch.

        Args:
            embeddings: (N, D) floating-point, as the network gives them.
            labels: (N,) of any integer dtype, from 0 to C - 1.

        Returns:
            Scalar loss, float32 or wider.

        Raises:
            ValueError: if the embeddings do not have D columns, or a label is out of range (on the CPU; on a
                GPU it is a device-side assertion).
        """
        if embeddings.shape != (len(labels), self.centers.shape[1]):
            raise ValueError(
                f"expected embeddings of shape {(len(labels), self.centers.shape[1])}, got {tuple(embeddings.shape)}"
            )
        check_labels(labels, self.num_identities)
        embeddings, labels = self._prepare(embeddings), labels.long() - self.rows.first
        loss = _differences(embeddings, self.centers, labels, self.sharded).square().sum(dim=1).mean() / 2
        if self.training and torch.is_grad_enabled():
            # Now: a backward pass may run in another thread, which does not know the global batch.
            parts = None if self.sharded else parts_of_batch(len(labels))
            record = partial(record_batch, self.centers, labels, embeddings.detach(), parts)
            if loss.requires_grad:
                loss.register_hook(lambda _: record())  # type: ignore[no-untyped-call]  # torch's own
            else:
                record()
        return self._sum_over_processes(loss)

    def _prepare(self, embeddings: Tensor) -> Tensor:
        embeddings = at_least_float32(embeddings)
        return directions(embeddings) if self.normalized else embeddings

    def _sum_over_processes(self, x: Tensor) -> Tensor:
        return stack_processes(x).sum(dim=0) if self.sharded else x
