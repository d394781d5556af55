"""CosFace: a margin on the cosine.

[1] Wang et al.: CosFace: Large Margin Cosine Loss for Deep Face Recognition, CVPR 2018.
"""

from torch import Tensor

from facelit.heads.identity import CenterTerm
from facelit.heads.margin import MarginHead, combined_margin


class CosFaceHead(MarginHead):
    """``scale * (cos(theta) - margin)`` for the own identity, eq. 4 of [1].

    Args:
        num_identities: the number of identities, C.
        embedding_dim: the length of an embedding, D.
        scale: the factor of the cosines, s.
        margin: of the cosine, m.
        margin_ramp: training batches in which the margin's effect grows linearly from nothing; 0 for all of it at once.
        label_smoothing: the share of the target that is spread over all identities, from 0 to 1.
        center: the center loss that goes with it (``center.weight``, ``center.alpha``); None for none.
        sharded: whether the processes share out the identities (Partial FC).
        sample_rate: the share of the identities that a training batch is compared with; 1 for all.

    Raises:
        ValueError: if a size or the scale is not positive, the margin is negative, or a share is outside its range.
    """

    def __init__(
        self,
        num_identities: int,
        embedding_dim: int,
        scale: float = 64.0,
        margin: float = 0.35,
        margin_ramp: int = 0,
        label_smoothing: float = 0.0,
        center: CenterTerm | None = None,
        sharded: bool = False,
        sample_rate: float = 1.0,
    ) -> None:
        super().__init__(
            num_identities, embedding_dim, scale, margin_ramp, label_smoothing, center, sharded, sample_rate
        )
        if not margin >= 0:
            raise ValueError(f"margin must not be negative, but is {margin}")
        self.margin = margin

    def add_margin(self, cosines: Tensor, norms: Tensor) -> Tensor:
        """``cos(theta) - margin``."""
        return combined_margin(cosines, m3=self.margin)
