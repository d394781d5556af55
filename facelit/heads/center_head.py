"""Softmax + center loss, the pair of Wen et al. (ECCV 2016)."""

from facelit.heads.identity import CenterTerm
from facelit.heads.softmax import SoftmaxHead


class CenterLossHead(SoftmaxHead):
    """Softmax loss plus center loss: ``L = L_S + weight * L_C``, eq. 5 of Wen et al. (ECCV 2016), weight for lambda.

    The same as a :class:`SoftmaxHead` with ``center``.

    Args:
        num_identities: the number of identities, C.
        embedding_dim: the length of an embedding, D.
        weight: the weight of the center loss, lambda in the paper; see :class:`~facelit.heads.CenterLoss` for converting
            one.
        alpha: the share of the way that a center goes in a step, up to 1; it depends neither on the weight nor on the
            learning rate.
        bias: whether the softmax's linear layer has a bias.
        label_smoothing: the share of the softmax target that is spread over all identities, from 0 to 1.
        sharded: whether the processes share out the identities (Partial FC).
        sample_rate: the share of the identities that a training batch is compared with; 1 for all.

    Raises:
        ValueError: if a size is not positive, weight is negative, or alpha or another share is outside its range.
    """

    def __init__(
        self,
        num_identities: int,
        embedding_dim: int,
        weight: float = 0.003,
        alpha: float = 0.5,
        bias: bool = True,
        label_smoothing: float = 0.0,
        sharded: bool = False,
        sample_rate: float = 1.0,
    ) -> None:
        center = CenterTerm(weight, alpha)
        super().__init__(num_identities, embedding_dim, bias, label_smoothing, center, sharded, sample_rate)
