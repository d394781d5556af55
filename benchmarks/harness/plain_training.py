"""The plain, obvious training step to compare facelit's with.

float32 in NCHW order, no fused optimizer. Center loss: the matrix of all batch x identities distances, a mask that
picks one of each row, and an update of every center. Triplets: drawn beforehand, their anchors, positives and negatives sent
through the network in three forward passes, a third of the batch each. Softmax: a linear layer and cross entropy. To its
advantage, its images are already normalised and not augmented, and it logs nothing.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.training_setup import EMBEDDING_DIM, GRADIENT_CLIP, Setting, make_backbone

_ALPHA, _WEIGHT, _MARGIN = 0.5, 0.003, 0.2


def dense_bytes(setting: Setting) -> int:
    """Approximate bytes of centers and logits that the dense baseline holds at once.

    Centers and two temporaries of their size; weights, gradient and momentum; six batch x identities matrices of distances and
    mask (one int64), three of logits.
    """
    if setting.head == "triplet":
        return 0
    center = setting.head == "center"
    rows, columns = (6, 9) if center else (3, 3)
    return 4 * setting.identities * (rows * EMBEDDING_DIM + columns * setting.batch)


class PlainTraining:
    """A training step in its usual first implementation.

    Args:
        setting: The network, head and sizes; its precision and `compiled` are ignored.
    """

    def __init__(self, setting: Setting) -> None:
        torch.manual_seed(0)
        self.head = setting.head
        self.device = torch.device(setting.device)
        self.backbone = make_backbone(setting.backbone, setting.width).to(self.device).train()
        parameters = list(self.backbone.parameters())
        if self.head != "triplet":
            self.classifier = nn.Linear(EMBEDDING_DIM, setting.identities).to(self.device)
            parameters += self.classifier.parameters()
        if self.head == "center":
            self.centers = torch.empty(setting.identities, EMBEDDING_DIM, device=self.device).uniform_(-0.1, 0.1)
        self.parameters = parameters
        self.optimizer = torch.optim.SGD(parameters, lr=1e-3, momentum=0.9, weight_decay=5e-4, fused=False)

    def step(self, images: Tensor, labels: Tensor) -> Tensor:
        """One optimizer step.

        Args:
            images: float32 in [-1, 1], (N, 3, 112, 112), NCHW.
            labels: (N,) int64.

        Returns:
            The loss, detached.
        """
        self.optimizer.zero_grad()
        embeddings, loss = self._triplet_loss(images) if self.head == "triplet" else self._softmax_loss(images, labels)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.parameters, GRADIENT_CLIP)
        self.optimizer.step()
        if self.head == "center":
            self._move_centers(embeddings.detach(), labels)
        return loss.detach()

    def _softmax_loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        embeddings: Tensor = self.backbone(images)
        loss = F.cross_entropy(self.classifier(embeddings), labels)
        return embeddings, loss + _WEIGHT * self._center_loss(embeddings, labels) if self.head == "center" else loss

    def _center_loss(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        squared = (
            embeddings.square().sum(1, keepdim=True) + self.centers.square().sum(1) - 2 * embeddings @ self.centers.T
        )
        self.mask = F.one_hot(labels, len(self.centers)).float()  # (N, C)
        return (self.mask * squared).sum() / 2 / len(labels)

    @torch.no_grad()
    def _move_centers(self, embeddings: Tensor, labels: Tensor) -> None:
        counts = self.mask.sum(0).unsqueeze(1)
        delta = (counts * self.centers - self.mask.T @ embeddings) / (1 + counts)  # (C, D)
        self.centers.sub_(delta, alpha=_ALPHA)

    def _triplet_loss(self, images: Tensor) -> tuple[Tensor, Tensor]:
        third = len(images) // 3
        anchors, positives, negatives = (
            F.normalize(self.backbone(images[number * third : (number + 1) * third]), dim=1) for number in range(3)
        )
        genuine = (anchors - positives).square().sum(1)
        impostor = (anchors - negatives).square().sum(1)
        return anchors, (genuine - impostor + _MARGIN).clamp(min=0).mean()
