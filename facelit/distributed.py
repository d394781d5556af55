"""Gathering tensors over processes with plain torch.distributed; every function also works without it."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


def _initialized() -> bool:
    return dist.is_available() and dist.is_initialized()


def world_size() -> int:
    """The number of processes that train together: 1 where torch.distributed is not initialised."""
    return dist.get_world_size() if _initialized() else 1


def rank() -> int:
    """This process's number, from 0: 0 where torch.distributed is not initialised."""
    return dist.get_rank() if _initialized() else 0


def all_gather(x: Tensor) -> Tensor:
    """Concatenates a tensor over all processes, in rank order.

    Every process must call this, and with the same shape and dtype: a process that stays away hangs the
    others.

    Args:
        x: (N, ...) tensor of any dtype.

    Returns:
        (world_size * N, ...) detached tensor, the same on every process; ``x.detach()`` in a single process.
    """
    x = x.detach()
    if world_size() == 1:
        return x
    x = x.contiguous()
    parts = [torch.empty_like(x) for _ in range(world_size())]
    dist.all_gather(parts, x)
    return torch.cat(parts)


class _AllGather(torch.autograd.Function):
    """all_gather whose backward hands back this process's slice of the gradient, times world_size."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.rows = x.shape[0]
        return all_gather(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.narrow(0, rank() * ctx.rows, ctx.rows) * world_size()


def all_gather_with_grad(x: Tensor) -> Tensor:
    """Concatenates a tensor over all processes, in rank order, and lets the gradient through.

    The gradient flows to this process's own slice, multiplied by the number of processes.
    DistributedDataParallel averages the parameters' gradients over the processes; so where every process
    computes the same loss from the gathered batch, the factor turns that average into a sum over the slices,
    which is the gradient that one process would get from the whole batch. (A loss that differs from process
    to process needs another rule.)

    Args:
        x: (N, ...) floating-point tensor, of the same shape on every process.

    Returns:
        (world_size * N, ...) tensor with the values of :func:`all_gather`; ``x`` itself in a single process.
    """
    if world_size() == 1:
        return x
    gathered: Tensor = _AllGather.apply(x)
    return gathered
