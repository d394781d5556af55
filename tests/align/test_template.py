"""The similarity transform is exact, and the warp is OpenCV's without its aliasing."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facelit.align import TEMPLATE, estimate_similarity, warp
from facelit.align.template import Border, share_beyond
from facelit.errors import FacelitError
from facelit.pictures.drawn_people import draw_identity, draw_shot
from facelit.pictures.face_drawing import render

Matrix = npt.NDArray[np.float64]

angles = st.floats(-math.pi, math.pi)
scales = st.floats(0.05, 40)
shifts = st.floats(-5000, 5000)


def similarity(angle: float, scale: float, x: float, y: float) -> Matrix:
    """From the crop to a photo."""
    cos, sin = scale * math.cos(angle), scale * math.sin(angle)
    return np.array([[cos, -sin, x], [sin, cos, y]])


def apply(matrix: Matrix, points: npt.NDArray[np.floating]) -> Matrix:
    return points @ matrix[:, :2].T + matrix[:, 2]


def umeyama(source: Matrix, target: Matrix) -> Matrix:
    """Eq. 40 to 43 of the paper, letter by letter."""
    n = len(source)
    mu_x, mu_y = source.mean(0), target.mean(0)
    variance = ((source - mu_x) ** 2).sum() / n
    covariance = sum(np.outer(y - mu_y, x - mu_x) for x, y in zip(source, target, strict=True)) / n
    u, d, vt = np.linalg.svd(covariance)
    s = np.eye(2)
    if np.linalg.det(u) * np.linalg.det(vt) < 0:
        s[1, 1] = -1
    rotation = u @ s @ vt
    c = np.trace(np.diag(d) @ s) / variance
    return np.column_stack([c * rotation, mu_y - c * rotation @ mu_x])


def bilinear(image: npt.NDArray[np.uint8], matrix: Matrix) -> npt.NDArray[np.uint8]:
    """A crop, a pixel at a time; black outside the photo."""
    height, width = image.shape[:2]
    inverse = np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))
    crop = np.zeros((112, 112, 3), np.uint8)
    for v in range(112):
        for u in range(112):
            x, y, _ = inverse @ (u, v, 1)
            left, top = math.floor(x), math.floor(y)
            value = np.zeros(3)
            for column, row in ((left, top), (left + 1, top), (left, top + 1), (left + 1, top + 1)):
                if 0 <= column < width and 0 <= row < height:
                    value += (1 - abs(x - column)) * (1 - abs(y - row)) * image[row, column]
            crop[v, u] = np.rint(value)
    return crop


@given(angles, scales, shifts, shifts)
def test_exact_landmarks_come_onto_the_template(angle: float, scale: float, x: float, y: float) -> None:
    landmarks = apply(similarity(angle, scale, x, y), TEMPLATE)
    assert np.abs(apply(estimate_similarity(landmarks), landmarks) - TEMPLATE).max() < 1e-9


@given(st.integers(0, 10**6), st.floats(0.1, 100))
def test_least_squares_are_umeyamas(seed: int, spread: float) -> None:
    rng = np.random.default_rng(seed)
    landmarks = rng.normal(100, spread, (5, 2))
    np.testing.assert_allclose(estimate_similarity(landmarks), umeyama(landmarks, TEMPLATE), rtol=1e-7, atol=1e-7)


def test_a_mirrored_face_is_not_mirrored_back() -> None:
    mirrored = TEMPLATE * [-1, 1]
    matrix = estimate_similarity(mirrored)
    assert np.linalg.det(matrix[:, :2]) > 0
    np.testing.assert_allclose(matrix, umeyama(mirrored, TEMPLATE), atol=1e-9)


@pytest.mark.parametrize("landmarks", [np.full((5, 2), 7.0), np.full((5, 2), np.nan), np.full((5, 2), np.inf)])
def test_points_that_are_not_a_face_are_refused(landmarks: Matrix) -> None:
    with pytest.raises(FacelitError, match="not a face"), np.errstate(invalid="ignore"):
        estimate_similarity(landmarks)


@pytest.mark.parametrize(
    "crop_to_photo",
    [
        similarity(0.0, 1.0, 20, 10),
        similarity(0.3, 1.3, 10, -20),  # partly above the photo
        similarity(-2.0, 0.6, 60, 80),
        similarity(0.1, 1.2, 500, 500),  # beside the photo
    ],
)
def test_the_warp_is_bilinear_and_black_outside(crop_to_photo: Matrix) -> None:
    image = np.random.default_rng(0).integers(0, 256, (150, 130, 3), dtype=np.uint8)
    matrix = estimate_similarity(apply(crop_to_photo, TEMPLATE))
    apart = np.abs(warp(image, matrix).astype(int) - bilinear(image, matrix))
    assert apart.max() <= 1
    assert apart.mean() < 0.01  # float32 may round the other way where a value lies between two


@pytest.mark.parametrize(("border", "mode"), [("replicate", "edge"), ("reflect", "reflect")])
@pytest.mark.parametrize(
    "crop_to_photo", [similarity(0.3, 1.3, 10, -20), similarity(-2.0, 0.6, 60, 80), similarity(0.1, 1.9, 130, 150)]
)
def test_the_border_is_that_of_a_padded_photo(
    border: Border, mode: Literal["edge", "reflect"], crop_to_photo: Matrix
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (150, 130, 3), dtype=np.uint8)
    padded = np.pad(image, ((400, 400), (400, 400), (0, 0)), mode)
    matrix = estimate_similarity(apply(crop_to_photo, TEMPLATE))
    moved = estimate_similarity(apply(crop_to_photo, TEMPLATE) + 400)
    apart = np.abs(warp(image, matrix, border).astype(int) - bilinear(padded, moved))
    assert apart.max() <= 1
    assert apart.mean() < 0.01


@pytest.mark.parametrize("zoom", [2.5, 5.3, 10.7])
def test_no_black_from_beyond_the_block_that_is_averaged(zoom: float) -> None:
    white = np.full((2000, 2000, 3), 255, np.uint8)
    assert warp(white, estimate_similarity(TEMPLATE * zoom + 400.3)).min() == 255
    for border in ("replicate", "reflect"):
        assert warp(white[:700, :600], estimate_similarity(TEMPLATE * zoom - 100.3), border).min() == 255


def test_the_share_beyond_the_photo_is_what_is_black() -> None:
    white = np.full((150, 130, 3), 255, np.uint8)
    for turn, share in (
        (similarity(0.0, 1.0, 9, 9), 0.0),
        (similarity(0.0, 1.0, -56, 9), 0.5),
        (similarity(0.3, 1.3, 10, -20), None),
        (similarity(0.1, 1.2, 500, 500), 1.0),
    ):
        matrix = estimate_similarity(apply(turn, TEMPLATE))
        assert abs(share_beyond((130, 150), matrix) - (warp(white, matrix)[..., 0] < 128).mean()) < 0.001
        assert share is None or abs(share_beyond((130, 150), matrix) - share) < 1e-9


def test_the_warp_is_opencvs() -> None:
    cv2 = pytest.importorskip("cv2", reason="OpenCV comes with the extra facelit[align]")
    image = np.random.default_rng(1).integers(0, 256, (250, 250, 3), dtype=np.uint8)
    matrix = estimate_similarity(apply(similarity(0.2, 1.25, 55, 20), TEMPLATE))
    apart = np.abs(cv2.warpAffine(image, matrix, (112, 112)).astype(int) - warp(image, matrix))
    assert apart.mean() < 1.5  # older versions of OpenCV round the place to 1/32 of a pixel


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (0, 0)])
def test_tiny_photos_are_warped(size: tuple[int, int]) -> None:
    image = np.full((*size, 3), 200, np.uint8)
    for border in ("black", "replicate", "reflect"):
        assert warp(image, similarity(0.0, 1.0, 0, 0), border).shape == (112, 112, 3)


def spots(centres: Matrix, size: int, width: float) -> npt.NDArray[np.uint8]:
    """A photo with a round soft spot at each place."""
    y, x = np.mgrid[:size, :size]
    brightness = sum(np.exp(-((x - u) ** 2 + (y - v) ** 2) / (2 * width**2)) for u, v in centres)
    return np.repeat(np.rint(250 * brightness).astype(np.uint8)[..., None], 3, axis=2)


def centre_of_mass(image: npt.NDArray[np.uint8], around: npt.NDArray[np.floating], radius: int) -> Matrix:
    left, top = np.rint(around).astype(int) - radius
    part = image[top : top + 2 * radius + 1, left : left + 2 * radius + 1, 0].astype(float)
    y, x = np.mgrid[: part.shape[0], : part.shape[1]]
    return np.array([(x * part).sum(), (y * part).sum()]) / part.sum() + (left, top)


@settings(max_examples=15, deadline=None)
@given(angles, st.floats(0.4, 6), st.floats(-20, 20), st.floats(-20, 20))
def test_spots_at_the_landmarks_come_back_within_half_a_pixel(angle: float, scale: float, x: float, y: float) -> None:
    # About a photo's centre, so that all of them are on it.
    turn = similarity(angle, scale, 0, 0)
    turn[:, 2] = np.array([400 + x, 400 + y]) - turn[:, :2] @ [56, 72]
    landmarks = apply(turn, TEMPLATE)
    crop = warp(spots(landmarks, 800, 2.5 * scale), estimate_similarity(landmarks))
    for point in TEMPLATE:
        assert np.linalg.norm(centre_of_mass(crop, point, 8) - point) < 0.5


@pytest.mark.parametrize(("angle", "scale"), [(0.0, 1.0), (0.5, 2.0), (-1.2, 3.3), (2.8, 5.0)])
def test_drawn_faces_come_back(angle: float, scale: float) -> None:
    rng = np.random.default_rng(3)
    person = draw_identity(rng)
    face = render(person, draw_shot(rng, person))
    turn = similarity(angle, scale, 0, 0)
    turn[:, 2] = np.array([400, 400]) - turn[:, :2] @ [55.5, 55.5]
    # The photo is drawn by another hand: each of its pixels is looked up in the face.
    y, x = np.mgrid[:800, :800]
    inverse = np.linalg.inv(turn[:, :2])
    u, v = np.moveaxis((np.stack([x, y], -1) - turn[:, 2]) @ inverse.T, -1, 0)
    photo = face[np.clip(np.rint(v), 0, 111).astype(int), np.clip(np.rint(u), 0, 111).astype(int)]
    crop = warp(photo, estimate_similarity(apply(turn, TEMPLATE))).astype(float)
    right, wrong = (np.abs(crop - np.roll(face, shift, (0, 1))).mean() for shift in ((0, 0), (1, 1)))
    assert right < 0.7 * wrong  # a pixel's shift would be seen


def test_what_is_finer_than_the_crop_becomes_its_mean() -> None:
    y, x = np.mgrid[:900, :900]
    board = np.repeat((((x + y) % 2) * 255).astype(np.uint8)[..., None], 3, axis=2)
    crop = warp(board, estimate_similarity(apply(similarity(0.35, 5.3, 300, 100), TEMPLATE)))
    inside = crop[30:80, 30:80].astype(float)
    assert abs(inside.mean() - 127.5) < 2
    assert inside.std() < 8  # plain bilinear: 42


def test_a_fourth_of_the_size_is_the_mean_of_blocks() -> None:
    image = np.random.default_rng(2).integers(0, 256, (448, 448, 3), dtype=np.uint8)
    # Pixel (0, 0) of the crop is the middle of the first block, at (1.5, 1.5).
    matrix = np.array([[0.25, 0, -0.375], [0, 0.25, -0.375]])
    means = image.reshape(112, 4, 112, 4, 3).mean(axis=(1, 3))
    assert np.abs(warp(image, matrix)[1:-1, 1:-1] - means[1:-1, 1:-1]).max() <= 1
