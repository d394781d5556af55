"""Softmax + center loss, the pair of Wen et al. (ECCV 2016)."""

from typing import Any

from facelit.heads.identity import CenterTerm
from facelit.heads.softmax import SoftmaxHead


class CenterLossHead(SoftmaxHead):
    """Softmax loss plus center loss: ``L = L_S + weight * L_C``, eq. 5 of Wen et al. (ECCV 2016) with lambda as weight.

    The same as a :class:`SoftmaxHead` with ``center``.

    Args:
        num_identities: the number of identities, C.
        embedding_dim: the length of an embedding, D.
        weight: the weight of the center loss, lambda in the paper; `facelit.heads.CenterLoss` says how to convert a
            published value.
        alpha: the fraction of the way that a center moves in one step, in (0, 1]; independent of the weight and of the
            learning rate.
        normalized: whether the center loss is of embeddings divided by their lengths; the paper's is not.
        options: those of :class:`SoftmaxHead`, except ``center``.

    Attributes:
        centers: (C, D) float32, the identities' centers; (rows of this process, D) if sharded.

    Raises:
        ValueError: if the weight is negative, alpha is out of range, or as :class:`SoftmaxHead`.
    """

    def __init__(
        self,
        num_identities: int,
        embedding_dim: int,
        weight: float = 0.003,
        alpha: float = 0.5,
        normalized: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(num_identities, embedding_dim, center=CenterTerm(weight, alpha, normalized), **options)
