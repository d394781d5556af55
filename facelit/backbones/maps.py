"""Feature maps of images that are smaller than the crops a backbone was made for."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def stretched(maps: Tensor, height: int, width: int) -> Tensor:
    """Stretches a smaller feature map to the size that the layer behind it was made for; leaves others as they are.

    Adaptive average pooling, as in torchvision's VGG: it is what lets a run begin on small images
    (`facelit.training.resizing`). A map that is too large is an image of the wrong size, and fails in the layer behind.

    Args:
        maps: (N, C, H, W).
        height: H that the layer takes.
        width: W that it takes.

    Returns:
        (N, C, height, width), or `maps` itself.
    """
    if maps.shape[2] < height or maps.shape[3] < width:
        return F.adaptive_avg_pool2d(maps, (height, width))
    return maps
