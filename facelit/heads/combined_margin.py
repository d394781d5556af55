"""All three margins at once.

[1] Deng, Guo, Xue, Zafeiriou: ArcFace: Additive Angular Margin Loss for Deep Face Recognition, CVPR 2019.
"""

from torch import Tensor

from facelit.heads.identity import CenterTerm
from facelit.heads.margin import MarginHead, combined_margin


class CombinedMarginHead(MarginHead):
    """``scale * (cos(m1 * theta + m2) - m3)`` for the own identity, eq. 4 of [1].

    Args:
        num_identities: the number of identities, C.
        embedding_dim: the length of an embedding, D.
        scale: the factor of the cosines, s.
        m1: factor of the angle (SphereFace), at least 1.
        m2: margin of the angle in radians (ArcFace).
        m3: margin of the cosine (CosFace).
        margin_ramp: training batches in which the margin's effect grows linearly from nothing; 0 for all of it at once.
        label_smoothing: the share of the target that is spread over all identities, from 0 to 1.
        center: the center loss that goes with it (``center.weight``, ``center.alpha``); None for none.
        sharded: whether the processes share out the identities (Partial FC).
        sample_rate: the share of the identities that a training batch is compared with; 1 for all.

    Raises:
        ValueError: if a size or the scale is not positive, m1 is below 1, m2 or m3 is negative, or a share is outside its
            range.
    """

    def __init__(
        self,
        num_identities: int,
        embedding_dim: int,
        scale: float = 64.0,
        m1: float = 1.0,
        m2: float = 0.3,
        m3: float = 0.2,
        margin_ramp: int = 0,
        label_smoothing: float = 0.0,
        center: CenterTerm | None = None,
        sharded: bool = False,
        sample_rate: float = 1.0,
    ) -> None:
        super().__init__(
            num_identities, embedding_dim, scale, margin_ramp, label_smoothing, center, sharded, sample_rate
        )
        if not (m1 >= 1 and m2 >= 0 and m3 >= 0):
            raise ValueError(f"m1={m1} must be at least 1, m2={m2} and m3={m3} at least 0")
        self.m1, self.m2, self.m3 = m1, m2, m3

    def add_margin(self, cosines: Tensor, norms: Tensor) -> Tensor:
        """``cos(m1 * theta + m2) - m3``."""
        return combined_margin(cosines, self.m1, self.m2, self.m3)
