"""Random changes to training crops, on whole batches and on the training device.

Every random number is a hash of (seed, epoch, image number, which number): a crop is changed in the same way whatever
the number of workers, the number of processes, or the place of a resume.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from facelit.data.samplers import Indices

_DRAWS = 12  # random numbers per image


class Augmentation:
    """What training crops go through; with the defaults a horizontal flip of every second one, and nothing else.

    Args:
        flip: Probability of a horizontal flip.
        rotate: Largest rotation either way, in degrees.
        scale: Largest change of size either way, as a share (0.1: between 0.9 and 1.1 times).
        shift: Largest shift either way along each axis, as a share of the crop's side.
        brightness: Largest change of brightness either way, as a share of the full range.
        contrast: Largest change of contrast either way, as a factor's distance from 1.
        grayscale: Probability of losing the colour.
        erase: Probability of a grey rectangle over 2 % to 20 % of the crop.
    """

    def __init__(
        self,
        flip: float = 0.5,
        rotate: float = 0.0,
        scale: float = 0.0,
        shift: float = 0.0,
        brightness: float = 0.0,
        contrast: float = 0.0,
        grayscale: float = 0.0,
        erase: float = 0.0,
    ) -> None:
        self.flip = flip
        self.rotate = rotate
        self.scale = scale
        self.shift = shift
        self.brightness = brightness
        self.contrast = contrast
        self.grayscale = grayscale
        self.erase = erase

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """Changes a batch.

        Args:
            images: float32 in [-1, 1], shape (N, 3, H, W).
            draws: Uniform numbers in [0, 1), float32, shape (N, 12), as `uniform_draws` gives.

        Returns:
            A batch like `images`.
        """
        u = draws[:, :, None, None]  # (N, 12, 1, 1)
        if self.flip:
            images = torch.where(u[:, 0:1] < self.flip, images.flip(3), images)
        if self.rotate or self.scale or self.shift:
            images = self._warp(images, draws)
        if self.brightness or self.contrast:
            gain, offset = 1 + self.contrast * _signed(u[:, 5:6]), 2 * self.brightness * _signed(u[:, 6:7])
            images = (images * gain + offset).clamp(-1, 1)
        if self.grayscale:
            gray = images.mul(images.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
            images = torch.where(u[:, 7:8] < self.grayscale, gray, images)
        if self.erase:
            images = self._erase(images, u)
        return images

    def _warp(self, images: Tensor, draws: Tensor) -> Tensor:
        """One bilinear resampling for rotation, scale and shift together; the border is mirrored."""
        angle = math.radians(self.rotate) * _signed(draws[:, 1])
        zoom = 1 / (1 + self.scale * _signed(draws[:, 2]))
        shift_x, shift_y = 2 * self.shift * _signed(draws[:, 3]), 2 * self.shift * _signed(draws[:, 4])
        cos, sin = zoom * angle.cos(), zoom * angle.sin()
        theta = torch.stack([cos, -sin, shift_x, sin, cos, shift_y], dim=1).view(-1, 2, 3)
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)

    def _erase(self, images: Tensor, u: Tensor) -> Tensor:
        height, width = images.shape[2:]
        area = 0.02 + 0.18 * u[:, 9:10]
        side_y = area.sqrt() * torch.exp(0.6 * _signed(u[:, 10:11]))  # aspect between about 0.3 and 3.3
        side_x = area / side_y
        # Where the rectangle is drawn, u8 is uniform in [0, erase): divided by it, it serves once more.
        top, left = (
            (1 - side_y) * u[:, 11:12],
            (1 - side_x) * (u[:, 8:9] / max(self.erase, 1e-9)).clamp(max=1),
        )
        y = torch.linspace(0, 1, height, device=images.device).view(1, 1, -1, 1)
        x = torch.linspace(0, 1, width, device=images.device).view(1, 1, 1, -1)
        inside = (y >= top) & (y <= top + side_y) & (x >= left) & (x <= left + side_x)
        return torch.where((u[:, 8:9] < self.erase) & inside, torch.zeros_like(images), images)


def normalize(images: Tensor) -> Tensor:
    """uint8 RGB (N, 3, H, W) to float32 in [-1, 1]: (x - 127.5) / 127.5."""
    return images.to(torch.float32).sub_(127.5).div_(127.5)


def uniform_draws(seed: int, epoch: int, indices: Indices) -> npt.NDArray[np.float32]:
    """Uniform numbers in [0, 1) that depend on nothing but their place.

    SplitMix64 (Steele, Lea & Flood, OOPSLA 2014), used as a counter-based generator.

    Args:
        seed: The run's seed.
        epoch: Epoch number.
        indices: Image numbers, int64 (N,).

    Returns:
        float32, shape (N, 12).
    """
    with np.errstate(over="ignore"):
        key = _splitmix(_splitmix(np.uint64(seed % 2**64) + np.zeros(1, np.uint64)) + np.uint64(epoch))
        per_image = _splitmix(key + indices.astype(np.uint64))
        bits = _splitmix(per_image[:, None] + np.arange(1, _DRAWS + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    return ((bits >> np.uint64(40)).astype(np.float64) / 2**24).astype(np.float32)


def _splitmix(state: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    z = state + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _signed(u: Tensor) -> Tensor:
    """[0, 1) to [-1, 1)."""
    return 2 * u - 1
