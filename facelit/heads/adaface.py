"""AdaFace: a margin that depends on image quality, which the norm of the embedding indicates.

[1] Kim, Jain, Liu: AdaFace: Quality Adaptive Margin for Face Recognition, CVPR 2022.
"""

import math
from typing import Any

import torch
from torch import Tensor

from facelit.distributed import all_gather
from facelit.heads.margin import MarginHead, inside_domain, sine_of
from facelit.heads.precision import KeepsFloat32


class AdaFaceHead(KeepsFloat32, MarginHead):
    """``scale * (cos(theta + g_angle) - g_add)`` for a sample's own identity, eq. 7 to 10 of [1].

    ``g_angle = -margin * q`` and ``g_add = margin * q + margin``, where q is the z-score of the embedding's norm, times
    `concentration`, clipped to [-1, 1]. The z-score uses running averages of the global batches' mean and standard
    deviation. The angle ``theta + g_angle`` is clipped to [0, pi], as in the authors' code.

    Args:
        num_identities: the number of identities, C.
        embedding_dim: the length of an embedding, D.
        margin: m in the paper.
        concentration: multiplies the z-score; h in the paper.
        momentum: weight of the current batch in the running averages; t_alpha in the authors' code.
        options: those of :class:`MarginHead`.

    Attributes:
        norm_mean: float32 scalar, running average of the norms' mean.
        norm_std: float32 scalar, running average of their standard deviation.

    Raises:
        ValueError: if the margin is negative, the concentration is not positive, the momentum is outside (0, 1], or as
            :class:`MarginHead`.
    """

    norm_mean: Tensor
    norm_std: Tensor

    def __init__(
        self,
        num_identities: int,
        embedding_dim: int,
        *,
        margin: float = 0.4,
        concentration: float = 0.333,
        momentum: float = 0.01,
        **options: Any,
    ) -> None:
        super().__init__(num_identities, embedding_dim, **options)
        if not (margin >= 0 and concentration > 0):
            raise ValueError(f"margin={margin} must not be negative, concentration={concentration} must be positive")
        if not 0 < momentum <= 1:
            raise ValueError(f"momentum must be in (0, 1], not {momentum}")
        self.margin, self.concentration, self.momentum = margin, concentration, momentum
        self.register_buffer("norm_mean", torch.tensor(20.0))  # where the authors' code starts
        self.register_buffer("norm_std", torch.tensor(100.0))

    def keeps(self, tensor: Tensor) -> bool:
        """The running averages stay in float32; the identities' vectors are narrowed."""
        return tensor is self.norm_mean or tensor is self.norm_std

    def add_margin(self, cosines: Tensor, norms: Tensor) -> Tensor:
        """``cos(theta + g_angle) - g_add``."""
        quality = self._quality(norms.clamp(0.001, 100)).to(cosines.dtype)
        cosines = inside_domain(cosines)
        angle = torch.atan2(sine_of(cosines), cosines) - self.margin * quality
        return angle.clamp(0, math.pi).cos() - self.margin * (quality + 1)

    @torch.no_grad()
    def _quality(self, norms: Tensor) -> Tensor:
        """(N,) q of each sample, from -1 (a poor image) to 1; updates the running averages in training."""
        if self.training:
            all_norms = norms if self.sharded else all_gather(norms)
            self.norm_mean.lerp_(all_norms.mean().to(self.norm_mean.dtype), self.momentum)
            if len(all_norms) > 1:  # a single one has no deviation
                self.norm_std.lerp_(all_norms.std().to(self.norm_std.dtype), self.momentum)
        return ((norms - self.norm_mean) / (self.norm_std + 1e-3) * self.concentration).clamp(-1, 1)
