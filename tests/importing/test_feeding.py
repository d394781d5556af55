"""Checking how a network was fed: faces on which one convention is right by construction."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from facelit.data import VerificationSource
from facelit.errors import FacelitError
from facelit.importing.feeding import clearly_better, compare_conventions, try_out
from facelit.importing.kinds import Feed
from facelit.importing.network import ForeignNetwork


class Coloured(nn.Module):
    """Tells people apart by the shade of its first colour, in 41 bins over [-1, 1], where black (the second) is -1."""

    def forward(self, images: Tensor) -> Tensor:
        shade = images[:, 0].mean((1, 2)).unsqueeze(1)
        black = torch.exp(-((images[:, 1].mean((1, 2)).unsqueeze(1) + 1) ** 2) / 0.01)
        return black * torch.exp(-((shade - torch.linspace(-1, 1, 41)) ** 2) / 0.005) + 1e-6


class People(VerificationSource):
    """Person p is a shade of blue; red differs from image to image."""

    def __init__(self, people: int = 40) -> None:
        numbers = np.arange(people)
        genuine, impostor = (
            np.stack([2 * numbers, 2 * numbers + 1]),
            np.stack([2 * numbers, 2 * ((numbers + 7) % people)]),
        )
        first, second = np.concatenate([genuine, impostor], axis=1)
        super().__init__(
            [str(n) for n in range(2 * people)], first, second, np.arange(2 * people) < people, numbers.repeat(2)
        )
        self.rng = np.random.default_rng(0).integers(0, 256, 2 * people)

    def image(self, number: int) -> np.ndarray:
        crop = np.zeros((112, 112, 3), np.uint8)
        crop[..., 0], crop[..., 2] = self.rng[number], 6 * (number // 2) + self.rng[number] % 8
        return crop


def network(module: nn.Module, feed: Feed = Feed()) -> ForeignNetwork:  # noqa: B008 - a tuple
    return ForeignNetwork(
        "theirs", None, module.eval(), "facelit.backbones.X", {"embedding_dim": 2}, feed, True, {}, []
    )


def test_the_better_order_of_colours_is_found() -> None:
    chosen, best = compare_conventions(network(Coloured()), Feed(), People())
    assert chosen.feed == Feed()
    assert best.feed.colour == "BGR"
    assert clearly_better(best, chosen)


def test_the_right_convention_is_left_alone() -> None:
    chosen, best = compare_conventions(network(Coloured()), Feed(colour="BGR"), People())
    assert not clearly_better(best, chosen)
    assert chosen.separation > 3


def test_separation_is_the_distance_of_the_means_in_standard_deviations() -> None:
    people = People()
    chosen, _ = compare_conventions(network(Coloured()), Feed(colour="BGR"), people)
    shades = np.array([people.image(n)[0, 0, 2] for n in range(len(people))]) / 127.5 - 1
    bins = np.exp(-((shades[:, None] - np.linspace(-1, 1, 41)) ** 2) / 0.005) + 1e-6
    bins /= np.linalg.norm(bins, axis=1, keepdims=True)
    scores = (bins[people.first] * bins[people.second]).sum(1)
    genuine, impostor = scores[people.is_same], scores[~people.is_same]
    expected = (genuine.mean() - impostor.mean()) / np.sqrt((genuine.var() + impostor.var()) / 2)
    assert chosen.separation == pytest.approx(expected, rel=1e-3)


def test_a_network_that_tells_nobody_apart() -> None:
    class Constant(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.ones(len(images), 2)

    assert "same embedding" in (try_out(network(Constant()), Feed()) or "")
    assert try_out(network(Coloured()), Feed()) is None


def test_a_size_that_does_not_fit_and_broken_weights() -> None:
    linear = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 2))
    assert try_out(network(linear), Feed(size=(64, 64))) is None
    with pytest.raises(FacelitError, match=r"does not take images of 112x112 \(option size\)"):
        try_out(network(linear), Feed())
    nn.init.constant_(linear[1].bias, float("nan"))
    with pytest.raises(FacelitError, match="NaN or infinite"):
        try_out(network(linear), Feed(size=(64, 64)))
