"""Recomputed activations: the same numbers to the last bit, less kept."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from facelit import FacelitError
from facelit.backbones import VGG16, TorchvisionBackbone
from facelit.speed.recomputing import RecomputedSequential, recompute_activations


class CountingNorm(nn.BatchNorm2d):
    """Cumulative averages: each batch weighs one over the number of batches so far."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, momentum=None)


def plain() -> nn.Module:
    layers = [nn.Conv2d(3, 4, 3, stride=4), CountingNorm(4), nn.ReLU(inplace=True), nn.Dropout2d(0.5), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True)]
    return nn.Sequential(nn.Sequential(*layers), nn.Flatten(), nn.Linear(576, 5))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "plain": plain,
    "vgg": lambda: VGG16(8, batch_norm=True, dropout=0.3, width=0.01),
    "resnet": lambda: TorchvisionBackbone("resnet18", 8),
    "mobilenet": lambda: TorchvisionBackbone("mobilenet_v3_small", 8),
}


def step(network: nn.Module, images: Tensor) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """The embeddings, all gradients and all buffers of one training step."""
    torch.manual_seed(3)
    network.zero_grad()
    embeddings = network(images)
    embeddings.square().sum().backward()
    gradients = {name: value.grad for name, value in network.named_parameters() if value.grad is not None}
    return embeddings.detach(), gradients, dict(network.named_buffers())


@pytest.mark.parametrize("name", NETWORKS)
def test_nothing_changes_but_memory(name: str) -> None:
    torch.manual_seed(0)
    network = NETWORKS[name]()
    other = copy.deepcopy(network)
    recompute_activations(other)
    assert list(other.state_dict()) == list(network.state_dict())
    assert any(isinstance(module, RecomputedSequential) for module in other.modules())
    for seed in range(2):
        images = torch.randn(2, 3, 112, 112, generator=torch.Generator().manual_seed(seed))
        expected, found = step(network, images), step(other, images)
        assert torch.equal(found[0], expected[0])
        for kind in (1, 2):
            assert found[kind].keys() == expected[kind].keys()
            for key, value in expected[kind].items():
                assert torch.equal(found[kind][key], value), key
    network.eval()
    other.eval()
    with torch.inference_mode():
        assert torch.equal(other(images), network(images))


def kept(network: nn.Module, images: Tensor) -> int:
    """Bytes that the forward pass keeps for the backward pass, parameters aside."""
    held = {value.untyped_storage().data_ptr() for value in network.parameters()}
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in held:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        embeddings = network(images)
    assert embeddings.requires_grad
    return sum(sizes.values())


def test_less_is_kept() -> None:
    network = VGG16(8, batch_norm=True, width=0.05)
    images = torch.randn(2, 3, 112, 112)
    before = kept(network, images)
    recompute_activations(network)
    assert kept(network, images) < before / 4


def test_copies_recompute_too() -> None:
    network = plain()
    recompute_activations(network)
    assert isinstance(copy.deepcopy(network)[0], RecomputedSequential)


def test_a_network_without_stages_is_refused() -> None:
    with pytest.raises(FacelitError, match=r"checkpoint_activations: Linear has no nn\.Sequential of blocks"):
        recompute_activations(nn.Linear(3, 2))


def test_a_torch_that_counts_batches_twice_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled, and with batch normalisation."""

    def network(*norm: nn.Module) -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 2, 3), *norm)

    monkeypatch.setattr(torch, "__version__", "2.10.1+cpu")
    with pytest.raises(FacelitError, match=r"torch 2\.11 or later .*\(here 2\.10\.1\+cpu\)"):
        recompute_activations(network(nn.BatchNorm2d(2)), compiled=True)
    recompute_activations(network(), compiled=True)
    recompute_activations(
        nn.ModuleList([network(), nn.BatchNorm1d(2)]), compiled=True
    )  # a neck's, which is not recomputed
    recompute_activations(network(nn.BatchNorm2d(2)))
    monkeypatch.setattr(torch, "__version__", "2.11.0")
    recompute_activations(network(nn.BatchNorm2d(2)), compiled=True)
