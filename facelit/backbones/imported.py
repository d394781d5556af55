"""A network that was trained on differently prepared images, made to take facelit's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from facelit.errors import FacelitError

_CROP = 112
_HALF_RANGE = 127.5


class ImportedBackbone(nn.Module):
    """Converts facelit's crops to what a network was trained on, inside the graph: nothing else has to know.

    A crop is cut to the aspect ratio of `size` about its centre, resized where that is needed (bilinear), normalised, and its
    colours are reordered. With the defaults the network gets facelit's crops as they are.

    Args:
        network: images (N, 3, *size) to embeddings (N, D).
        embedding_dim: the length of an embedding, D.
        size: height and width of the images that the network takes.
        colour: the order of the colours that the network takes.
        mean: subtracted from red, green and blue in 0..255.
        std: what red, green and blue are divided by afterwards.
        l2: whether embeddings are divided by their length, for a network whose authors do so inside it.
        flip_average: whether an embedding is the mean of the crop's and its mirror image's; not in training.

    Attributes:
        embedding_dim: the length of an embedding.

    Raises:
        FacelitError: if a size or a standard deviation is not positive, or there are not three means.
    """

    def __init__(
        self,
        network: nn.Module,
        embedding_dim: int,
        size: Sequence[int] = (_CROP, _CROP),
        colour: Literal["RGB", "BGR"] = "RGB",
        mean: Sequence[float] = (_HALF_RANGE,) * 3,
        std: Sequence[float] = (_HALF_RANGE,) * 3,
        l2: bool = False,
        flip_average: bool = False,
    ) -> None:
        super().__init__()
        _check(size, colour, mean, std)
        self.network = network
        self.embedding_dim = embedding_dim
        self.size = (int(size[0]), int(size[1]))
        self.colour = colour
        self.l2 = l2
        self.flip_average = flip_average
        means, deviations = (torch.tensor(values, dtype=torch.float64).view(1, 3, 1, 1) for values in (mean, std))
        # Of 0..255 = 127.5 (x + 1), x being facelit's.
        self.scale: Tensor
        self.offset: Tensor
        self.register_buffer("scale", (_HALF_RANGE / deviations).float(), persistent=False)
        self.register_buffer("offset", ((_HALF_RANGE - means) / deviations).float(), persistent=False)
        self._as_it_is = set(mean) == set(std) == {_HALF_RANGE}

    def forward(self, images: Tensor) -> Tensor:
        """Embeds a batch of crops.

        Args:
            images: (N, 3, 112, 112) floating-point RGB in [-1, 1].

        Returns:
            (N, D) embeddings; of length 1 with `l2` alone, else not normalised.
        """
        embeddings = self._embed(images)
        if self.flip_average and not self.training:
            embeddings = (embeddings + self._embed(images.flip(3))) / 2
        return embeddings

    def prepare(self, images: Tensor) -> Tensor:
        """What the network gets for facelit's crops: (N, 3, 112, 112) to (N, 3, *size)."""
        height, width = self.size
        ratio = min(_CROP / height, _CROP / width)
        cut_height, cut_width = round(height * ratio), round(width * ratio)
        top, left = (_CROP - cut_height) // 2, (_CROP - cut_width) // 2
        images = images[:, :, top : top + cut_height, left : left + cut_width]
        if (cut_height, cut_width) != self.size:
            smaller = height < cut_height
            images = F.interpolate(images, self.size, mode="bilinear", align_corners=False, antialias=smaller)
        if not self._as_it_is:
            images = images * self.scale.to(images.dtype) + self.offset.to(images.dtype)
        return images.flip(1) if self.colour == "BGR" else images

    def _embed(self, images: Tensor) -> Tensor:
        embeddings: Tensor = self.network(self.prepare(images))
        return F.normalize(embeddings, dim=1) if self.l2 else embeddings


def _check(size: Sequence[int], colour: str, mean: Sequence[float], std: Sequence[float]) -> None:
    if len(size) != 2 or not all(side >= 1 for side in size):
        raise FacelitError(f"ImportedBackbone: size is height and width in pixels, not {list(size)}")
    if colour not in ("RGB", "BGR"):
        raise FacelitError(f"ImportedBackbone: colour must be RGB or BGR, not {colour}")
    if len(mean) != 3 or len(std) != 3 or not all(value > 0 for value in std):
        raise FacelitError(
            f"ImportedBackbone: mean and std are three numbers each, std above 0, not {list(mean)} and {list(std)}"
        )
