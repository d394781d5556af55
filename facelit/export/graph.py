"""The network as it is exported: from a crop's pixels to embeddings that can be compared."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from facelit.export.metadata import DType, Layout


class EmbeddingGraph(nn.Module):
    """A backbone in eval mode with input normalisation before it and L2 normalisation after it.

    Args:
        backbone: Maps float images in [-1, 1], shape (N, 3, 112, 112), to embeddings (N, D). It is set to eval mode: batch
            normalisation uses its running statistics, dropout does nothing.
        normalize: Whether the input is RGB in 0..255, which `(x - 127.5) / 127.5` maps to [-1, 1] here.
        l2: Whether embeddings are divided by their length, so that a dot product is the cosine similarity.
        dtype: The type of the input; uint8 requires `normalize`.
        layout: The layout of the input.

    Raises:
        ValueError: uint8 without `normalize`.
    """

    def __init__(
        self,
        backbone: nn.Module,
        normalize: bool = True,
        l2: bool = True,
        dtype: DType = "uint8",
        layout: Layout = "NCHW",
    ) -> None:
        super().__init__()
        if dtype == "uint8" and not normalize:
            raise ValueError("images in [-1, 1] cannot be uint8")
        self.backbone = backbone
        self.normalize = normalize
        self.l2 = l2
        self.dtype: DType = dtype
        self.layout: Layout = layout
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Embeds crops.

        Args:
            images: `dtype`, RGB, shape (N, 3, 112, 112) or (N, 112, 112, 3).

        Returns:
            float32 (N, D).
        """
        if self.layout == "NHWC":
            images = images.permute(0, 3, 1, 2)
        images = images.to(torch.float32)
        if self.normalize:
            images = (images - 127.5) / 127.5
        embeddings: Tensor = self.backbone(images)
        return F.normalize(embeddings, dim=1) if self.l2 else embeddings

    def prepare(self, crops: Tensor) -> Tensor:
        """Turns crops into this graph's input, as a program that uses the file would.

        Args:
            crops: uint8 RGB, shape (N, 112, 112, 3).

        Returns:
            `dtype`, in `layout`, contiguous.
        """
        images = crops if self.layout == "NHWC" else crops.permute(0, 3, 1, 2)
        if self.dtype == "float32":
            images = images.to(torch.float32)
        if not self.normalize:
            images = (images - 127.5) / 127.5
        return images.contiguous()
