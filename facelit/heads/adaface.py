"""AdaFace: a margin that depends on how good the image is, as the embedding's norm tells.

[1] Kim, Jain, Liu: AdaFace: Quality Adaptive Margin for Face Recognition, CVPR 2022.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from facelit.distributed import all_gather
from facelit.heads.identity import CenterTerm
from facelit.heads.margin import MarginHead, sine_of


class AdaFaceHead(MarginHead):
    """``scale * (cos(theta + g_angle) - g_add)`` for the own identity, eq. 7 to 10 of [1].

    With the embedding's norm z-scored over the batches, times `concentration` and clipped to [-1, 1] as q:
    ``g_angle = -margin * q``, ``g_add = margin * q + margin``. Mean and standard deviation are of the global batch, averaged
    over the batches. The angle ``theta + g_angle`` is kept between 0 and pi, as in the authors' code.

    Args:
        num_identities: the number of identities, C.
        embedding_dim: the length of an embedding, D.
        scale: the factor of the cosines, s.
        margin: m.
        concentration: factor of the z-score, h.
        momentum: the share of a batch in the running mean and standard deviation, t_alpha in the authors' code.
        margin_ramp: training batches in which the margin's effect grows linearly from nothing; 0 for all of it at once.
        label_smoothing: the share of the target that is spread over all identities, from 0 to 1.
        center: the center loss that goes with it (``center.weight``, ``center.alpha``); None for none.
        sharded: whether the processes share out the identities (Partial FC).
        sample_rate: the share of the identities that a training batch is compared with; 1 for all.

    Attributes:
        norm_mean: float32 scalar, running mean of the norms.
        norm_std: float32 scalar, running standard deviation.

    Raises:
        ValueError: if a size, the scale or the concentration is not positive, the margin is negative, or a share is outside its
            range.
    """

    norm_mean: Tensor
    norm_std: Tensor

    def __init__(
        self,
        num_identities: int,
        embedding_dim: int,
        scale: float = 64.0,
        margin: float = 0.4,
        concentration: float = 0.333,
        momentum: float = 0.01,
        margin_ramp: int = 0,
        label_smoothing: float = 0.0,
        center: CenterTerm | None = None,
        sharded: bool = False,
        sample_rate: float = 1.0,
    ) -> None:
        super().__init__(
            num_identities, embedding_dim, scale, margin_ramp, label_smoothing, center, sharded, sample_rate
        )
        if not (margin >= 0 and concentration > 0):
            raise ValueError(f"margin={margin} must not be negative, concentration={concentration} must be positive")
        if not 0 < momentum <= 1:
            raise ValueError(f"momentum must lie above 0 and up to 1, not {momentum}")
        self.margin, self.concentration, self.momentum = margin, concentration, momentum
        self.register_buffer("norm_mean", torch.tensor(20.0))  # where the authors' code starts
        self.register_buffer("norm_std", torch.tensor(100.0))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "AdaFaceHead":
        """Moves as any module does, but ``half()`` and its like would round the running figures' small steps away."""
        before = {name: getattr(self, name) for name in ("norm_mean", "norm_std")}
        super()._apply(fn, recurse)
        for name, figure in before.items():
            moved = getattr(self, name)
            if moved.element_size() < figure.element_size():
                setattr(self, name, figure.to(moved.device))
        return self

    def add_margin(self, cosines: Tensor, norms: Tensor) -> Tensor:
        """``cos(theta + g_angle) - g_add``."""
        quality = self._quality(norms.clamp(0.001, 100)).to(cosines.dtype)
        bounded = cosines + (cosines.clamp(-1, 1) - cosines).detach()
        angle = torch.atan2(sine_of(bounded), bounded) - self.margin * quality
        return angle.clamp(0, math.pi).cos() - self.margin * (quality + 1)

    @torch.no_grad()
    def _quality(self, norms: Tensor) -> Tensor:
        """(N,) from -1 (a poor image) to 1; moves the running figures in training."""
        if self.training:
            everybody = norms if self.sharded else all_gather(norms)
            self.norm_mean.lerp_(everybody.mean().to(self.norm_mean.dtype), self.momentum)
            if len(everybody) > 1:  # one alone has no deviation
                self.norm_std.lerp_(everybody.std().to(self.norm_std.dtype), self.momentum)
        return ((norms - self.norm_mean) / (self.norm_std + 1e-3) * self.concentration).clamp(-1, 1)
