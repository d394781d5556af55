"""The standard template of a 112x112 crop, the similarity transform onto it, and the warp."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from facelit.errors import FacelitError
from facelit.storage.images import CROP_SIZE, Crop

TEMPLATE: npt.NDArray[np.float64] = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
"""Where the five landmarks come to lie in a crop, float64 (5, 2), in pixels: left eye, right eye, nose, left mouth corner, right
mouth corner. These are the points of SphereFace (Liu et al., CVPR 2017), moved 8 pixels to the right from its 112x96 crop,
as ArcFace (Deng et al., CVPR 2019) and nearly every aligned set since use them."""

Border = Literal["black", "replicate", "reflect"]
"""What a crop shows beyond the photo's edge: black; the photo's outermost pixels, repeated; or the photo mirrored at the centres of
its outermost pixels (OpenCV's BORDER_REFLECT_101)."""

_SMALLEST_SPREAD = 1e-6
"""Landmarks that are all within this many pixels are one point."""


def estimate_similarity(landmarks: npt.ArrayLike, template: npt.ArrayLike = TEMPLATE) -> npt.NDArray[np.float64]:
    """The rotation, uniform scale and shift that brings landmarks closest to a template, without mirroring.

    Least squares after Umeyama, "Least-squares estimation of transformation parameters between two point patterns", PAMI
    1991, eq. 40 to 43. In the plane, and with mirroring excluded, his singular value decomposition comes down to a
    division of complex numbers: with z the landmarks and w the template, both less their means, the factor (scale
    times rotation) is sum(conj(z) w) / sum(|z|^2).

    Args:
        landmarks: In pixels, shape (n, 2), n >= 2.
        template: Where they belong, in pixels, shape (n, 2).

    Returns:
        float64 (2, 3): `matrix[:, :2] @ point + matrix[:, 2]` is a photo's point in the crop.

    Raises:
        FacelitError: The landmarks are not finite, or all lie in one point.
    """
    source, target = np.asarray(landmarks, np.float64), np.asarray(template, np.float64)
    mean, target_mean = source.mean(axis=0), target.mean(axis=0)
    centred, target_centred = source - mean, target - target_mean
    spread = float((centred**2).sum())
    if not spread > _SMALLEST_SPREAD**2:
        raise FacelitError("these landmarks are not a face's: they lie in one point, or are not numbers.")
    (x, y), (u, v) = centred.T, target_centred.T
    a, b = float((x * u + y * v).sum()) / spread, float((x * v - y * u).sum()) / spread
    linear = np.array([[a, -b], [b, a]])
    return np.column_stack([linear, target_mean - linear @ mean])


def warp(image: npt.NDArray[np.uint8], matrix: npt.NDArray[np.float64], border: Border = "black") -> Crop:
    """Draws a crop out of a photo by bilinear interpolation, like OpenCV's `warpAffine`.

    Where the crop has at most half the photo's resolution, bilinear interpolation alone would leave pixels out and show
    patterns that are not there. The photo is then averaged over blocks first, which leaves a reduction by less than two.

    Args:
        image: uint8 RGB, shape (height, width, 3).
        matrix: From the photo's pixels to the crop's, float64 (2, 3); whole numbers are centres of pixels.
        border: What lies beyond the photo's edge; see `Border`.

    Returns:
        uint8 RGB, shape (112, 112, 3).
    """
    height, width = image.shape[:2]
    if not image.size:
        return np.zeros((CROP_SIZE, CROP_SIZE, 3), np.uint8)
    x, y = _places(matrix)
    if border != "black":
        x, y = _inside(x, width, border), _inside(y, height, border)
    blocks = int(1 / math.sqrt(abs(float(np.linalg.det(matrix[:, :2])))))
    part, left, top = _part_around(image, x, y, margin=max(1, blocks))
    if not part.size:
        return np.zeros((CROP_SIZE, CROP_SIZE, 3), np.uint8)
    x, y = x - left, y - top
    if blocks > 1:
        part = np.asarray(Image.fromarray(part).reduce(blocks))
        x, y = (x + 0.5) / blocks - 0.5, (y + 0.5) / blocks - 0.5
        if border != "black":  # the middle of the outermost block lies further inside than the outermost pixel's
            x, y = _inside(x, part.shape[1], "replicate"), _inside(y, part.shape[0], "replicate")
    return _interpolate(part, x, y)


def share_beyond(size: tuple[int, int], matrix: npt.NDArray[np.float64]) -> float:
    """The share of a crop's pixels, 0 to 1, whose places lie beyond the photo's edge.

    Args:
        size: The photo's width and height in pixels.
        matrix: See `warp`.
    """
    x, y = _places(matrix)
    inside = (x >= -0.5) & (x <= size[0] - 0.5) & (y >= -0.5) & (y <= size[1] - 0.5)
    return 1 - float(inside.mean())


def _places(matrix: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Where each of the crop's pixels lies in the photo: x and y, shape (112, 112) each."""
    linear = np.linalg.inv(matrix[:, :2])
    shift = -linear @ matrix[:, 2]
    columns, rows = np.meshgrid(np.arange(CROP_SIZE), np.arange(CROP_SIZE))
    x = linear[0, 0] * columns + linear[0, 1] * rows + shift[0]
    y = linear[1, 0] * columns + linear[1, 1] * rows + shift[1]
    return x, y


def _inside(places: npt.NDArray[np.float64], length: int, border: Border) -> npt.NDArray[np.float64]:
    """Places beyond an edge moved to where their colour comes from, 0 to length - 1."""
    last = length - 1
    moved: npt.NDArray[np.float64] = np.clip(places, 0, last)
    if border == "reflect" and last:
        moved = last - np.abs(np.mod(places, 2 * last) - last)
    return moved


def _part_around(
    image: npt.NDArray[np.uint8], x: npt.NDArray[np.float64], y: npt.NDArray[np.float64], margin: int
) -> tuple[npt.NDArray[np.uint8], int, int]:
    """The rectangle of a photo in which all points lie, with so many pixels around them, and its left and top edge."""
    height, width = image.shape[:2]
    left, right = max(0, math.floor(x.min()) - margin), min(width, math.ceil(x.max()) + margin + 1)
    top, bottom = max(0, math.floor(y.min()) - margin), min(height, math.ceil(y.max()) + margin + 1)
    return image[top : max(top, bottom), left : max(left, right)], left, top


def _interpolate(image: npt.NDArray[np.uint8], x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> Crop:
    """Bilinear values at points, shape (112, 112) each, as if the image lay in black."""
    height, width = image.shape[:2]
    framed = np.zeros((3, height + 2, width + 2), np.float32)
    framed[:, 1:-1, 1:-1] = image.transpose(2, 0, 1)
    # Points outside the frame are moved onto it: black, whatever their weights.
    x, y = np.clip(x + 1, 0, width + 1).ravel(), np.clip(y + 1, 0, height + 1).ravel()
    column, row = np.minimum(x.astype(np.intp), width), np.minimum(y.astype(np.intp), height)
    right, down = (x - column).astype(np.float32), (y - row).astype(np.float32)
    at, flat = row * (width + 2) + column, framed.reshape(3, -1)
    # Colour by colour, and `take`: a fifth of the time of framed[row, column].
    corners = [flat.take(at + step, axis=1) for step in (0, 1, width + 2, width + 3)]
    upper = corners[0] + (corners[1] - corners[0]) * right
    lower = corners[2] + (corners[3] - corners[2]) * right
    value = np.rint(upper + (lower - upper) * down).astype(np.uint8)
    return np.ascontiguousarray(value.T).reshape(CROP_SIZE, CROP_SIZE, 3)
