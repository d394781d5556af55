"""Augmentation: what it changes, and that it changes it the same way however batches are cut."""

import numpy as np
import pytest
import torch

from facelit.data.augmentation import Augmentation, normalize, uniform_draws

IMAGES = torch.rand(6, 3, 112, 112) * 2 - 1
DRAWS = torch.from_numpy(uniform_draws(0, 0, np.arange(6)))


def test_default_is_a_flip_of_every_second_crop_and_nothing_else() -> None:
    changed = Augmentation()(IMAGES, DRAWS)
    for before, after, draw in zip(IMAGES, changed, DRAWS[:, 0], strict=True):
        torch.testing.assert_close(after, before.flip(2) if draw < 0.5 else before, rtol=0, atol=0)
    many = uniform_draws(1, 2, np.arange(20_000))[:, 0]
    assert np.mean(many < 0.5) == pytest.approx(0.5, abs=0.02)


def test_draws_are_uniform_independent_and_placeless() -> None:
    """Cutting or reordering the batch, as workers and processes do, changes no image's numbers."""
    draws = uniform_draws(3, 7, np.arange(30_000))
    assert draws.dtype == np.float32
    assert draws.min() >= 0
    assert draws.max() < 1
    np.testing.assert_allclose(draws.mean(axis=0), 0.5, atol=0.01)
    np.testing.assert_allclose(draws.var(axis=0), 1 / 12, atol=0.003)
    off_diagonal = np.corrcoef(draws.T) - np.eye(12)
    assert np.abs(off_diagonal).max() < 0.03
    assert abs(np.corrcoef(draws[:-1, 0], draws[1:, 0])[0, 1]) < 0.03
    some = np.array([17, 3, 29_999])
    np.testing.assert_array_equal(uniform_draws(3, 7, some), draws[some])
    assert (uniform_draws(3, 8, some) != draws[some]).all()
    assert (uniform_draws(4, 7, some) != draws[some]).all()


@pytest.mark.parametrize(
    "options",
    [
        {"flip": 0.0, "rotate": 20},
        {"flip": 0.0, "scale": 0.2},
        {"flip": 0.0, "shift": 0.1},
        {"flip": 0.0, "brightness": 0.3},
        {"flip": 0.0, "contrast": 0.5},
        {"flip": 0.0, "grayscale": 1.0},
        {"flip": 0.0, "erase": 1.0},
    ],
    ids=lambda options: list(options)[1],
)
def test_each_change_does_something_and_stays_in_range(options: dict[str, float]) -> None:
    changed = Augmentation(**options)(IMAGES, DRAWS)
    assert changed.shape == IMAGES.shape
    assert (changed != IMAGES).flatten(1).any(1).all()
    assert changed.abs().max() <= 1 + 1e-6
    alone = Augmentation(**options)(IMAGES[2:3], DRAWS[2:3])
    torch.testing.assert_close(alone[0], changed[2])


def test_warp_moves_by_the_drawn_amount() -> None:
    """With the largest draw, `shift` samples the crop that share of its side further on; a scale above 1 enlarges."""
    ramp = torch.linspace(-1, 1, 112).expand(1, 3, 112, 112).clone()
    draws = torch.full((1, 12), 0.5)
    draws[0, 3] = 1.0
    shifted = Augmentation(flip=0, shift=0.125)(ramp, draws)
    torch.testing.assert_close(shifted[..., :98], ramp[..., 14:], atol=1e-4, rtol=0)
    draws[0, 3], draws[0, 2] = 0.5, 1.0
    enlarged = Augmentation(flip=0, scale=0.25)(ramp, draws)
    torch.testing.assert_close(enlarged, ramp / 1.25, atol=1e-4, rtol=0)


def test_erase_greys_a_rectangle_of_the_promised_size() -> None:
    draws = torch.from_numpy(uniform_draws(0, 0, np.arange(400)))
    changed = Augmentation(flip=0, erase=0.5)(torch.ones(400, 1, 112, 112), draws)
    area = (changed == 0).flatten(1).float().mean(1)
    assert (area > 0).float().mean() == pytest.approx(0.5, abs=0.1)
    assert area.max() < 0.22


def test_normalize() -> None:
    pixels = torch.tensor([0, 127, 128, 255], dtype=torch.uint8).view(1, 1, 2, 2)
    expected = (torch.tensor([0.0, 127, 128, 255]) - 127.5) / 127.5
    torch.testing.assert_close(normalize(pixels).flatten(), expected)
