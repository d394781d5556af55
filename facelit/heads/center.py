"""Center loss: embeddings of one identity are pulled towards their center.

Wen, Zhang, Li, Qiao: A Discriminative Feature Learning Approach for Deep Face Recognition, ECCV 2016 [1].
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from facelit.distributed import parts_of_batch, stack_processes
from facelit.heads.base import at_least_float32, check_labels
from facelit.heads.rows import Rows, draw_rows, random_seed
from facelit.optim import record_batch


class _CenterDistance(torch.autograd.Function):
    """1/2 mean_i ||x_i - c_{y_i}||^2; its backward records the batch for CenterSGD."""

    @staticmethod
    def forward(ctx: Any, embeddings: Tensor, centers: Tensor, labels: Tensor, sharded: bool, record: bool) -> Tensor:
        difference = _differences(embeddings, centers, labels, sharded)  # (N, D)
        ctx.save_for_backward(embeddings, labels, difference)
        # The parameter itself, not a saved tensor: what is recorded hangs on the object.
        ctx.centers = centers if record else None
        # Here: the backward may run in another thread, and later.
        ctx.parts = None if sharded else parts_of_batch(len(labels))
        return difference.square().sum(dim=1).mean() / 2

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        embeddings, labels, difference = ctx.saved_tensors
        if ctx.centers is not None:
            record_batch(ctx.centers, labels, embeddings, ctx.parts)
        return difference * (grad / len(difference)), None, None, None, None


def _differences(embeddings: Tensor, centers: Tensor, labels: Tensor, sharded: bool) -> Tensor:
    """(N, D) from the centers to the embeddings; 0 where a label is not among the rows of a sharded table."""
    if not sharded:
        return embeddings - centers.index_select(0, labels)
    inside = (labels >= 0) & (labels < len(centers))
    return (embeddings - centers.index_select(0, labels.clamp(0, len(centers) - 1))) * inside.unsqueeze(1)


class CenterLoss(nn.Module):
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

    A batch moves the centers when its loss is backpropagated, however small lam is. Losses that are not
    backpropagated, and those of a module in eval mode, do not move them. If the embeddings need no gradient
    (a frozen backbone), a forward in training mode with gradients enabled counts instead.

    Cost and gradient touch only the rows of the batch. The loss is computed in float32 under autocast, and
    the centers stay in float32 when the module is cast to half precision. They are initialised uniformly in
    +-sqrt(3 / embedding_dim), the xavier filler of the authors' Caffe code.

    A sharded one holds the centers of this process's share of the identities, and is given the global batch: see
    :class:`~facelit.heads.identity.IdentityHead`, which gathers it.

    Args:
        num_identities: the number of identities, C.
        embedding_dim: the length of an embedding, D.
        sharded: whether the processes share out the centers; :meth:`shard` then makes them.

    Attributes:
        centers: (C, D) float32 parameter that requires no gradient; or (rows of this process, D).

    Raises:
        ValueError: if a size is not positive.
    """

    def __init__(self, num_identities: int, embedding_dim: int, sharded: bool = False) -> None:
        super().__init__()
        if num_identities < 1 or embedding_dim < 1:
            raise ValueError(
                f"num_identities={num_identities} and embedding_dim={embedding_dim}: both must be positive"
            )
        self.num_identities = num_identities
        self.sharded = sharded
        self.rows = Rows(0, num_identities)
        self._seed = random_seed()
        device = "meta" if sharded else "cpu"
        centers = torch.empty(num_identities, embedding_dim, dtype=torch.float32, device=device)
        self.centers = nn.Parameter(centers if sharded else self._draw(embedding_dim), requires_grad=False)

    def _draw(self, embedding_dim: int) -> Tensor:
        bound = (3 / embedding_dim) ** 0.5
        return draw_rows(self.rows, embedding_dim, self._seed, lambda x, g: x.uniform_(-bound, bound, generator=g))

    def shard(self, rows: Rows) -> None:
        """Makes the centers of some identities, freshly drawn: this process's share."""
        self.rows = rows
        self.centers = nn.Parameter(self._draw(self.centers.shape[1]).to(self.centers.dtype), requires_grad=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "CenterLoss":
        """Moves as any module does, except that ``half()`` and its like leave the centers in float32."""

        def keep_precision(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.element_size() >= tensor.element_size() else tensor.to(moved.device)

        super()._apply(keep_precision, recurse)  # type: ignore[no-untyped-call]  # torch's own
        return self

    def distances(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Euclidean distances to the centers, without gradient.

        Args:
            embeddings: (N, D) floating-point.
            labels: (N,) int64, from 0 to C - 1.

        Returns:
            (N,) distances, float32 or wider.
        """
        embeddings, labels = at_least_float32(embeddings.detach()), labels.long() - self.rows.first
        squared = _differences(embeddings, self.centers, labels, self.sharded).square().sum(dim=1)
        return self._sum_over_processes(squared).sqrt()

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Computes the loss of a batch.

        Args:
            embeddings: (N, D) floating-point, not normalised.
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
        embeddings, labels = at_least_float32(embeddings), labels.long() - self.rows.first
        if self.training and torch.is_grad_enabled() and not embeddings.requires_grad:
            record_batch(self.centers, labels, embeddings, None if self.sharded else parts_of_batch(len(labels)))
        loss: Tensor = _CenterDistance.apply(embeddings, self.centers, labels, self.sharded, self.training)
        return self._sum_over_processes(loss)

    def _sum_over_processes(self, x: Tensor) -> Tensor:
        return stack_processes(x).sum(dim=0) if self.sharded else x
