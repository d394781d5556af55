"""A machine's best rate and a network's demands: measured matrix products, counted FLOPs.

A multiplication and an addition count as two operations. Only a model's matrix products and convolutions, forward and backward,
count, as in its formulas: work that an implementation repeats (checkpointing, chunks) does not count as achieved.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from time import perf_counter
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from facelit.heads import Head

_SIZES = {"cpu": (1024, 2048, 3072), "cuda": (4096, 8192, 16384)}
_COUNTED_IMAGES = 2  # batch normalisation rejects a single value per channel
_FORWARD_AND_BACKWARD = 3  # products for each one in the forward pass: itself, and a gradient for each of its factors


class MatrixRate(NamedTuple):
    """The fastest square matrix product measured: operations per second, and the side of the matrices."""

    flops_per_second: float
    size: int


class Flops(NamedTuple):
    """Operations of a backbone for one image: of the forward pass, and of a training step (forward and backward)."""

    forward: int
    training: int


def measure_matrix_rate(
    device: torch.device, dtype: torch.dtype, sizes: tuple[int, ...] = (), repeats: int = 5
) -> MatrixRate:
    """Times matrix products of several sizes and keeps the best of all runs: the machine's practical limit.

    Args:
        device: The device to measure.
        dtype: The type of both factors; float32 products follow torch's setting for TF32, as in training.
        sizes: Sides of the matrices.
        repeats: Timings of each size, after one that does not count.
    """
    rates = []
    for size in sizes or _SIZES.get(device.type, _SIZES["cpu"]):
        left, right, out = (torch.randn(size, size, device=device).to(dtype) for _ in range(3))
        times = [seconds_of(lambda: torch.mm(left, right, out=out), device) for _ in range(repeats + 1)]  # noqa: B023  # called at once
        rates.append(MatrixRate(2 * size**3 / min(times[1:]), size))
    return max(rates)


def seconds_of(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, measured by events on a GPU and by the clock elsewhere."""
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]  # torch's own
        start.record()
        call()
        end.record()
        torch.cuda.synchronize(device)
        return float(start.elapsed_time(end)) / 1e3
    begun = perf_counter()
    call()
    return perf_counter() - begun


def count_flops(backbone: nn.Module) -> Flops:
    """Counts a backbone's operations for one crop, from shapes alone (meta tensors).

    Args:
        backbone: Maps float images (N, 3, 112, 112) to embeddings (N, D); not changed.
    """
    shapes = copy.deepcopy(backbone).to("meta").train()
    images = torch.empty(_COUNTED_IMAGES, 3, 112, 112, device="meta", dtype=next(shapes.parameters()).dtype)
    with FlopCounterMode(display=False) as counter:
        embeddings: Tensor = shapes(images)
        forward = counter.get_total_flops()
        torch.autograd.backward(embeddings.sum())
    return Flops(forward // _COUNTED_IMAGES, counter.get_total_flops() // _COUNTED_IMAGES)


def head_flops(head: Head, batch: int, embedding_dim: int) -> int:
    """Counts a head's operations for one batch, forward and backward.

    A head with identities multiplies embeddings and weights, (N, D) x (D, C); one without compares the embeddings with one
    another, (N, D) x (D, N). Center loss touches only N rows, which is negligible.
    """
    columns = batch if head.num_identities is None else head.num_identities
    return _FORWARD_AND_BACKWARD * 2 * batch * embedding_dim * columns


def device_facts(device: torch.device) -> dict[str, str]:
    """Facts about the device, for a table's header."""
    if device.type != "cuda":
        return {"device": device.type, "threads": str(torch.get_num_threads())}
    properties = torch.cuda.get_device_properties(device)
    memory = f"{properties.total_memory / 2**30:.0f} GiB"
    return {
        "device": properties.name,
        "device memory": memory,
        "CUDA": str(torch.version.cuda),
        "cuDNN": str(torch.backends.cudnn.version()),  # type: ignore[no-untyped-call]  # likewise
    }
