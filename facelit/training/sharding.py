"""A head whose identities are spread over the processes: what it cannot be combined with, its checkpoints, its clipping.

A checkpoint holds the parameters of all identities and the optimizer's state of them, just as that of an unsharded head. It
can be loaded on any number of processes; each takes its own rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, MutableMapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor, nn

from facelit.distributed import gather_rows, part_sizes, world_size
from facelit.errors import FacelitError
from facelit.heads import Head
from facelit.heads.rows import own_rows
from facelit.lightning import exclude_from_ddp, spawns_processes, trainer_of

_HEAD = "head."


def spread(module: LightningModule, head: Head) -> None:
    """Gives a sharded head the identities of this process; call it once the processes know each other.

    Args:
        module: What the head is part of, under the name `head`.
        head: Any head; one that is not sharded, or has its identities already, is left alone.

    Raises:
        FacelitError: Something the trainer uses rules sharding out.
    """
    if not head.sharded or not any(parameter.is_meta for parameter in head.parameters()):
        return
    trainer = trainer_of(module)
    if trainer is not None and trainer.world_size > 1:
        _check_trainer(trainer, head)
    head.shard()
    exclude_from_ddp(module, names_in_model(head))


def _check_trainer(trainer: Trainer, head: Head) -> None:
    if head.num_identities is not None and head.num_identities < trainer.world_size:
        raise FacelitError(
            f"model.head.sharded: {head.num_identities} identities cannot be spread over {trainer.world_size} processes."
        )
    if trainer.state.fn != "fit":
        return
    if trainer.precision == "16-mixed":
        raise FacelitError(
            "model.head.sharded cannot be combined with trainer.precision 16-mixed, under which each process would skip other"
            " steps: use bf16-mixed or 32-true."
        )
    if not isinstance(trainer.strategy, DDPStrategy) or spawns_processes(trainer.strategy):
        raise FacelitError(
            "model.head.sharded on several processes needs --trainer.strategy ddp (or facelit.speed.FaceDDP)."
        )


def names_in_model(head: Head) -> list[str]:
    """Names of the identities' parameters in the recognizer's state dict."""
    return [_HEAD + name for name in head.identity_parameters()]


def places_in_optimizer(head: Head, optimizer: torch.optim.Optimizer) -> list[int]:
    """The numbers that an optimizer's state dict gives the identities' parameters."""
    own = {id(parameter) for parameter in head.identity_parameters().values()}
    parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
    return [number for number, parameter in enumerate(parameters) if id(parameter) in own]


def save_into(checkpoint: MutableMapping[str, Any], own: dict[str, Any], head: Head, trainer: Trainer) -> None:
    """Makes a checkpoint that of all identities, and says where an optimizer has them; every process must call this.

    Args:
        checkpoint: As Lightning made it; changed in place.
        own: facelit's entries of it, which get `identity_places`.
        head: Any head; the checkpoint of one that is not sharded is complete already.
        trainer: Whose checkpoint it is.
    """
    if trainer.optimizers:
        own["identity_places"] = places_in_optimizer(head, trainer.optimizers[0])
    if head.sharded:
        gather_checkpoint(checkpoint, head, own.get("identity_places", ()))


def gather_checkpoint(checkpoint: MutableMapping[str, Any], head: Head, places: Sequence[int]) -> None:
    """Replaces this process's rows in a checkpoint by those of all; on process 0 only, which writes the file.

    Every process must call this.

    Args:
        checkpoint: `state_dict` and, unless it holds weights only, `optimizer_states`; changed in place.
        head: the sharded head.
        places: of its parameters in the optimizer's state, from :func:`places_in_optimizer`.
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
        checkpoint: from :func:`gather_checkpoint`, or of an unsharded head; changed in place.
        head: the sharded head.
        places: of its parameters in the optimizer's state, as the checkpoint records them.

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
    """The network optimizer's state of the identities' parameters: copies, put in place of the originals."""
    for saved in checkpoint.get("optimizer_states", [])[:1]:
        saved["state"] = dict(saved["state"])
        for place in places:
            if place in saved["state"]:
                saved["state"][place] = dict(saved["state"][place])
                yield saved["state"][place]


def clip_gradients(parameters: Iterable[nn.Parameter], head: Head, max_norm: float) -> Tensor:
    """Scales all gradients so that their norm, taken over the identities of all processes, is at most `max_norm`.

    Every process must call this; all scale by the same factor.

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
