"""ArcFace: a margin on the angle.

[1] Deng, Guo, Xue, Zafeiriou: ArcFace: Additive Angular Margin Loss for Deep Face Recognition, CVPR 2019.
"""

from typing import Any

from torch import Tensor

from facelit.heads.margin import MarginHead, combined_margin


class ArcFaceHead(MarginHead):
    """``scale * cos(theta + margin)`` for a sample's own identity, eq. 3 of [1].

    Beyond ``theta + margin = pi`` the logit keeps falling; see :func:`~facelit.heads.margin.combined_margin`.

    Args:
        num_identities: the number of identities, C.
        embedding_dim: the length of an embedding, D.
        margin: added to the angle, in radians; m in the paper.
        options: those of :class:`MarginHead`.

    Raises:
        ValueError: if the margin is negative, or as :class:`MarginHead`.
    """

    def __init__(self, num_identities: int, embedding_dim: int, *, margin: float = 0.5, **options: Any) -> None:
        super().__init__(num_identities, embedding_dim, **options)
        if not margin >= 0:
            raise ValueError(f"margin must not be negative, but is {margin}")
        self.margin = margin

    def add_margin(self, cosines: Tensor, norms: Tensor) -> Tensor:
        """``cos(theta + margin)``."""
        return combined_margin(cosines, m2=self.margin)
