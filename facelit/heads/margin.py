"""Heads with a margin: the own identity's cosine must beat the others' by a distance.

[1] Wang et al.: CosFace: Large Margin Cosine Loss for Deep Face Recognition, CVPR 2018.
[2] Deng, Guo, Xue, Zafeiriou: ArcFace: Additive Angular Margin Loss for Deep Face Recognition, CVPR 2019.
[3] Liu et al.: SphereFace: Deep Hypersphere Embedding for Face Recognition, CVPR 2017.
"""

import math
from abc import abstractmethod

import torch
from torch import Tensor

from facelit.heads.identity import CenterTerm, IdentityHead

_SMALLEST_SINE = 1e-4


class MarginHead(IdentityHead):
    """Softmax over ``scale * cos``, embeddings and identities' vectors being of length 1, the own cosine lowered by a margin.

    Subclasses override :meth:`add_margin`.

    Args:
        num_identities: the number of identities, C.
        embedding_dim: the length of an embedding, D.
        scale: the factor of the cosines, s.
        margin_ramp: training batches in which the margin's effect grows linearly from nothing; 0 for all of it at once.
        label_smoothing: the share of the target that is spread over all identities, from 0 to 1.
        center: the center loss that goes with it (``center.weight``, ``center.alpha``), on the embeddings as they are, not
            normalised; None for none.
        sharded: whether the processes share out the identities (Partial FC).
        sample_rate: the share of the identities that a training batch is compared with; 1 for all.

    Attributes:
        batches_seen: int64 scalar, training batches so far.

    Raises:
        ValueError: if a size or the scale is not positive, or a share is outside its range.
    """

    batches_seen: Tensor

    def __init__(
        self,
        num_identities: int,
        embedding_dim: int,
        scale: float = 64.0,
        margin_ramp: int = 0,
        label_smoothing: float = 0.0,
        center: CenterTerm | None = None,
        sharded: bool = False,
        sample_rate: float = 1.0,
    ) -> None:
        super().__init__(num_identities, embedding_dim, False, label_smoothing, center, sharded, sample_rate)
        if not scale > 0:
            raise ValueError(f"scale must be positive, not {scale}")
        if margin_ramp < 0:
            raise ValueError(f"margin_ramp must not be negative, but is {margin_ramp}")
        self.scale: float = scale
        self.margin_ramp = margin_ramp
        self.register_buffer("batches_seen", torch.zeros((), dtype=torch.int64))

    @abstractmethod
    def add_margin(self, cosines: Tensor, norms: Tensor) -> Tensor:
        """Lowers cosines.

        Args:
            cosines: (N,) float32 or wider, of the angles between embeddings and their own identities' vectors; rounding may
                take them a little past -1 and 1.
            norms: (N,) Euclidean norms of the embeddings, without gradient.

        Returns:
            (N,) what takes their place, with a finite gradient everywhere.
        """

    def draw(self, vectors: Tensor, generator: torch.Generator) -> None:
        """Standard deviation 0.01: only the direction counts, and short vectors turn quickly."""
        vectors.normal_(0, 0.01, generator=generator)

    def target_logits(self, own: Tensor, norms: Tensor) -> Tensor:
        """The own logits with the margin, as far as it has grown."""
        cosines = own / self.scale
        lowered = self.add_margin(cosines, norms)
        if self.margin_ramp:
            grown = (self.batches_seen.to(cosines.dtype) / self.margin_ramp).clamp(max=1)
            lowered = cosines + grown * (lowered - cosines)
        if self.training and torch.is_grad_enabled():
            self.batches_seen += 1
        return self.scale * lowered


def sine_of(cosines: Tensor) -> Tensor:
    """``sqrt(1 - cos^2)``, at least 1e-4: so that its gradient, and an angle's, are finite at cosines of -1 and 1.

    Args:
        cosines: (N,) from -1 to 1, and a little past for rounding.
    """
    return (1 - cosines.square()).clamp_min(_SMALLEST_SINE**2).sqrt()


def combined_margin(cosines: Tensor, m1: float = 1.0, m2: float = 0.0, m3: float = 0.0) -> Tensor:
    """``cos(m1 * theta + m2) - m3``, sec. 2.3 of [2].

    Past ``m1 * theta + m2 = pi``, where the plain formula would rise again and reward larger angles, it goes on falling as
    in [3]: ``(-1)^k cos(phi) - 2k`` for phi between k pi and (k + 1) pi.

    Args:
        cosines: (N,) floating-point, from -1 to 1.
        m1: factor of the angle, as in [3]; at least 1.
        m2: margin of the angle in radians, as in [2].
        m3: margin of the cosine, as in [1].

    Returns:
        (N,) of the same dtype; it falls with the angle, and its gradient is finite.
    """
    if m1 == 1 and m2 == 0:
        return cosines - m3
    # At a cosine of 1 and a little, which rounding makes, the gradient is that at 1.
    cosines = cosines + (cosines.clamp(-1, 1) - cosines).detach()
    phi = m1 * torch.atan2(sine_of(cosines), cosines) + m2
    turns = (phi.detach() / math.pi).floor()
    return (1 - 2 * turns.remainder(2)) * phi.cos() - 2 * turns - m3
