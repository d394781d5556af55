"""Softmax loss: the network learns to name the identities it was trained on."""

from typing import Any

from facelit.heads.identity import IdentityHead


class SoftmaxHead(IdentityHead):
    """A linear layer with one output for each identity, and cross entropy.

    Args:
        num_identities: the number of identities, C.
        embedding_dim: the length of an embedding, D.
        bias: whether the linear layer has a bias.
        options: those of :class:`IdentityHead`.

    Raises:
        ValueError: as :class:`IdentityHead`.
    """

    def __init__(self, num_identities: int, embedding_dim: int, bias: bool = True, **options: Any) -> None:
        super().__init__(num_identities, embedding_dim, bias, **options)
