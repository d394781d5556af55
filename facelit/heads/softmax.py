"""Softmax loss: the network learns to name the identities it was trained on."""

from facelit.heads.identity import CenterTerm, IdentityHead


class SoftmaxHead(IdentityHead):
    """A linear layer with one output for each identity, and cross entropy.

    Args:
        num_identities: the number of identities, C.
        embedding_dim: the length of an embedding, D.
        bias: whether the linear layer has a bias.
        label_smoothing: the share of the target that is spread over all identities, from 0 to 1.
        center: the center loss that goes with it (``center.weight``, ``center.alpha``); None for none.
        sharded: whether the processes share out the identities (Partial FC).
        sample_rate: the share of the identities that a training batch is compared with; 1 for all.

    Raises:
        ValueError: if a size is not positive, or a share is outside its range.
    """

    def __init__(
        self,
        num_identities: int,
        embedding_dim: int,
        bias: bool = True,
        label_smoothing: float = 0.0,
        center: CenterTerm | None = None,
        sharded: bool = False,
        sample_rate: float = 1.0,
    ) -> None:
        super().__init__(num_identities, embedding_dim, bias, label_smoothing, center, sharded, sample_rate)
