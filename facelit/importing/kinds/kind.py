"""The facts about one kind of weights."""

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
    """A network's preprocessing in training; the same-named arguments of `ImportedBackbone`.

    Attributes:
        size: Height and width of the images.
        colour: Order of the colours, "RGB" or "BGR".
        mean: The mean subtracted from red, green and blue in 0..255.
        std: The divisor after that.
        l2: Whether embeddings are divided by their length.
        flip_average: Whether embeddings are averaged with the mirror image's.
    """

    size: tuple[int, int] = (112, 112)
    colour: str = "RGB"
    mean: tuple[float, float, float] = (127.5, 127.5, 127.5)
    std: tuple[float, float, float] = (127.5, 127.5, 127.5)
    l2: bool = False
    flip_average: bool = False

    def describe(self) -> str:
        """Describes the preprocessing in a few words."""
        height, width = self.size
        extras = ["L2"] * self.l2 + ["averaged with the mirror image"] * self.flip_average
        return ", ".join([self.colour, f"{height}x{width}", self.describe_range(), *extras])

    def describe_range(self) -> str:
        """Describes the range of pixels."""
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
"""The usual ranges by their names in the option `range`; only `mean` and `std` count."""


class Network(NamedTuple):
    """An architecture that weights may belong to.

    Attributes:
        title: Its name in messages.
        backbone: The class in `facelit.backbones`.
        init_args: The arguments it is built with.
    """

    title: str
    backbone: type[nn.Module]
    init_args: dict[str, Any]

    def build(self) -> nn.Module:
        """Builds the network with random weights."""
        return self.backbone(**self.init_args)

    def shapes(self) -> State:
        """The names and shapes of its parameters and buffers, without allocating them."""
        return _shapes(self.backbone.__name__, dumps(self.init_args))


@cache
def _shapes(backbone: str, init_args: str) -> State:
    with torch.device("meta"):
        state: State = getattr(backbones, backbone)(**loads(init_args)).state_dict()
    return state


class Published(NamedTuple):
    """Weights that somebody published, as their authors describe them; a row of `facelit models`.

    Attributes:
        name: Their published name.
        architecture: The network.
        home: Where to get them.
        licence: The licence of the weights.
        trained_on: The training set.
        lfw: The authors' accuracy on LFW, or "not stated".
        command: The command to import them.
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
    """Weights with the same names, shapes and preprocessing.

    Attributes:
        name: The name of the kind.
        mark: A name, after conversion, found in all of its networks and in no other kind's; "" for a whole collection of
            networks, which `networks` has to search.
        networks: The architectures that a converted state may belong to, given its name in the file or from the user; sizes
            that vary are read from the state.
        feed: The preprocessing.
        assumed: Whether the preprocessing varies within the kind, and `feed` is only the most likely.
        convert: Converts names and shapes to those of facelit's network.
        prefixes: The prefixes, such as "model.", of which the state's names must have had one; empty for any or none.
        published: Known weights.
        notes: Notes for whoever imports them.
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
    """The number of rows of a matrix: the length of the embedding, for the last layer."""
    return int(state[name].shape[0]) if name in state and state[name].ndim else default
