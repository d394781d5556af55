"""Gathering tensors over processes with plain torch.distributed; every function also works without it.

A global batch that does not divide evenly is split as :func:`part_sizes` says. Whoever calls a head on such a batch
announces it with :func:`global_batch`; inside it every process knows how many rows the others hold, without asking.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

_PIECE_BYTES = 2**26

_uneven_parts: ContextVar[tuple[int, ...] | None] = ContextVar("_uneven_parts", default=None)


def _initialized() -> bool:
    return dist.is_available() and dist.is_initialized()


def world_size() -> int:
    """The number of processes that train together; 1 if torch.distributed is not initialised."""
    return dist.get_world_size() if _initialized() else 1


def rank() -> int:
    """This process's number, from 0; 0 if torch.distributed is not initialised."""
    return dist.get_rank() if _initialized() else 0


def part_sizes(total: int, num_parts: int) -> tuple[int, ...]:
    """How a batch is split: as evenly as possible, the first processes holding one row more.

    Args:
        total: rows of the global batch.
        num_parts: the number of processes.

    Returns:
        The rows of each process, in rank order.
    """
    size, left = divmod(total, num_parts)
    return tuple(size + (number < left) for number in range(num_parts))


@contextmanager
def global_batch(total: int | None) -> Iterator[None]:
    """Tells the functions of this module how many rows the current batch has over all processes.

    Needed if that number is not divisible by the number of processes, and harmless if it is: no collective, no wait for
    the device. Without it all parts are assumed to have the same size.

    Args:
        total: rows of the global batch, the same on every process and split as by :func:`part_sizes`; None for parts of
            equal size.
    """
    parts = None if total is None else part_sizes(total, world_size())
    token = _uneven_parts.set(parts if parts and parts[0] != parts[-1] else None)
    try:
        yield
    finally:
        _uneven_parts.reset(token)


def parts_of_batch(rows: int) -> tuple[int, ...]:
    """How many rows of the current batch each process holds.

    Args:
        rows: how many this process holds.

    Returns:
        The rows of each process, in rank order.

    Raises:
        ValueError: if this process's part of the :func:`global_batch` has another size.
    """
    uneven = _uneven_parts.get()
    if uneven is None:
        return (rows,) * world_size()
    _check_rows(rows, uneven)
    return uneven


def weigh_part(mean: Tensor, rows: int) -> Tensor:
    """Makes the average over the processes the mean over the global batch.

    DistributedDataParallel averages gradients over the processes. If their parts have the same size, the average of the
    parts' means is the global mean; otherwise each mean must be weighted by its number of rows.

    Args:
        mean: scalar, a mean over this process's part of the current batch.
        rows: how many rows that part has.

    Returns:
        ``mean * rows * world_size / total`` in an uneven :func:`global_batch`; otherwise ``mean`` itself.
    """
    if _uneven_parts.get() is None:
        return mean
    parts = parts_of_batch(rows)
    return mean * (rows * len(parts) / sum(parts))


def all_gather(x: Tensor, parts: Sequence[int] | None = None) -> Tensor:
    """Concatenates a tensor over all processes, in rank order.

    Every process must call this, with the same dtype and shape (except for the rows, if `parts` or :func:`global_batch`
    gives them): if one does not, the others hang. Shorter parts are padded to the longest in transit.

    Args:
        x: (N, ...) tensor of any dtype.
        parts: the rows of each process, in rank order; by default those of the current :func:`global_batch`.

    Returns:
        (rows of all processes, ...) detached tensor, the same on every process; ``x.detach()`` in a single process.

    Raises:
        ValueError: if ``x`` does not have this process's rows.
    """
    x = x.detach()
    if world_size() == 1:
        return x
    parts = parts_of_batch(len(x)) if parts is None else parts
    _check_rows(len(x), parts)
    longest = max(parts)
    padded = x.contiguous() if len(x) == longest else torch.cat([x, x.new_zeros(longest - len(x), *x.shape[1:])])
    gathered = [torch.empty_like(padded) for _ in parts]
    dist.all_gather(gathered, padded)
    return torch.cat([part[:rows] for part, rows in zip(gathered, parts, strict=True)])


class _AllGather(torch.autograd.Function):
    """all_gather whose backward returns this process's slice of the gradient, or of all processes' sum, times world_size."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, sums_grad: bool) -> Tensor:
        ctx.rows = len(x)
        ctx.start = sum(parts_of_batch(len(x))[: rank()])
        ctx.sums_grad = sums_grad
        return all_gather(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        if ctx.sums_grad:
            grad = grad.contiguous().clone()
            dist.all_reduce(grad)
        return grad.narrow(0, ctx.start, ctx.rows) * world_size(), None


def all_gather_with_grad(x: Tensor) -> Tensor:
    """Concatenates a tensor over all processes, in rank order, and passes the gradient through.

    The gradient flows to this process's own slice, multiplied by the number of processes.
    DistributedDataParallel averages the parameters' gradients over the processes; if every process computes the same
    loss from the gathered batch, the factor turns that average into a sum over the slices, which is the gradient that
    one process would get from the whole batch. (A loss that differs between processes needs another rule.)

    Args:
        x: (N, ...) floating-point tensor, of the same shape on every process except for the rows in an uneven
            :func:`global_batch`.

    Returns:
        (rows of all processes, ...) tensor with the values of :func:`all_gather`; ``x`` itself in a single process.

    Raises:
        ValueError: as :func:`all_gather`.
    """
    if world_size() == 1:
        return x
    gathered: Tensor = _AllGather.apply(x, False)
    return gathered


def all_gather_summing_grad(x: Tensor) -> Tensor:
    """As :func:`all_gather_with_grad`, for a loss to which each process contributes through parameters of its own.

    Every process computes the same loss, but backpropagates only through its own contribution (its identities' logits):
    the gradient of the gathered batch is the sum over the processes.

    Args:
        x: (N, ...) floating-point tensor, as for :func:`all_gather_with_grad`.

    Returns:
        (rows of all processes, ...) tensor with the values of :func:`all_gather`; ``x`` itself in a single process.
    """
    if world_size() == 1:
        return x
    gathered: Tensor = _AllGather.apply(x, True)
    return gathered


class _StackProcesses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        stacked = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(world_size())]
        dist.all_gather(stacked, x.contiguous())
        return torch.stack(stacked)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad[rank()]


def stack_processes(x: Tensor) -> Tensor:
    """Stacks one tensor from each process, and passes the gradient to this process's.

    Args:
        x: (...) tensor of the same shape and dtype on every process.

    Returns:
        (world_size, ...) tensor, the same on every process. Its gradient flows to this process's own slice, for losses
        that all processes compute identically from everybody's contributions.
    """
    if world_size() == 1:
        return x.unsqueeze(0)
    stacked: Tensor = _StackProcesses.apply(x)
    return stacked


def gather_rows(x: Tensor, counts: Sequence[int]) -> Tensor:
    """Collects the rows of all processes on the first one, in its main memory, a piece at a time.

    Every process must call this.

    Args:
        x: (rows of this process, ...) tensor of any dtype.
        counts: the rows of each process, in rank order.

    Returns:
        On process 0, (rows of all processes, ...) on the CPU; elsewhere ``x`` itself.
    """
    x = x.detach()
    _check_rows(len(x), counts)
    if world_size() == 1:
        return x
    size = max(1, _PIECE_BYTES // max(1, x[:1].numel() * x.element_size()))  # rows
    device = _sending_device(x)
    if rank() == 0:
        whole = torch.empty(sum(counts), *x.shape[1:], dtype=x.dtype)
        whole[: len(x)] = x
    start = counts[0]
    for source in range(1, world_size()):
        for first in range(0, counts[source], size):
            count = min(size, counts[source] - first)
            if rank() == source:
                dist.send(x[first : first + count].contiguous().to(device), dst=0)
            elif rank() == 0:
                piece = torch.empty(count, *x.shape[1:], dtype=x.dtype, device=device)
                dist.recv(piece, src=source)
                whole[start + first : start + first + count] = piece
        start += counts[source]
    return whole if rank() == 0 else x


def _sending_device(x: Tensor) -> torch.device:
    """NCCL sends only from GPUs, but after training Lightning has moved everything to the CPU."""
    if x.device.type == "cpu" and dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return x.device


def _check_rows(rows: int, parts: Sequence[int]) -> None:
    if rows != parts[rank()]:
        raise ValueError(f"this process holds {rows} rows of the batch, not the {parts[rank()]} of its part {rank()}")
