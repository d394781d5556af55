"""What a backbone costs: parameters, arithmetic, and activations kept for training."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

_IMAGE_SIZE = 112
_BATCH = 2  # batch normalisation takes two


class Cost(NamedTuple):
    """For one crop of 112x112.

    Attributes:
        parameters: number of parameters, fixed ones included.
        flops: to embed one crop: two per multiply-add of convolutions, linear layers and attention. Normalisation,
            activations and pooling are not counted, as is usual.
        activation_bytes: memory that one crop occupies until the backward pass, in float32.
    """

    parameters: int
    flops: int
    activation_bytes: int


def measure_cost(backbone: nn.Module) -> Cost:
    """Counts on shapes alone (meta tensors): nothing is computed, and the backbone is left as it was.

    Args:
        backbone: maps (N, 3, 112, 112) images to embeddings; may itself be on the meta device, where it needs no memory.
    """
    training = backbone.training
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            _run(backbone.eval(), 1)
        kept = _kept_bytes(backbone.train())
    finally:
        backbone.train(training)
    parameters = sum(parameter.numel() for parameter in backbone.parameters())
    return Cost(parameters, counter.get_total_flops(), round(kept / _BATCH))


def _kept_bytes(backbone: nn.Module) -> int:
    """Bytes that autograd keeps after a forward pass, parameters excepted."""
    storages: dict[int, torch.UntypedStorage] = {}  # holds the storages, so that no address is reused

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        state = _run(backbone, _BATCH)
    own = {value.untyped_storage()._cdata for value in state.values()}
    return sum(storage.nbytes() for address, storage in storages.items() if address not in own)


def _run(backbone: nn.Module, batch: int) -> dict[str, Tensor]:
    """Runs a forward pass on the meta device; returns the copy of the backbone's state that was made there."""
    state = {
        name: torch.empty_like(value, device="meta").requires_grad_(value.requires_grad)
        for name, value in {**dict(backbone.named_parameters()), **dict(backbone.named_buffers())}.items()
    }
    torch.func.functional_call(backbone, state, (torch.empty(batch, 3, _IMAGE_SIZE, _IMAGE_SIZE, device="meta"),))
    return state
