"""A head whose identities lie on several processes: its checkpoints, and clipping of its gradients.

A checkpoint holds the parameters of all identities and what the optimizer keeps for them, as that of a whole head does. It
is loaded on any number of processes, each of which takes its own rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, MutableMapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from facelit.distributed import gather_rows, part_sizes, world_size
from facelit.errors import FacelitError
from facelit.heads import Head
from facelit.heads.rows import own_rows

_HEAD = "head."


def names_in_model(head: Head) -> list[str]:
    """Names of the identities' parameters in the recognizer's state dict."""
    return [_HEAD + name for name in head.identity_parameters()]


def places_in_optimizer(head: Head, optimizer: torch.optim.Optimizer) -> list[int]:
    """The numbers that an optimizer's state dict gives the identities' parameters."""
    own = {id(parameter) for parameter in head.identity_parameters().values()}
    parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
    return [number for number, parameter in enumerate(parameters) if id(parameter) in own]


def gather_checkpoint(checkpoint: MutableMapping[str, Any], head: Head, places: Sequence[int]) -> None:
    """Replaces the own rows in a checkpoint by those of all processes; process 0, which writes the file, gets them.

    Every process must call this.

    Args:
        checkpoint: `state_dict` and, unless it holds weights only, `optimizer_states`; changed in place.
        head: the sharded head.
        places: of its parameters in the optimizer's state, as :func:`places_in_optimizer` says.
    """
    assert head.num_identities is not None
    counts = part_sizes(head.num_identities, world_size())
    state = checkpoint["state_dict"]
    for name in names_in_model(head):
        state[name] = gather_rows(state[name], counts)
    own = own_rows(head.num_identities).size
    for values in _optimizer_states(checkpoint, places):
        for name, value in values.items():
            if isinstance(value, Tensor) and value.ndim and len(value) == own:
                values[name] = gather_rows(value, counts)


def shard_checkpoint(checkpoint: MutableMapping[str, Any], head: Head, places: Sequence[int]) -> None:
    """Replaces all identities' rows in a checkpoint by this process's own.

    Args:
        checkpoint: as :func:`gather_checkpoint` made it, or of a head that is not sharded; changed in place.
        head: the sharded head.
        places: of its parameters in the optimizer's state, as the checkpoint tells them.

    Raises:
        FacelitError: The checkpoint's head has another number of identities.
    """
    assert head.num_identities is not None
    rows = own_rows(head.num_identities)
    own = slice(rows.first, rows.first + rows.size)
    state = checkpoint["state_dict"]
    for name in names_in_model(head):
        if len(state[name]) != head.num_identities:
            raise FacelitError(
                f"{name} has {len(state[name]):,} identities in the checkpoint, the head here {head.num_identities:,}."
            )
        state[name] = state[name][own].clone()
    for values in _optimizer_states(checkpoint, places):
        for name, value in values.items():
            if isinstance(value, Tensor) and value.ndim and len(value) == head.num_identities:
                values[name] = value[own].clone()


def _optimizer_states(checkpoint: MutableMapping[str, Any], places: Sequence[int]) -> Iterator[dict[str, Any]]:
    """What the network's optimizer keeps for the identities' parameters: copies, which take the originals' place."""
    for saved in checkpoint.get("optimizer_states", [])[:1]:
        saved["state"] = dict(saved["state"])
        for place in places:
            if place in saved["state"]:
                saved["state"][place] = dict(saved["state"][place])
                yield saved["state"][place]


def clip_gradients(parameters: Iterable[nn.Parameter], head: Head, max_norm: float) -> Tensor:
    """Scales all gradients so that their norm, over the identities of all processes too, is at most `max_norm`.

    Every process must call this; all of them scale alike.

    Args:
        parameters: of the network and the head.
        head: the sharded head.
        max_norm: the largest Euclidean norm of all gradients together.

    Returns:
        The norm before, scalar.
    """
    own = {id(parameter) for parameter in head.identity_parameters().values()}
    gradients = [(p.grad, id(p) in own) for p in parameters if p.grad is not None]
    shared = torch.nn.utils.get_total_norm([gradient for gradient, is_own in gradients if not is_own])
    sharded = torch.nn.utils.get_total_norm([gradient for gradient, is_own in gradients if is_own]).square()
    if world_size() > 1:
        dist.all_reduce(sharded)
    norm = (shared.square() + sharded).sqrt()
    factor = (max_norm / (norm + 1e-6)).clamp(max=1)
    for gradient, _ in gradients:
        gradient.mul_(factor)
    return norm
