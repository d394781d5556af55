"""Center loss: embeddings of one identity are pulled towards their center.

Wen, Zhang, Li, Qiao: A Discriminative Feature Learning Approach for Deep Face Recognition, ECCV 2016 [1].
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from facelit.distributed import parts_of_batch, weigh_part
from facelit.heads.base import Head, HeadOutput, at_least_float32, check_labels
from facelit.heads.softmax import SoftmaxHead
from facelit.optim import CenterSGD, record_batch


class _CenterDistance(torch.autograd.Function):
    """1/2 mean_i ||x_i - c_{y_i}||^2; its backward records the batch for CenterSGD."""

    @staticmethod
    def forward(ctx: Any, embeddings: Tensor, centers: Tensor, labels: Tensor, record: bool) -> Tensor:
        difference = embeddings - centers.index_select(0, labels)  # (N, D)
        ctx.save_for_backward(embeddings, labels, difference)
        # The parameter itself, not a saved tensor: what is recorded hangs on the object.
        ctx.centers = centers if record else None
        ctx.parts = parts_of_batch(len(labels))  # here: the backward may run in another thread, and later
        return difference.square().sum(dim=1).mean() / 2

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        embeddings, labels, difference = ctx.saved_tensors
        if ctx.centers is not None:
            record_batch(ctx.centers, labels, embeddings, ctx.parts)
        return difference * (grad / len(difference)), None, None, None


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

    Args:
        num_identities: the number of identities, C.
        embedding_dim: the length of an embedding, D.

    Attributes:
        centers: (C, D) float32 parameter that requires no gradient.

    Raises:
        ValueError: if a size is not positive.
    """

    def __init__(self, num_identities: int, embedding_dim: int) -> None:
        super().__init__()
        if num_identities < 1 or embedding_dim < 1:
            raise ValueError(
                f"num_identities={num_identities} and embedding_dim={embedding_dim}: both must be positive"
            )
        bound = (3 / embedding_dim) ** 0.5
        centers = torch.empty(num_identities, embedding_dim, dtype=torch.float32).uniform_(-bound, bound)
        self.centers = nn.Parameter(centers, requires_grad=False)

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
        differences = at_least_float32(embeddings.detach()) - self.centers.index_select(0, labels)
        return differences.square().sum(dim=1).sqrt()

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Computes the loss of a batch.

        Args:
            embeddings: (N, D) floating-point, not normalised.
            labels: (N,) int64, from 0 to C - 1.

        Returns:
            Scalar loss, float32 or wider.

        Raises:
            ValueError: if the embeddings do not have D columns, or a label is out of range (on the CPU; on a
                GPU it is a device-side assertion).
        """
        num_identities, embedding_dim = self.centers.shape
        if embeddings.shape != (len(labels), embedding_dim):
            raise ValueError(
                f"expected embeddings of shape {(len(labels), embedding_dim)}, got {tuple(embeddings.shape)}"
            )
        check_labels(labels, num_identities)
        embeddings = at_least_float32(embeddings)
        if self.training and torch.is_grad_enabled() and not embeddings.requires_grad:
            record_batch(self.centers, labels, embeddings, parts_of_batch(len(labels)))
        loss: Tensor = _CenterDistance.apply(embeddings, self.centers, labels, self.training)
        return loss


class CenterLossHead(Head):
    """Softmax loss plus center loss: ``L = L_S + weight * L_C``, eq. 5 of [1] with weight for lambda.

    Args:
        num_identities: the number of identities, C.
        embedding_dim: the length of an embedding, D.
        weight: the weight of the center loss, lambda in the paper; see :class:`CenterLoss` for converting
            one.
        alpha: the share of the way that a center goes in a step; it depends neither on the weight nor on the
            learning rate.
        bias: whether the softmax's linear layer has a bias.
        label_smoothing: the share of the softmax target that is spread over all identities, from 0 to 1.

    Raises:
        ValueError: if a size or alpha is not positive, weight is negative, or label_smoothing is outside [0,
            1].
    """

    def __init__(
        self,
        num_identities: int,
        embedding_dim: int,
        weight: float = 0.003,
        alpha: float = 0.5,
        bias: bool = True,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        if not weight >= 0:
            raise ValueError(f"weight must not be negative, but is {weight}")
        if not alpha > 0:
            raise ValueError(f"alpha must be positive, not {alpha}")
        self.num_identities: int = num_identities
        self.weight = weight
        self.alpha = alpha
        self.softmax = SoftmaxHead(num_identities, embedding_dim, bias, label_smoothing)
        self.center_loss = CenterLoss(num_identities, embedding_dim)

    @property
    def centers(self) -> nn.Parameter:
        """The centers, (C, D) float32."""
        return self.center_loss.centers

    def make_optimizer(self) -> CenterSGD:
        """The optimizer that moves the centers; step it after the network's own."""
        return CenterSGD([self.centers], self.alpha)

    def forward(self, embeddings: Tensor, labels: Tensor) -> HeadOutput:
        """Computes the softmax loss plus the weighted center loss.

        Args:
            embeddings: (N, D) floating-point, not normalised.
            labels: (N,) int64, from 0 to C - 1.

        Returns:
            The loss, and the metrics loss_softmax, loss_center (not weighted), identity_accuracy,
            embedding_norm, center_distance (mean Euclidean distance of the embeddings to their centers) and
            alpha.

        Raises:
            ValueError: as :meth:`CenterLoss.forward`.
        """
        softmax_loss, metrics = self.softmax(embeddings, labels)
        center_loss = self.center_loss(embeddings, labels)
        metrics["loss_center"] = center_loss.detach()
        metrics["center_distance"] = self.center_loss.distances(embeddings, labels).mean()
        metrics["alpha"] = torch.full_like(softmax_loss.detach(), self.alpha)
        return HeadOutput(softmax_loss + self.weight * weigh_part(center_loss, len(labels)), metrics)
