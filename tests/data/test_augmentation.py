"""Augmentation: what it changes, and that it changes it the same way however batches are cut."""

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from pytorch_lightning.plugins import DoublePrecision, HalfPrecision
from torch import Tensor

from facelit.data import FaceDataModule, SyntheticFaces, augmentation
from facelit.data.augmentation import DRAWS_PER_IMAGE, Augmentation, normalize, uniform_draws
from facelit.errors import FacelitError

Image = npt.NDArray[np.float64]

IMAGES = torch.rand(6, 3, 112, 112, generator=torch.Generator().manual_seed(0)) * 2 - 1
DRAWS = torch.from_numpy(uniform_draws(0, 0, np.arange(6)))
EVERYTHING = {
    "flip": 0.5,
    "rotate": 20.0,
    "scale": 0.2,
    "shift": 0.1,
    "brightness": 0.3,
    "contrast": 0.5,
    "grayscale": 0.4,
    "erase": 0.5,
    "crop": 0.3,
    "saturation": 0.8,
    "blur": 0.5,
    "low_resolution": 0.5,
}
# The columns of `draws`, by hand: they must stay where they are.
CROP, CROP_X, CROP_Y, SATURATION, BLUR, BLUR_SIGMA, LOW_RESOLUTION, LOW_RESOLUTION_FACTOR = range(12, 20)
PROBABILITIES = {"flip": 0, "grayscale": 7, "erase": 8, "blur": BLUR, "low_resolution": LOW_RESOLUTION}


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
    assert draws.shape == (30_000, DRAWS_PER_IMAGE)
    assert draws.min() >= 0
    assert draws.max() < 1
    np.testing.assert_allclose(draws.mean(axis=0), 0.5, atol=0.01)
    np.testing.assert_allclose(draws.var(axis=0), 1 / 12, atol=0.003)
    off_diagonal = np.corrcoef(draws.T) - np.eye(DRAWS_PER_IMAGE)
    assert np.abs(off_diagonal).max() < 0.03
    assert abs(np.corrcoef(draws[:-1, 0], draws[1:, 0])[0, 1]) < 0.03
    some = np.array([17, 3, 29_999])
    np.testing.assert_array_equal(uniform_draws(3, 7, some), draws[some])
    assert (uniform_draws(3, 8, some) != draws[some]).all()
    assert (uniform_draws(4, 7, some) != draws[some]).all()


def test_first_twelve_draws_stay_as_published() -> None:
    """Written down before there were more of them: a run that is repeated keeps its augmentation."""
    expected = [
        [
            8808684,
            15671678,
            11239511,
            12725405,
            14330249,
            9017683,
            9500388,
            14904525,
            2545816,
            6196398,
            9705834,
            7574617,
        ],
        [984853, 13479414, 10263145, 1083008, 5287392, 3390306, 8285834, 12674639, 4967109, 2705165, 10831707, 731644],
        [
            6563046,
            11373491,
            15131035,
            6642628,
            13578114,
            2187379,
            13782898,
            773514,
            1440109,
            8786052,
            8937771,
            11611837,
        ],
    ]
    draws = uniform_draws(7, 3, np.array([0, 1, 12345]))
    np.testing.assert_array_equal(draws[:, :12] * np.float32(2**24), expected)


@pytest.mark.parametrize("option", sorted(EVERYTHING.keys() - {"flip"}))
def test_each_change_does_something_and_stays_in_range(option: str) -> None:
    largest = 1.0 if option in PROBABILITIES else EVERYTHING[option]
    changed = Augmentation(flip=0, **{option: largest})(IMAGES, DRAWS)
    assert changed.shape == IMAGES.shape
    assert changed.dtype == torch.float32
    assert (changed != IMAGES).flatten(1).any(1).all()
    assert changed.abs().max() <= 1 + 1e-6


@pytest.mark.parametrize("option", PROBABILITIES)
@pytest.mark.parametrize("probability", [0.0, 0.4, 1.0])
def test_a_probability_changes_the_images_whose_draw_is_below_it(option: str, probability: float) -> None:
    count = 40
    images = torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    draws = torch.from_numpy(uniform_draws(0, 0, np.arange(count)))
    changed = Augmentation(**{"flip": 0, option: probability})(images, draws)
    expected = draws[:, PROBABILITIES[option]] < probability
    assert expected.sum() in ((0,) if probability == 0 else (count,) if probability == 1 else range(8, 25))
    torch.testing.assert_close((changed != images).flatten(1).any(1), expected)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_an_image_is_changed_alike_alone_and_in_any_batch(memory_format: torch.memory_format) -> None:
    images = IMAGES.contiguous(memory_format=memory_format)
    untouched = images.clone()
    change = Augmentation(**EVERYTHING)
    whole = change(images, DRAWS)
    torch.testing.assert_close(change(images, DRAWS), whole, rtol=0, atol=0)
    torch.testing.assert_close(images, untouched, rtol=0, atol=0)
    order = [4, 1, 5]
    torch.testing.assert_close(change(images[order], DRAWS[order]), whole[order], rtol=0, atol=1e-6)
    for i in range(len(images)):
        torch.testing.assert_close(change(images[i : i + 1], DRAWS[i : i + 1])[0], whole[i], rtol=0, atol=1e-6)


def test_changes_come_in_the_documented_order() -> None:
    together = Augmentation(**EVERYTHING)(IMAGES, DRAWS)
    one_by_one = IMAGES
    for options in (
        ("flip",),
        ("crop", "rotate", "scale", "shift"),
        ("low_resolution",),
        ("blur",),
        ("brightness", "contrast", "saturation"),
        ("grayscale",),
        ("erase",),
    ):
        one_by_one = Augmentation(**{"flip": 0, **{o: EVERYTHING[o] for o in options}})(one_by_one, DRAWS)
    torch.testing.assert_close(together, one_by_one, rtol=0, atol=2e-6)


def test_memory_format_is_kept_and_nothing_costs_nothing() -> None:
    images = IMAGES.contiguous(memory_format=torch.channels_last)
    assert Augmentation(flip=0)(images, DRAWS) is images
    changed = Augmentation(**EVERYTHING)(images, DRAWS)
    assert changed.is_contiguous(memory_format=torch.channels_last)
    plain = Augmentation(**EVERYTHING)(IMAGES, DRAWS)
    assert plain.is_contiguous()
    torch.testing.assert_close(plain, changed, rtol=0, atol=1e-6)


def test_devices_that_must_not_be_asked_give_the_same_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host picks the crops to soften where that is free; elsewhere all are softened, and the chosen ones kept."""
    change = Augmentation(flip=0, blur=0.4, low_resolution=0.4)
    picked = change(IMAGES, DRAWS)
    monkeypatch.setattr(augmentation, "_WITHOUT_WAITING", ())
    torch.testing.assert_close(change(IMAGES, DRAWS), picked, rtol=0, atol=1e-6)


def test_an_accelerator_is_never_waited_for() -> None:
    """Tensors on the meta device hold no numbers: whatever would bring one to the host raises."""
    images = torch.empty(6, 3, 112, 112, device="meta")
    changed = Augmentation(**EVERYTHING)(images, torch.empty(6, DRAWS_PER_IMAGE, device="meta"))
    assert changed.shape == images.shape
    assert changed.device == images.device


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_and_cpu_agree() -> None:
    images, draws = IMAGES.cuda(), DRAWS.cuda()
    Augmentation(**EVERYTHING)(images, draws)  # what is loaded on first use may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        changed = Augmentation(**EVERYTHING)(images, draws)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(changed.cpu(), Augmentation(**EVERYTHING)(IMAGES, DRAWS), rtol=0, atol=1e-3)


def test_warp_moves_by_the_drawn_amount() -> None:
    """With the largest draw, `shift` samples the crop that share of its side further on; a scale above 1 enlarges."""
    ramp = torch.linspace(-1, 1, 112).expand(1, 3, 112, 112).clone()
    draws = torch.full((1, DRAWS_PER_IMAGE), 0.5)
    draws[0, 3] = 1.0
    shifted = Augmentation(flip=0, shift=0.125)(ramp, draws)
    torch.testing.assert_close(shifted[..., :98], ramp[..., 14:], atol=1e-4, rtol=0)
    draws[0, 3], draws[0, 2] = 0.5, 1.0
    enlarged = Augmentation(flip=0, scale=0.25)(ramp, draws)
    torch.testing.assert_close(enlarged, ramp / 1.25, atol=1e-4, rtol=0)


def test_crop_stretches_the_drawn_square() -> None:
    """Reference: the middle of each output pixel is found in the square, and read bilinearly there."""
    size, crop = 20, 0.7
    images, draws = _some_images(5, size, size)
    draws[0, CROP] = draws[1, CROP] = 0.999_999  # the smallest squares, in two corners
    draws[0, [CROP_X, CROP_Y]], draws[1, CROP_X], draws[1, CROP_Y] = 0.0, 0.999_999, 0.0
    changed = Augmentation(flip=0, crop=crop)(images, draws).double().numpy()
    for image, after, draw in zip(images.double().numpy(), changed, draws.double().tolist(), strict=True):
        side = size * (1 - crop * draw[CROP])
        left, top = (size - side) * draw[CROP_X], (size - side) * draw[CROP_Y]
        expected = np.empty_like(image)
        for y in range(size):
            for x in range(size):
                at_y, at_x = top + (y + 0.5) * side / size, left + (x + 0.5) * side / size
                assert 0 < at_y < size
                assert 0 < at_x < size
                expected[:, y, x] = _bilinear(image, at_y - 0.5, at_x - 0.5)
        np.testing.assert_allclose(after, expected, atol=2e-5)


def test_crop_is_taken_from_the_rotated_scaled_and_shifted_image() -> None:
    """Reference: each output pixel is traced back through the crop, then through the rest, about the middle."""
    size, crop, rotate, scale, shift = 20, 0.4, 30.0, 0.2, 0.15
    images, draws = _some_images(4, size, size)
    change = Augmentation(flip=0, crop=crop, rotate=rotate, scale=scale, shift=shift)
    changed = change(images, draws).double().numpy()
    for image, after, draw in zip(images.double().numpy(), changed, draws.double().tolist(), strict=True):
        side = size * (1 - crop * draw[CROP])
        left, top = (size - side) * draw[CROP_X], (size - side) * draw[CROP_Y]
        angle, zoom = math.radians(rotate * (2 * draw[1] - 1)), 1 + scale * (2 * draw[2] - 1)
        expected = np.empty_like(image)
        for y in range(size):
            for x in range(size):
                in_y, in_x = top + (y + 0.5) * side / size - size / 2, left + (x + 0.5) * side / size - size / 2
                at_x = (math.cos(angle) * in_x - math.sin(angle) * in_y) / zoom + shift * (2 * draw[3] - 1) * size
                at_y = (math.sin(angle) * in_x + math.cos(angle) * in_y) / zoom + shift * (2 * draw[4] - 1) * size
                expected[:, y, x] = _bilinear(image, at_y + size / 2 - 0.5, at_x + size / 2 - 0.5)
        np.testing.assert_allclose(after, expected, atol=2e-5)


@pytest.mark.parametrize(("height", "width"), [(20, 20), (24, 17)])
def test_blur_is_gaussian_with_each_images_sigma(height: int, width: int) -> None:
    """Reference: every pixel as the weighted mean of the square around it, mirrored without repeating the border."""
    images, draws = _some_images(4, height, width)
    draws[0, BLUR_SIGMA], draws[1, BLUR_SIGMA] = 0.0, 0.999_999
    changed = Augmentation(flip=0, blur=1.0)(images, draws).double().numpy()
    for image, after, draw in zip(images.double().numpy(), changed, draws.double().tolist(), strict=True):
        sigma = 0.5 + 1.5 * draw[BLUR_SIGMA]
        distance = np.arange(-6, 7)
        weights = np.exp(-(distance[:, None] ** 2 + distance[None] ** 2) / (2 * sigma**2))
        padded = np.pad(image, ((0, 0), (6, 6), (6, 6)), mode="reflect")
        expected = np.empty_like(image)
        for y in range(height):
            for x in range(width):
                expected[:, y, x] = (padded[:, y : y + 13, x : x + 13] * weights).sum((1, 2)) / weights.sum()
        np.testing.assert_allclose(after, expected, atol=2e-6)


@pytest.mark.parametrize("size", [112, 23])
def test_low_resolution_averages_areas_and_stretches_them(size: int) -> None:
    """Reference: means of the pixels that each part of the side touches, read bilinearly between their middles."""
    images, draws = _some_images(4, size, size)
    draws[:, LOW_RESOLUTION_FACTOR] = torch.tensor([0.0, 0.25, 0.74, 0.999_999])
    changed = Augmentation(flip=0, low_resolution=1.0)(images, draws).double().numpy()
    for image, after, factor in zip(images.double().numpy(), changed, (2, 3, 4, 5), strict=True):
        small = size // factor
        parts = [slice(i * size // small, math.ceil((i + 1) * size / small)) for i in range(small)]
        shrunk = np.array([[image[:, rows, columns].mean((1, 2)) for columns in parts] for rows in parts])
        shrunk = shrunk.transpose(2, 0, 1)
        places = (np.arange(size) + 0.5) * small / size - 0.5
        expected = np.array([[_bilinear(shrunk, y, x) for x in places] for y in places]).transpose(2, 0, 1)
        np.testing.assert_allclose(after, expected, atol=2e-6)


def test_each_low_resolution_comes_equally_often() -> None:
    count = 400
    images = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1)).expand(count, -1, -1, -1)
    changed = Augmentation(flip=0, low_resolution=1.0)(images, torch.from_numpy(uniform_draws(0, 0, np.arange(count))))
    _, counts = np.unique(changed.mul(1e4).round().flatten(1).numpy(), axis=0, return_counts=True)
    assert counts.tolist() == pytest.approx([count / 4] * 4, abs=30)


def test_colour_changes_are_cut_off_once_at_the_end() -> None:
    """Reference: pixel by pixel, and with images that leave the range between two of the changes and come back."""
    images, draws = _some_images(5, 8, 8)
    draws[0, [5, 6, SATURATION]] = torch.tensor([0.999_999, 0.999_999, 0.0])
    images[0] = torch.tensor([0.9, -0.9, -0.9]).view(3, 1, 1)
    options = {"contrast": 0.9, "brightness": 0.1, "saturation": 1.0}
    changed = Augmentation(flip=0, **options)(images, draws).double().numpy()
    for image, after, draw in zip(images.double().numpy(), changed, draws.double().tolist(), strict=True):
        gain, offset = 1 + 0.9 * (2 * draw[5] - 1), 2 * 0.1 * (2 * draw[6] - 1)
        factor = 1 + (2 * draw[SATURATION] - 1)
        for y in range(8):
            for x in range(8):
                red, green, blue = image[:, y, x]
                gray = 0.299 * red + 0.587 * green + 0.114 * blue
                expected = [gain * (factor * c + (1 - factor) * gray) + offset for c in (red, green, blue)]
                np.testing.assert_allclose(after[:, y, x], np.clip(expected, -1, 1), atol=2e-6)
    gray = 0.299 * 0.9 - 0.701 * 0.9
    np.testing.assert_allclose(changed[0], 1.9 * gray + 0.2, atol=1e-5)


def test_erase_greys_a_rectangle_of_the_promised_size() -> None:
    draws = torch.from_numpy(uniform_draws(0, 0, np.arange(400)))
    changed = Augmentation(flip=0, erase=0.5)(torch.ones(400, 1, 112, 112), draws)
    area = (changed == 0).flatten(1).float().mean(1)
    assert (area > 0).float().mean() == pytest.approx(0.5, abs=0.1)
    assert area.max() < 0.22


@pytest.mark.parametrize("option", EVERYTHING)
@pytest.mark.parametrize("value", [-0.1, 181.0, math.nan, math.inf])
def test_a_value_outside_the_range_is_refused_by_name(option: str, value: float) -> None:
    with pytest.raises(FacelitError, match=rf"data\.augmentation: {option} is {value}, .* from 0 to"):
        Augmentation(**{option: value})


def test_ends_of_the_ranges() -> None:
    for option in ("crop", "scale"):
        with pytest.raises(FacelitError, match=f"{option} is 1.0, .* 0 to below 1"):
            Augmentation(**{option: 1.0})
        Augmentation(**{option: 0.999})
    for option in EVERYTHING.keys() - {"crop", "scale", "rotate"}:
        Augmentation(**{option: 1})
        with pytest.raises(FacelitError, match=f"{option} is 1.001, "):
            Augmentation(**{option: 1.001})
    Augmentation(rotate=180)


def test_normalize() -> None:
    pixels = torch.tensor([0, 127, 128, 255], dtype=torch.uint8).view(1, 1, 2, 2)
    expected = (torch.tensor([0.0, 127, 128, 255]) - 127.5) / 127.5
    torch.testing.assert_close(normalize(pixels).flatten(), expected)


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_augmentation_is_the_same_whatever_lightning_makes_of_a_batch(precision: str) -> None:
    """It casts all floating-point tensors of a batch to the precision of the weights, before anything else."""
    changes = Augmentation(crop=0.2, blur=0.5, low_resolution=1.0)
    data = FaceDataModule(SyntheticFaces(4, 2), batch_size=8, num_workers=0, augmentation=changes)
    batch = next(iter(data.train_dataloader()))
    plugin = HalfPrecision("bf16-true") if precision == "bf16-true" else DoublePrecision()
    cast = data.on_after_batch_transfer(plugin.convert_input(batch), 0)
    assert torch.equal(cast.images, data.on_after_batch_transfer(batch, 0).images)


def _some_images(count: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    images = torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(2)) * 2 - 1
    return images, torch.from_numpy(uniform_draws(5, 0, np.arange(count)))


def _bilinear(image: Image, y: float, x: float) -> Image:
    """The colour between four pixels; beyond the border the image is mirrored at the border pixels' outer edges."""
    height, width = image.shape[1:]
    y, x = (min(max(_mirrored(at, size), 0), size - 1) for at, size in ((y, height), (x, width)))
    top, left = min(int(y), max(height - 2, 0)), min(int(x), max(width - 2, 0))
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    down, across = y - top, x - left
    upper = (1 - across) * image[:, top, left] + across * image[:, top, right]
    lower = (1 - across) * image[:, bottom, left] + across * image[:, bottom, right]
    between: Image = (1 - down) * upper + down * lower
    return between


def _mirrored(at: float, size: int) -> float:
    if at < -0.5:
        return _mirrored(-1 - at, size)
    return _mirrored(2 * size - 1 - at, size) if at > size - 0.5 else at
