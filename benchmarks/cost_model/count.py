"""Counts a network's cost for one crop, from shapes alone."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from cost_model.model import Backbone
from harness.roofline import count_flops

_IMAGES = 2  # batch normalisation rejects a single value per channel


def count_backbone(name: str, network: nn.Module) -> Backbone:
    """Counts forward FLOP, parameters, and the activations that the backward pass needs, per image.

    Args:
        name: The network's name in tables.
        network: Maps float images (N, 3, 112, 112) to embeddings (N, D), in training mode; not changed.
    """
    saved_16, _ = _activations(copy.deepcopy(network).bfloat16())
    saved_32, largest = _activations(copy.deepcopy(network).float())
    params = sum(parameter.numel() for parameter in network.parameters())
    return Backbone(name, count_flops(network).forward, params, (saved_16, saved_32), largest)


def _activations(network: nn.Module) -> tuple[float, int]:
    """Bytes that autograd saves, counting each storage once, and elements of the largest."""
    shapes = network.to("meta")
    parameters = {parameter.untyped_storage()._cdata for parameter in shapes.parameters()}
    storages: dict[int, torch.UntypedStorage] = {}  # kept alive, so that no id is reused
    largest = 0

    def save(tensor: Tensor) -> Tensor:
        nonlocal largest
        storage = tensor.untyped_storage()
        if storage._cdata not in parameters:
            storages[storage._cdata] = storage
            largest = max(largest, tensor.numel() // _IMAGES)
        return tensor

    images = torch.empty(_IMAGES, 3, 112, 112, device="meta", dtype=next(shapes.parameters()).dtype)
    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        shapes(images)
    return sum(storage.nbytes() for storage in storages.values()) / _IMAGES, largest
