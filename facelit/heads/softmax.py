"""Softmax loss: the network learns to name the identities it was trained on."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facelit.distributed import weigh_part
from facelit.heads.base import Head, HeadOutput, at_least_float32, check_labels


class SoftmaxHead(Head):
    """A linear layer with one output for each identity, and cross entropy.

    Logits and loss are float32 under autocast.

    Args:
        num_identities: the number of identities, C.
        embedding_dim: the length of an embedding, D.
        bias: whether the linear layer has a bias.
        label_smoothing: the share of the target that is spread over all identities, from 0 to 1.

    Raises:
        ValueError: if a size is not positive, or label_smoothing is outside [0, 1].
    """

    def __init__(
        self, num_identities: int, embedding_dim: int, bias: bool = True, label_smoothing: float = 0.0
    ) -> None:
        super().__init__()
        if num_identities < 1 or embedding_dim < 1:
            raise ValueError(
                f"num_identities={num_identities} and embedding_dim={embedding_dim}: both must be positive"
            )
        if not 0 <= label_smoothing <= 1:
            raise ValueError(f"label_smoothing must lie in [0, 1], not {label_smoothing}")
        self.num_identities: int = num_identities
        self.label_smoothing = label_smoothing
        self.classifier = nn.Linear(embedding_dim, num_identities, bias=bias)

    def logits(self, embeddings: Tensor) -> Tensor:
        """One score for each identity.

        Args:
            embeddings: (N, D) floating-point.

        Returns:
            (N, C) logits, float32 or wider.
        """
        with torch.autocast(embeddings.device.type, enabled=False):
            return at_least_float32(self.classifier(embeddings.to(self.classifier.weight.dtype)))

    def forward(self, embeddings: Tensor, labels: Tensor) -> HeadOutput:
        """Computes the cross entropy, averaged over the batch.

        Args:
            embeddings: (N, D) floating-point.
            labels: (N,) int64, from 0 to C - 1.

        Returns:
            The loss (through :func:`~facelit.distributed.weigh_part`), and the metrics loss_softmax (this
            process's mean), identity_accuracy (the share of the batch whose identity has the highest logit) and
            embedding_norm (mean Euclidean norm).

        Raises:
            ValueError: if a label is out of range (on the CPU; on a GPU it is a device-side assertion).
        """
        check_labels(labels, self.num_identities)
        logits = self.logits(embeddings)
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        with torch.no_grad():
            metrics = {
                "loss_softmax": loss.detach(),
                "identity_accuracy": (logits.argmax(dim=1) == labels).float().mean(),
                "embedding_norm": at_least_float32(embeddings.detach()).norm(dim=1).mean(),
            }
        return HeadOutput(weigh_part(loss, len(labels)), metrics)
