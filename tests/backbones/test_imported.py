"""How a network is fed: crop, size, normalisation, colours, mirror images; against the arithmetic on pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from facelit.backbones import ImportedBackbone
from facelit.errors import FacelitError


class Flat(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)


def pixels(seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (2, 3, 112, 112))).float()


def fed(**options: object) -> Tensor:
    """What the network gets for `pixels()`, handed over in facelit's convention."""
    size = options.get("size", (112, 112))
    flat = ImportedBackbone(Flat(), 1, **options).eval()(pixels() / 127.5 - 1)  # type: ignore[arg-type]
    return flat.view(2, 3, *size)  # type: ignore[misc]


def test_the_defaults_change_nothing() -> None:
    images = pixels() / 127.5 - 1
    assert torch.equal(ImportedBackbone(Flat(), 1)(images), images.flatten(1))


def test_normalisation_goes_by_the_colour_and_comes_before_their_order() -> None:
    mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    expected = (pixels() - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    options = {"mean": mean.tolist(), "std": std.tolist()}
    torch.testing.assert_close(fed(**options), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(fed(colour="BGR", **options), expected[:, [2, 1, 0]], rtol=0, atol=1e-5)
    torch.testing.assert_close(fed(mean=[0, 0, 0], std=[1, 1, 1]), pixels(), rtol=0, atol=1e-4)


def test_112x96_is_the_middle_of_the_crop() -> None:
    torch.testing.assert_close(fed(size=(112, 96)), pixels()[:, :, :, 8:104] / 127.5 - 1)


def test_other_sizes_are_resized_as_pillow_does() -> None:
    found = fed(size=(160, 160))
    for image, resized in zip(pixels(), found, strict=True):
        for channel, plane in zip(image, resized, strict=True):
            expected = Image.fromarray(channel.numpy()).resize((160, 160), Image.Resampling.BILINEAR)
            np.testing.assert_allclose(np.asarray(expected) / 127.5 - 1, plane.numpy(), atol=1e-4)
    smaller = fed(size=(64, 64))
    expected = Image.fromarray(pixels()[0, 0].numpy()).resize((64, 64), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(np.asarray(expected) / 127.5 - 1, smaller[0, 0].numpy(), atol=1e-4)


def test_mirror_images_are_averaged_but_not_in_training() -> None:
    images = pixels() / 127.5 - 1
    backbone = ImportedBackbone(Flat(), 1, flip_average=True)
    assert torch.equal(backbone.train()(images), images.flatten(1))
    torch.testing.assert_close(backbone.eval()(images), ((images + images.flip(3)) / 2).flatten(1))


def test_l2_comes_before_the_average() -> None:
    images = pixels() / 127.5 - 1
    found = ImportedBackbone(Flat(), 1, l2=True, flip_average=True).eval()(images)
    rows, mirrored = images.flatten(1), images.flip(3).flatten(1)
    expected = (rows / rows.norm(dim=1, keepdim=True) + mirrored / mirrored.norm(dim=1, keepdim=True)) / 2
    torch.testing.assert_close(found, expected)


def test_how_it_is_fed_is_no_part_of_the_weights() -> None:
    assert list(ImportedBackbone(nn.Linear(2, 3), 3).state_dict()) == ["network.weight", "network.bias"]


@pytest.mark.parametrize(
    "options", [{"size": (112,)}, {"size": (0, 112)}, {"colour": "GBR"}, {"mean": (1.0,)}, {"std": (1.0, 0.0, 1.0)}]
)
def test_impossible_ways_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(FacelitError, match="ImportedBackbone: "):
        ImportedBackbone(Flat(), 1, **options)  # type: ignore[arg-type]
