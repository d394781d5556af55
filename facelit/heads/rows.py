"""Which identities a process holds, and how their vectors are initialised."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from facelit.distributed import part_sizes, rank, world_size

_BLOCK = 1024  # rows


class Rows(NamedTuple):
    """Identities `first` to `first + size - 1`."""

    first: int
    size: int


def own_rows(num_identities: int) -> Rows:
    """The identities that this process holds when all are divided among the processes.

    Args:
        num_identities: over all processes together.
    """
    sizes = part_sizes(num_identities, world_size())
    return Rows(sum(sizes[: rank()]), sizes[rank()])


def draw_rows(rows: Rows, dim: int, seed: int, draw: Callable[[Tensor, torch.Generator], object]) -> Tensor:
    """Random vectors that depend only on the identity's number and the seed, not on the number of processes.

    Args:
        rows: the identities.
        dim: the length of a vector.
        seed: the same on every process.
        draw: fills a tensor in place, as ``lambda x, generator: x.normal_(0, 0.01, generator=generator)`` does.

    Returns:
        (rows.size, dim) float32 on the CPU.
    """
    # While it configures a model, Lightning makes the GPU the default device; the generator is for the CPU.
    drawn = torch.empty(rows.size, dim, dtype=torch.float32, device="cpu")
    done = 0
    while done < rows.size:
        block, offset = divmod(rows.first + done, _BLOCK)
        values = torch.empty(_BLOCK, dim, dtype=torch.float32, device="cpu")
        draw(values, torch.Generator().manual_seed((seed + block) % 2**63))
        taken = values[offset : offset + rows.size - done]
        drawn[done : done + len(taken)] = taken
        done += len(taken)
    return drawn


def random_seed() -> int:
    """A seed from torch's own random state."""
    return int(torch.randint(2**62, (), device="cpu"))
