"""IResNet against the list of InsightFace's parameters, and against its layers written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from facelit.backbones import IResNet
from facelit.backbones.neck import EmbeddingNeck
from facelit.errors import FacelitError

Shapes = dict[str, tuple[int, ...]]


def norm(name: str, channels: int) -> Shapes:
    vectors = {f"{name}.{part}": (channels,) for part in ("weight", "bias", "running_mean", "running_var")}
    return {**vectors, f"{name}.num_batches_tracked": ()}


def insightface(blocks: tuple[int, ...]) -> Shapes:
    """Names and shapes in a state dict of InsightFace's `arcface_torch/backbones/iresnet.py`, in its order."""
    shapes: Shapes = {"conv1.weight": (64, 3, 3, 3), **norm("bn1", 64), "prelu.weight": (64,)}
    inputs = 64
    for group, (outputs, count) in enumerate(zip((64, 128, 256, 512), blocks, strict=True), 1):
        for number in range(count):
            name = f"layer{group}.{number}"
            shapes |= norm(f"{name}.bn1", inputs) | {f"{name}.conv1.weight": (outputs, inputs, 3, 3)}
            shapes |= norm(f"{name}.bn2", outputs) | {f"{name}.prelu.weight": (outputs,)}
            shapes |= {f"{name}.conv2.weight": (outputs, outputs, 3, 3)} | norm(f"{name}.bn3", outputs)
            if number == 0:
                shapes |= {f"{name}.downsample.0.weight": (outputs, inputs, 1, 1)}
                shapes |= norm(f"{name}.downsample.1", outputs)
            inputs = outputs
    return shapes | norm("bn2", 512) | {"fc.weight": (512, 25088), "fc.bias": (512,)} | norm("features", 512)


@pytest.mark.parametrize(
    ("depth", "blocks", "parameters"),
    [
        (18, (2, 2, 2, 2), 24_025_600),
        (34, (3, 4, 6, 3), 34_139_328),
        (50, (3, 4, 14, 3), 43_590_848),
        (100, (3, 13, 30, 3), 65_156_160),
    ],
)
def test_names_and_shapes_are_insightfaces(depth: Any, blocks: tuple[int, ...], parameters: int) -> None:
    with torch.device("meta"):
        model = IResNet(depth)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert list(shapes.items()) == list(insightface(blocks).items())
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert model.embedding_dim == 512


def literal_forward(state: dict[str, Tensor], blocks: tuple[int, ...], images: Tensor) -> Tensor:
    """The network in eval mode, from a state dict alone."""

    def bn(name: str, x: Tensor) -> Tensor:
        mean, var, weight, bias = (state[f"{name}.{p}"] for p in ("running_mean", "running_var", "weight", "bias"))
        shape = (1, -1, *[1] * (x.ndim - 2))
        scaled = (x - mean.view(shape)) / torch.sqrt(var.view(shape) + 1e-5)
        return scaled * weight.view(shape) + bias.view(shape)

    def prelu(name: str, x: Tensor) -> Tensor:
        return torch.where(x > 0, x, x * state[f"{name}.weight"].view(1, -1, 1, 1))

    x = prelu("prelu", bn("bn1", F.conv2d(images, state["conv1.weight"], padding=1)))
    for group, count in enumerate(blocks, 1):
        for number in range(count):
            name, stride = f"layer{group}.{number}", 1 if number else 2
            inner = F.conv2d(bn(f"{name}.bn1", x), state[f"{name}.conv1.weight"], padding=1)
            inner = prelu(f"{name}.prelu", bn(f"{name}.bn2", inner))
            inner = bn(f"{name}.bn3", F.conv2d(inner, state[f"{name}.conv2.weight"], stride=stride, padding=1))
            if number == 0:
                x = bn(f"{name}.downsample.1", F.conv2d(x, state[f"{name}.downsample.0.weight"], stride=2))
            x = x + inner
    flat = bn("bn2", x).reshape(len(x), -1)
    return bn("features", flat @ state["fc.weight"].T + state["fc.bias"])


def test_forward_is_the_layers_written_out() -> None:
    torch.manual_seed(0)
    model = IResNet(18, embedding_dim=6, width=0.125, dropout=0.5).double()
    images = torch.rand(3, 3, 112, 112, dtype=torch.float64) * 2 - 1
    with torch.no_grad():
        for value in model.parameters():
            value += 0.1 * torch.randn_like(value)
        for _ in range(3):
            model(images)  # running statistics that are not 0 and 1
        model.eval()
        expected = literal_forward(model.state_dict(), (2, 2, 2, 2), images)
        torch.testing.assert_close(model(images), expected)
        assert expected.std() > 0.1


def test_its_last_layers_are_the_standard_neck() -> None:
    model, neck = IResNet(18, 6, width=0.125).eval(), EmbeddingNeck(64, 6, area=49).eval()
    parts = {"norm": "bn2", "linear": "fc", "embedding_norm": "features"}
    state = model.state_dict()
    with torch.no_grad():
        for name, value in neck.state_dict().items():
            part, _, rest = name.partition(".")
            value.copy_(torch.rand(value.shape) + 0.5)
            state[f"{parts[part]}.{rest}"].copy_(value)
        maps: list[Tensor] = []
        model.layer4.register_forward_hook(lambda *arguments: maps.append(arguments[2]))
        embeddings = model(torch.randn(2, 3, 112, 112))
        torch.testing.assert_close(neck(maps[0]), embeddings)
    assert not model.features.weight.requires_grad


def test_initialised_as_insightfaces() -> None:
    torch.manual_seed(0)
    model = IResNet(18, width=0.25)
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 500:
            assert module.weight.std().item() == pytest.approx(0.1, rel=0.15)
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            assert module.eps == 1e-5
            assert (module.weight == 1).all()
            assert not module.bias.any()
        if isinstance(module, nn.PReLU):
            assert (module.weight == 0.25).all()


@pytest.mark.parametrize("channels_last", [False, True])
def test_trains_in_either_memory_format(channels_last: bool) -> None:
    torch.manual_seed(0)
    model = IResNet(18, embedding_dim=6, width=0.125)
    images = torch.randn(2, 3, 112, 112)
    expected = model(images).detach()
    if channels_last:
        model, images = model.to(memory_format=torch.channels_last), images.to(memory_format=torch.channels_last)
    embeddings = model(images)
    torch.testing.assert_close(embeddings, expected, atol=1e-3, rtol=1e-3)
    (embeddings**3).sum().backward()
    assert {name for name, p in model.named_parameters() if p.grad is None} == {"features.weight"}


@pytest.mark.parametrize(
    ("width", "channels"), [(0.5, [32, 32, 64, 128, 256]), (0.3, [16, 16, 40, 80, 152]), (0.1, [16, 16, 16, 24, 48])]
)
def test_narrow_ones_have_sixteen_channels_or_more(width: float, channels: list[int]) -> None:
    """With fewer the process can crash, on CPUs in channels_last: see the module."""
    with torch.device("meta"):
        model = IResNet(18, width=width)
    groups = [group[0].conv2.out_channels for group in (model.layer1, model.layer2, model.layer3, model.layer4)]
    assert [model.conv1.out_channels, *groups] == channels


def test_dropout_acts_in_training_only() -> None:
    torch.manual_seed(0)
    model = IResNet(18, embedding_dim=8, width=0.125, dropout=0.5)
    images = torch.randn(3, 3, 112, 112)
    assert not torch.equal(model(images), model(images))
    model.eval()
    assert torch.equal(model(images), model(images))


def test_a_batch_of_one() -> None:
    model = IResNet(18, embedding_dim=8, width=0.125)
    with pytest.raises(FacelitError, match="training batch of one image"):
        model(torch.randn(1, 3, 112, 112))
    assert model.eval()(torch.randn(1, 3, 112, 112)).shape == (1, 8)


def test_sizes_that_there_are_not() -> None:
    with pytest.raises(FacelitError, match="no depth 101; there are: 18, 34, 50, 100, 200"):
        IResNet(101)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="width=0"):
        IResNet(18, width=0)
