"""What facelit knows of one kind of weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from json import dumps, loads
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from facelit import backbones

State = Mapping[str, Tensor]
"""Parameters and buffers by name."""

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)

CLASSIFIER_NOTE = (
    "The outputs of its last layer are taken for the embedding. Those of an ImageNet classifier are none: a start for training, no"
    " more."
)


class Feed(NamedTuple):
    """How a network was fed in training; the arguments of `ImportedBackbone` of the same names.

    Attributes:
        size: Height and width of the images.
        colour: Order of the colours, "RGB" or "BGR".
        mean: Subtracted from red, green and blue in 0..255.
        std: What they are divided by afterwards.
        l2: Whether embeddings are divided by their length.
        flip_average: Whether the embedding is the mean of the crop's and its mirror image's.
    """

    size: tuple[int, int] = (112, 112)
    colour: str = "RGB"
    mean: tuple[float, float, float] = (127.5, 127.5, 127.5)
    std: tuple[float, float, float] = (127.5, 127.5, 127.5)
    l2: bool = False
    flip_average: bool = False

    def describe(self) -> str:
        """In a few words."""
        height, width = self.size
        extras = ["L2"] * self.l2 + ["averaged with the mirror image"] * self.flip_average
        return ", ".join([self.colour, f"{height}x{width}", self.describe_range(), *extras])

    def describe_range(self) -> str:
        """What pixels become."""
        known = {(feed.mean, feed.std): name for name, feed in RANGES.items()}
        name = known.get((self.mean, self.std))
        if name is not None:
            return {"imagenet": "ImageNet's mean and std"}.get(name, f"in {name}")
        same = len({*self.mean}) == len({*self.std}) == 1
        mean, std = (
            f"{values[0]:g}" if same else "/".join(f"{v:g}" for v in values) for values in (self.mean, self.std)
        )
        return f"(x - {mean}) / {std}"


RANGES = {
    "-1..1": Feed(),
    "0..1": Feed(mean=(0.0, 0.0, 0.0), std=(255.0, 255.0, 255.0)),
    "0..255": Feed(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
    "imagenet": Feed(mean=IMAGENET_MEAN, std=IMAGENET_STD),
}
"""The usual ranges by the name that option `range` takes; only `mean` and `std` count."""


class Network(NamedTuple):
    """An architecture that weights may be of.

    Attributes:
        title: What it is called in messages.
        backbone: The class of `facelit.backbones`.
        init_args: What it is built with.
    """

    title: str
    backbone: type[nn.Module]
    init_args: dict[str, Any]

    def build(self) -> nn.Module:
        """With memory, untrained."""
        return self.backbone(**self.init_args)

    def shapes(self) -> State:
        """The names and shapes of its parameters and buffers, without memory."""
        return _shapes(self.backbone.__name__, dumps(self.init_args))


@cache
def _shapes(backbone: str, init_args: str) -> State:
    with torch.device("meta"):
        state: State = getattr(backbones, backbone)(**loads(init_args)).state_dict()
    return state


class Published(NamedTuple):
    """Weights that somebody published, as their authors describe them; a row of `facelit models`.

    Attributes:
        name: What they are called there.
        architecture: The network.
        home: Where to get them.
        licence: Of the weights.
        trained_on: The training set.
        lfw: Accuracy on LFW that the authors state; "not stated" else.
        command: How they are imported.
    """

    name: str
    architecture: str
    home: str
    licence: str
    trained_on: str
    lfw: str
    command: str


@dataclass(frozen=True)
class Kind:
    """Weights that are named, shaped and fed alike.

    Attributes:
        name: Whose they are.
        mark: A name, after conversion, that all of its networks have and no other kind's; "" for somebody's whole collection of
            networks, in which `networks` has to search.
        networks: The architectures that a state, already converted, may be of, given the name that the file or the user has for
            it; the sizes that vary are read from the state.
        feed: How they were fed.
        assumed: Whether that differs from one to the next, and is the likeliest.
        convert: Their names and shapes to those of facelit's network.
        prefixes: The state's names must have stood below one of these, such as "model."; any where there are none.
        published: Known weights.
        notes: What somebody who imports them should know.
    """

    name: str
    mark: str
    networks: Callable[[State, str | None], Iterable[Network]]
    feed: Feed
    assumed: bool = False
    convert: Callable[[State], State] = field(default=dict)
    prefixes: tuple[str, ...] = ()
    published: tuple[Published, ...] = ()
    notes: tuple[str, ...] = ()


def rows_of(state: State, name: str, default: int) -> int:
    """How many rows a matrix has: the length of the embedding, where it is the last layer's."""
    return int(state[name].shape[0]) if name in state and state[name].ndim else default
