"""Heads with a margin: the cosine to a sample's own identity must exceed the others by some distance.

[1] Wang et al.: CosFace: Large Margin Cosine Loss for Deep Face Recognition, CVPR 2018.
[2] Deng, Guo, Xue, Zafeiriou: ArcFace: Additive Angular Margin Loss for Deep Face Recognition, CVPR 2019.
[3] Liu et al.: SphereFace: Deep Hypersphere Embedding for Face Recognition, CVPR 2017.
"""

import math
from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from facelit.heads.identity import IdentityHead

_SMALLEST_SINE = 1e-4


class MarginHead(IdentityHead):
    """Softmax over ``scale * cos``, theta being the angle between embedding and identity; a margin lowers a sample's own cosine.

    Subclasses override :meth:`add_margin`.

    Args:
        num_identities: the number of identities, C.
        embedding_dim: the length of an embedding, D.
        scale: multiplies the cosines; s in the papers.
        margin_ramp: training batches over which the margin grows linearly from 0; 0 applies all of it at once.
        options: those of :class:`IdentityHead`, except ``bias``.

    Attributes:
        batches_seen: int64 scalar, training batches so far.

    Raises:
        ValueError: if the scale is not positive, the ramp is negative, or as :class:`IdentityHead`.
    """

    batches_seen: Tensor

    def __init__(
        self, num_identities: int, embedding_dim: int, scale: float = 64.0, margin_ramp: int = 0, **options: Any
    ) -> None:
        super().__init__(num_identities, embedding_dim, bias=False, **options)
        if not scale > 0:
            raise ValueError(f"scale must be positive, not {scale}")
        if margin_ramp < 0:
            raise ValueError(f"margin_ramp must not be negative, but is {margin_ramp}")
        self.scale: float = scale
        self.margin_ramp = margin_ramp
        self.register_buffer("batches_seen", torch.zeros((), dtype=torch.int64))

    @abstractmethod
    def add_margin(self, cosines: Tensor, norms: Tensor) -> Tensor:
        """Lowers the samples' cosines to their own identities.

        Args:
            cosines: (N,) float32 or wider; rounding may take them slightly outside [-1, 1].
            norms: (N,) Euclidean norms of the embeddings, detached.

        Returns:
            (N,) lowered cosines, whose gradient is finite everywhere.
        """

    def draw(self, vectors: Tensor, generator: torch.Generator) -> None:
        """Standard deviation 0.01: only the direction matters, and short vectors turn quickly."""
        vectors.normal_(0, 0.01, generator=generator)

    def target_logits(self, own: Tensor, norms: Tensor) -> Tensor:
        """The own logits less the margin, scaled by how far the ramp has come."""
        cosines = own / self.scale
        lowered = self.add_margin(cosines, norms)
        if self.margin_ramp:
            grown = (self.batches_seen.to(cosines.dtype) / self.margin_ramp).clamp(max=1)
            lowered = cosines + grown * (lowered - cosines)
        if self.training and torch.is_grad_enabled():
            self.batches_seen += 1
        return self.scale * lowered


def inside_domain(cosines: Tensor) -> Tensor:
    """Cosines clamped to [-1, 1]; unlike clamp's, the gradient of those outside by rounding is 1, not 0."""
    return cosines + (cosines.clamp(-1, 1) - cosines).detach()


def sine_of(cosines: Tensor) -> Tensor:
    """``sqrt(1 - cos^2)``, at least 1e-4, which keeps its gradient and an angle's finite at cosines of -1 and 1.

    Args:
        cosines: (N,) from -1 to 1, or slightly outside through rounding.
    """
    return (1 - cosines.square()).clamp_min(_SMALLEST_SINE**2).sqrt()


def combined_margin(cosines: Tensor, m1: float = 1.0, m2: float = 0.0, m3: float = 0.0) -> Tensor:
    """``cos(m1 * theta + m2) - m3``, sec. 2.3 of [2].

    Beyond ``m1 * theta + m2 = pi``, where the plain formula would rise again and reward larger angles, it keeps falling as
    in [3]: ``(-1)^k cos(phi) - 2k`` for phi between k pi and (k + 1) pi.

    Args:
        cosines: (N,) floating-point, from -1 to 1, or slightly outside through rounding.
        m1: multiplies the angle, as in [3]; at least 1.
        m2: added to the angle, in radians, as in [2].
        m3: subtracted from the cosine, as in [1].

    Returns:
        (N,) of the same dtype, falling as the angle grows, with a finite gradient.
    """
    if m1 == 1 and m2 == 0:
        return cosines - m3
    cosines = inside_domain(cosines)
    phi = m1 * torch.atan2(sine_of(cosines), cosines) + m2
    turns = (phi.detach() / math.pi).floor()
    return (1 - 2 * turns.remainder(2)) * phi.cos() - 2 * turns - m3
