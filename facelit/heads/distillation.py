"""Distillation: a network learns to embed as another one does.

[1] Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, NIPS 2014 Deep Learning Workshop.
[2] Romero et al.: FitNets: Hints for Thin Deep Nets, ICLR 2015.
[3] Duong et al.: ShrinkTeaNet: Million-scale Lightweight Face Recognition via Shrinking Teacher-Student Networks,
    arXiv 1905.10620, 2019.
"""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from facelit.distributed import weigh_part
from facelit.heads.base import Head, HeadOutput, directions
from facelit.heads.precision import KeepsFloat32, at_least_float32
from facelit.heads.rows import Rows, draw_rows, random_seed

Distance = Literal["cosine", "squared"]


class DistillationLoss(KeepsFloat32):
    """Mean distance between the directions of a student's and a teacher's embeddings.

    With ``s`` and ``t`` the embeddings divided by their lengths, ``mean_i (1 - s_i . t_i)`` for "cosine", and
    ``mean_i ||s_i - t_i||^2``, which is twice that, for "squared". Only directions count, as in verification: the teacher's hint
    of [2] on the hypersphere, as in [3]. Where the widths differ, a linear map without bias takes the student's embedding to the
    teacher's width (the regressor of [2]); it is trained along, and not part of the backbone.

    Computed in float32 under autocast; the map stays in float32 when the module is cast to half precision. An embedding without
    an entry above 1e-6 has no direction: its distance is 1 and it gets no gradient.

    Args:
        embedding_dim: the length of a student's embedding, D.
        teacher_dim: the length of a teacher's embedding, T.
        distance: "cosine" or "squared".
        seed: what the map is drawn from, uniformly as nn.Linear's; None for torch's random state.

    Attributes:
        map: nn.Linear from D to T; None if they are equal.

    Raises:
        ValueError: if a size is not positive, or there is no such distance.
    """

    def __init__(
        self, embedding_dim: int, teacher_dim: int, distance: Distance = "cosine", seed: int | None = None
    ) -> None:
        super().__init__()
        if embedding_dim < 1 or teacher_dim < 1:
            raise ValueError(f"embedding_dim={embedding_dim} and teacher_dim={teacher_dim}: both must be positive")
        if distance not in get_args(Distance):
            raise ValueError(f"distance must be one of {', '.join(get_args(Distance))}, not {distance!r}")
        self.embedding_dim = embedding_dim
        self.teacher_dim = teacher_dim
        self.distance = distance
        self.map: nn.Linear | None = None
        if embedding_dim != teacher_dim:
            self.map = nn.Linear(embedding_dim, teacher_dim, bias=False)
            bound = embedding_dim**-0.5
            drawn = draw_rows(
                Rows(0, teacher_dim),
                embedding_dim,
                random_seed() if seed is None else seed,
                lambda x, generator: x.uniform_(-bound, bound, generator=generator),
            )
            self.map.weight = nn.Parameter(drawn)

    def forward(self, embeddings: Tensor, targets: Tensor) -> Tensor:
        """Computes the loss of a batch.

        Args:
            embeddings: (N, D) floating-point, of the student; not normalised.
            targets: (N, T) floating-point, of the teacher, for the same images; need not be normalised, get no gradient.

        Returns:
            Scalar, float32 or wider, whose gradients averaged over the processes are those of the global batch.

        Raises:
            ValueError: if the shapes do not fit.
        """
        expected = ((len(embeddings), self.embedding_dim), (len(embeddings), self.teacher_dim))
        if (tuple(embeddings.shape), tuple(targets.shape)) != expected:
            raise ValueError(
                f"expected embeddings of shape {expected[0]} and targets of shape {expected[1]}, got"
                f" {tuple(embeddings.shape)} and {tuple(targets.shape)}"
            )
        mapped = at_least_float32(embeddings)
        if self.map is not None:
            with torch.autocast(mapped.device.type, enabled=False):
                mapped = nn.functional.linear(mapped, self.map.weight.to(mapped.dtype))
        student, teacher = directions(mapped), directions(targets.detach().to(mapped))
        if self.distance == "squared":
            distances = (student - teacher).square().sum(dim=1)
        else:
            distances = 1 - (student * teacher).sum(dim=1)
        return weigh_part(distances.mean(), len(embeddings))


class DistillationHead(Head):
    """Adds nothing to a teacher's loss: the network learns from ``model.distillation`` alone, and labels are not looked at.

    Any folder of folders does as a training set, whoever its people are.

    Metrics: embedding_norm (mean Euclidean norm).
    """

    def forward(self, embeddings: Tensor, labels: Tensor) -> HeadOutput:
        """A loss of 0, float32 or wider, for embeddings (N, D)."""
        wide = at_least_float32(embeddings)
        return HeadOutput(wide.new_zeros(()), {"embedding_norm": wide.detach().norm(dim=1).mean()})
