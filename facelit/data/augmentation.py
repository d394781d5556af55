"""Random changes to training crops, on whole batches and on the training device.

Every random number is a hash of (seed, epoch, image number, column): a crop is changed in the same way whatever the number of
workers or processes, and wherever a run was resumed. Nothing here waits for an accelerator: only the device knows which crops
are changed.
"""

from __future__ import annotations

import math
from enum import IntEnum

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from facelit.data.samplers import Indices
from facelit.errors import FacelitError


class _Draw(IntEnum):
    """The use of each column of `draws`. A number never changes its use, so that runs stay reproducible."""

    FLIP = 0
    ROTATE = 1
    SCALE = 2
    SHIFT_X = 3
    SHIFT_Y = 4
    CONTRAST = 5
    BRIGHTNESS = 6
    GRAYSCALE = 7
    ERASE = 8
    ERASE_AREA = 9
    ERASE_ASPECT = 10
    ERASE_TOP = 11
    CROP = 12
    CROP_X = 13
    CROP_Y = 14
    SATURATION = 15
    BLUR = 16
    BLUR_SIGMA = 17
    LOW_RESOLUTION = 18
    LOW_RESOLUTION_FACTOR = 19


DRAWS_PER_IMAGE = len(_Draw)
"""The number of random numbers for each image: the columns of `draws`."""

_BLUR_SIGMA = (0.5, 2.0)  # pixels
_BLUR_RADIUS = 6  # pixels: three times the largest sigma
_LOW_RESOLUTION_FACTORS = (2, 3, 4, 5)
_WITHOUT_WAITING = ("cpu",)  # devices that say which crops are chosen without a wait


class Augmentation:
    """Random changes to training crops; by default only a horizontal flip with probability one half.

    In this order: flip; crop, rotation, scale and shift in one resampling; low resolution; blur; brightness, contrast
    and saturation; grey; erasing. An option at 0 costs nothing.

    Args:
        flip: Probability of a horizontal flip.
        rotate: Largest rotation in either direction, in degrees.
        scale: Largest change of size up or down, as a fraction (0.1: between 0.9 and 1.1 times).
        shift: Largest shift in either direction along each axis, as a fraction of the crop's side.
        brightness: Largest change of brightness up or down, as a fraction of the full range.
        contrast: Largest change of contrast up or down, as a factor's distance from 1.
        grayscale: Probability of losing the colour.
        erase: Probability of a grey rectangle over 2 % to 20 % of the crop.
        crop: Largest fraction of the side that a random crop removes; the rest is resized to the full size.
        saturation: Largest change of saturation up or down, as a factor's distance from 1.
        blur: Probability of a Gaussian blur with sigma between 0.5 and 2 pixels.
        low_resolution: Probability of losing resolution: shrinking to 1/2, 1/3, 1/4 or 1/5 of the side, and back.

    Raises:
        FacelitError: An option is outside its range.
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
        crop: float = 0.0,
        saturation: float = 0.0,
        blur: float = 0.0,
        low_resolution: float = 0.0,
    ) -> None:
        self.flip = _checked("flip", flip)
        self.rotate = _checked("rotate", rotate, largest=180)
        self.scale = _checked("scale", scale, below=True)
        self.shift = _checked("shift", shift)
        self.brightness = _checked("brightness", brightness)
        self.contrast = _checked("contrast", contrast)
        self.grayscale = _checked("grayscale", grayscale)
        self.erase = _checked("erase", erase)
        self.crop = _checked("crop", crop, below=True)
        self.saturation = _checked("saturation", saturation)
        self.blur = _checked("blur", blur)
        self.low_resolution = _checked("low_resolution", low_resolution)

    @property
    def changes(self) -> bool:
        """Whether any crop can come out changed."""
        return any(vars(self).values())

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """Changes a batch.

        Args:
            images: float32 in [-1, 1], RGB, shape (N, 3, H, W).
            draws: Uniform numbers in [0, 1), float32, shape (N, 20), from `uniform_draws`.

        Returns:
            The changed batch, like `images`, in the same memory format.
        """
        channels_last = images.is_contiguous(memory_format=torch.channels_last)
        if self.flip:
            images = torch.where(_column(draws, _Draw.FLIP) < self.flip, images.flip(3), images)
        if self.crop or self.rotate or self.scale or self.shift:
            images = self._warp(images, draws)
        if self.low_resolution or self.blur:
            images = self._soften(images, draws)
        if self.brightness or self.contrast or self.saturation:
            images = self._recolor(images, draws)
        if self.grayscale:
            images = torch.where(_column(draws, _Draw.GRAYSCALE) < self.grayscale, _luma(images), images)
        if self.erase:
            images = self._erase(images, draws)
        return images.contiguous(memory_format=torch.channels_last) if channels_last else images

    def _warp(self, images: Tensor, draws: Tensor) -> Tensor:
        """One bilinear resampling for rotation, scale and shift, and a crop of the result; the border is mirrored."""
        angle = math.radians(self.rotate) * _signed(draws[:, _Draw.ROTATE])
        zoom = 1 / (1 + self.scale * _signed(draws[:, _Draw.SCALE]))
        shift_x, shift_y = (2 * self.shift * _signed(draws[:, axis]) for axis in (_Draw.SHIFT_X, _Draw.SHIFT_Y))
        cos, sin = zoom * angle.cos(), zoom * angle.sin()
        side = 1 - self.crop * draws[:, _Draw.CROP]
        x, y = ((1 - side) * _signed(draws[:, axis]) for axis in (_Draw.CROP_X, _Draw.CROP_Y))  # the crop's middle
        theta = torch.stack(
            [cos * side, -sin * side, cos * x - sin * y + shift_x, sin * side, cos * side, sin * x + cos * y + shift_y],
            dim=1,
        ).view(-1, 2, 3)
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)

    def _soften(self, images: Tensor, draws: Tensor) -> Tensor:
        """Low resolution and blur, for the crops chosen for either."""
        chosen = (draws[:, _Draw.LOW_RESOLUTION] < self.low_resolution) | (draws[:, _Draw.BLUR] < self.blur)
        if images.device.type not in _WITHOUT_WAITING:
            return torch.where(chosen.view(-1, 1, 1, 1), self._soften_all(images, draws), images)
        numbers = chosen.nonzero()[:, 0]
        softened = images.clone()  # index_copy would lose the memory format
        softened[numbers] = self._soften_all(images[numbers], draws[numbers])
        return softened

    def _soften_all(self, images: Tensor, draws: Tensor) -> Tensor:
        """Both changes are linear along rows and columns, hence two products with each crop's own matrices."""
        height, width = images.shape[2:]
        along_y = self._filters(draws, height)
        along_x = along_y if width == height else self._filters(draws, width)
        return along_y[:, None] @ images @ along_x[:, None].mT

    def _filters(self, draws: Tensor, size: int) -> Tensor:
        """The matrix applied to a row of `size` pixels, (N, size, size); the identity for crops that are not chosen."""
        filters = torch.eye(size, device=draws.device).expand(len(draws), size, size)
        if self.low_resolution:
            factor = (draws[:, _Draw.LOW_RESOLUTION_FACTOR] * len(_LOW_RESOLUTION_FACTORS)).long()
            drawn = draws[:, _Draw.LOW_RESOLUTION, None, None] < self.low_resolution
            filters = torch.where(drawn, _low_resolution_filters(size, draws.device)[factor], filters)
        if self.blur:
            smallest, largest = _BLUR_SIGMA
            blurs = _blur_filters(smallest + (largest - smallest) * draws[:, _Draw.BLUR_SIGMA], size)
            filters = torch.where(draws[:, _Draw.BLUR, None, None] < self.blur, blurs @ filters, filters)
        return filters

    def _recolor(self, images: Tensor, draws: Tensor) -> Tensor:
        """Brightness, contrast and saturation; they commute, as values are clamped only at the end."""
        if self.brightness or self.contrast:
            gain = 1 + self.contrast * _signed(_column(draws, _Draw.CONTRAST))
            images = images * gain + 2 * self.brightness * _signed(_column(draws, _Draw.BRIGHTNESS))
        if self.saturation:
            gray = _luma(images)
            images = gray + (images - gray) * (1 + self.saturation * _signed(_column(draws, _Draw.SATURATION)))
        return images.clamp(-1, 1)

    def _erase(self, images: Tensor, draws: Tensor) -> Tensor:
        height, width = images.shape[2:]
        chosen = _column(draws, _Draw.ERASE)
        area = 0.02 + 0.18 * _column(draws, _Draw.ERASE_AREA)
        aspect = torch.exp(0.6 * _signed(_column(draws, _Draw.ERASE_ASPECT)))
        side_y = area.sqrt() * aspect  # height over width between about 0.3 and 3.3
        side_x = area / side_y
        top = (1 - side_y) * _column(draws, _Draw.ERASE_TOP)
        # If the rectangle is drawn, this number is uniform in [0, erase): divided by `erase`, it can be used again.
        left = (1 - side_x) * (chosen / max(self.erase, 1e-9)).clamp(max=1)
        y = torch.linspace(0, 1, height, device=images.device).view(1, 1, -1, 1)
        x = torch.linspace(0, 1, width, device=images.device).view(1, 1, 1, -1)
        inside = (y >= top) & (y <= top + side_y) & (x >= left) & (x <= left + side_x)
        return torch.where((chosen < self.erase) & inside, torch.zeros_like(images), images)


def normalize(images: Tensor) -> Tensor:
    """Maps uint8 RGB (N, 3, H, W) to float32 in [-1, 1]: (x - 127.5) / 127.5."""
    return images.to(torch.float32).sub_(127.5).div_(127.5)


def uniform_draws(seed: int, epoch: int, indices: Indices) -> npt.NDArray[np.float32]:
    """Uniform numbers in [0, 1) that depend only on seed, epoch, image and column.

    SplitMix64 (Steele, Lea & Flood, OOPSLA 2014), used as a counter-based generator.

    Args:
        seed: The run's seed.
        epoch: The epoch's number.
        indices: Image numbers, int64 (N,).

    Returns:
        float32, shape (N, 20). A column does not depend on the number of columns.
    """
    with np.errstate(over="ignore"):
        key = _splitmix(_splitmix(np.uint64(seed % 2**64) + np.zeros(1, np.uint64)) + np.uint64(epoch))
        per_image = _splitmix(key + indices.astype(np.uint64))
        columns = np.arange(1, DRAWS_PER_IMAGE + 1, dtype=np.uint64)
        bits = _splitmix(per_image[:, None] + columns * np.uint64(0x9E3779B97F4A7C15))
    return ((bits >> np.uint64(40)).astype(np.float64) / 2**24).astype(np.float32)


def _splitmix(state: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    z = state + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _checked(option: str, value: float, largest: float = 1, below: bool = False) -> float:
    if 0 <= value < largest or (value == largest and not below):
        return value
    allowed = f"0 to below {largest}" if below else f"0 to {largest}"
    raise FacelitError(f"data.augmentation: {option} is {value}, and must be a number from {allowed}.")


def _column(draws: Tensor, draw: _Draw) -> Tensor:
    """One random number per image, (N, 1, 1, 1)."""
    return draws[:, draw, None, None, None]


def _signed(u: Tensor) -> Tensor:
    """Maps [0, 1) to [-1, 1)."""
    return 2 * u - 1


def _luma(images: Tensor) -> Tensor:
    """The grey images (N, 1, H, W) of RGB images, with the weights of ITU-R BT.601."""
    red, green, blue = images.unbind(1)
    # Python floats: copying a tensor of weights to the device would make it wait.
    return (0.299 * red + 0.587 * green + 0.114 * blue).unsqueeze(1)


def _low_resolution_filters(size: int, device: torch.device) -> Tensor:
    """The matrices that average a row over areas and stretch it bilinearly, (4, size, size)."""
    unit_rows = torch.eye(size, device=device)[None]
    shrunk = (F.interpolate(unit_rows, max(1, size // k), mode="area") for k in _LOW_RESOLUTION_FACTORS)
    # Column i of the matrix is the image of unit row i.
    return torch.cat([F.interpolate(row, size, mode="linear", align_corners=False).mT for row in shrunk])


def _blur_filters(sigma: Tensor, size: int) -> Tensor:
    """The matrices that blur a row with a Gaussian, mirroring its ends: (N, size, size) for `sigma` (N,) in pixels."""
    taps = torch.arange(-_BLUR_RADIUS, _BLUR_RADIUS + 1, device=sigma.device)
    weights = torch.softmax(-(taps**2) / (2 * sigma[:, None] ** 2), dim=1)  # (N, 13), sum 1
    unit_rows = F.pad(torch.eye(size, device=sigma.device)[None], (_BLUR_RADIUS, _BLUR_RADIUS), mode="reflect")
    windows = unit_rows[0].unfold(1, len(taps), 1)  # (input pixel, output pixel, tap)
    return torch.einsum("iot,nt->noi", windows, weights)
