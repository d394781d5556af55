"""Recognises the network that weights belong to, by the names and shapes of its parameters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from facelit.errors import FacelitError
from facelit.importing.kinds import KINDS, Kind, Network, State
from facelit.importing.weights import Weights

_COUNTER = "num_batches_tracked"
_UNLIKE = 0.1
"""Below this share of equal tensors two networks have nothing to do with each other."""


class Recognised(NamedTuple):
    """Weights whose network is known.

    Attributes:
        kind: The kind of weights.
        network: The architecture.
        state: The weights, in float32, by the names in facelit's network.
        left_out: Names in the file that do not belong to the network.
    """

    kind: Kind
    network: Network
    state: dict[str, Tensor]
    left_out: list[str]


class _Candidate(NamedTuple):
    kind: Kind
    network: Network
    state: State
    expected: State
    left_out: list[str]

    def likeness(self) -> float:
        """The share of tensors, out of all in either, that both have with the same name and shape."""
        mine = {(name, value.shape) for name, value in self.expected.items() if _counts(name)}
        theirs = {(name, value.shape) for name, value in self.state.items() if _counts(name)}
        return len(mine & theirs) / max(1, len(mine | theirs))

    def differences(self) -> list[str]:
        """The differences in words, in the order of the names."""
        names = sorted(name for name in {*self.expected, *self.state} if _counts(name))
        return [
            f"{name} is {_shape(self.state.get(name))} in the file and {_shape(self.expected.get(name))} there"
            for name in names
            if _shape(self.state.get(name)) != _shape(self.expected.get(name))
        ]


def recognise(weights: Weights, path: Path | str, architecture: str | None = None) -> Recognised:
    """Finds the network that weights belong to.

    Args:
        weights: The content of the file.
        path: The file, for messages.
        architecture: The network's name in torchvision or timm; by default the name in the file, if any.

    Raises:
        FacelitError: The network is not known; the message names the closest one and the first differences.
    """
    hint = architecture or weights.metadata.get("architecture")
    families = [kind for kind in KINDS if kind.mark]
    collections = [kind for kind in KINDS if not kind.mark]
    closest: _Candidate | None = None
    for kinds in (collections, families) if hint else (families, collections):
        for candidate in _candidates(weights, kinds, hint):
            if candidate.likeness() == 1:
                return _accept(candidate)
            if closest is None or candidate.likeness() > closest.likeness():
                closest = candidate
        if closest is not None and (architecture or not hint):  # a name in a file may mean another repository's network
            break
    if closest is None:
        closest = max(_candidates(weights, families, hint, marked_only=False), key=_Candidate.likeness)
    raise FacelitError(f"{path}: {_unknown(closest, weights)} `facelit models` lists the known networks.")


def _candidates(
    weights: Weights, kinds: Sequence[Kind], hint: str | None, marked_only: bool = True
) -> Iterator[_Candidate]:
    for view in weights.views():
        for kind in kinds:
            if kind.prefixes and view.prefix not in kind.prefixes:
                continue
            state = kind.convert(view.state)
            if marked_only and kind.mark and kind.mark not in state:
                continue
            dropped = [] if len(state) == len(view.state) else sorted({*view.state} - {*state})
            for network in kind.networks(state, hint):
                try:
                    expected = network.shapes()
                except FacelitError:  # one of a collection that does not take crops
                    continue
                yield _Candidate(kind, network, state, expected, view.left_out + dropped)


def _accept(candidate: _Candidate) -> Recognised:
    state = {}
    for name, shape in candidate.expected.items():
        value = candidate.state.get(name)
        if value is None:  # torch before 0.4.1 did not count batches
            value = torch.zeros(shape.shape, dtype=shape.dtype)
        state[name] = value.to(shape.dtype).contiguous()
    return Recognised(candidate.kind, candidate.network, state, candidate.left_out)


def _unknown(closest: _Candidate, weights: Weights) -> str:
    likeness = closest.likeness()
    if likeness < _UNLIKE:
        names = ", ".join(f"{name} ({_shape(value)})" for name, value in list(weights.state.items())[:3])
        return f"no network known to facelit resembles these {len(weights.state)} tensors: {names}, ..."
    differences = closest.differences()
    more = f"; and {len(differences) - 3} more" if len(differences) > 3 else ""
    return (
        f"not a network known to facelit. The closest is {closest.network.title}, {100 * likeness:.0f} % alike:"
        f" {'; '.join(differences[:3])}{more}."
    )


def _counts(name: str) -> bool:
    return not name.endswith(_COUNTER)


def _shape(value: Tensor | None) -> str:
    return "absent" if value is None else "x".join(map(str, value.shape)) or "a scalar"
