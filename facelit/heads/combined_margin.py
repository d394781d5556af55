"""All three margins at once.

[1] Deng, Guo, Xue, Zafeiriou: ArcFace: Additive Angular Margin Loss for Deep Face Recognition, CVPR 2019.
"""

from typing import Any

from torch import Tensor

from facelit.heads.margin import MarginHead, combined_margin


class CombinedMarginHead(MarginHead):
    """``scale * (cos(m1 * theta + m2) - m3)`` for a sample's own identity, eq. 4 of [1].

    Args:
        num_identities: the number of identities, C.
        embedding_dim: the length of an embedding, D.
        m1: multiplies the angle (SphereFace); at least 1.
        m2: added to the angle, in radians (ArcFace).
        m3: subtracted from the cosine (CosFace).
        options: those of :class:`MarginHead`.

    Raises:
        ValueError: if m1 is below 1, m2 or m3 is negative, or as :class:`MarginHead`.
    """

    def __init__(
        self,
        num_identities: int,
        embedding_dim: int,
        *,
        m1: float = 1.0,
        m2: float = 0.3,
        m3: float = 0.2,
        **options: Any,
    ) -> None:
        super().__init__(num_identities, embedding_dim, **options)
        if not (m1 >= 1 and m2 >= 0 and m3 >= 0):
            raise ValueError(f"m1={m1} must be at least 1, m2={m2} and m3={m3} at least 0")
        self.m1, self.m2, self.m3 = m1, m2, m3

    def add_margin(self, cosines: Tensor, norms: Tensor) -> Tensor:
        """``cos(m1 * theta + m2) - m3``."""
        return combined_margin(cosines, self.m1, self.m2, self.m3)
