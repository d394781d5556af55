"""MobileFaceNet against table 1 of its paper."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from facelit.backbones import MobileFaceNet
from facelit.backbones.cost import measure_cost
from facelit.backbones.neck import EmbeddingBatchNorm
from facelit.errors import FacelitError

TABLE_1 = [  # output side, output channels of each row, one line for each repetition of a bottleneck
    *[(56, 64)] * 2,
    *[(28, 64)] * 5,
    (14, 128),
    *[(14, 128)] * 6,
    (7, 128),
    *[(7, 128)] * 2,
    (7, 512),
    (1, 512),
]


def bottleneck(inputs: int, outputs: int, hidden: int) -> int:
    """Parameters: three convolutions without bias, BN's two and PReLU's one for each channel; none after the last."""
    return inputs * hidden + 3 * hidden + 9 * hidden + 3 * hidden + hidden * outputs + 2 * outputs


@pytest.mark.parametrize("embedding_dim", [128, 512])
def test_parameters_of_table_1_by_hand(embedding_dim: int) -> None:
    with torch.device("meta"):
        model = MobileFaceNet(embedding_dim)
    first = 27 * 64 + 3 * 64 + 9 * 64 + 3 * 64
    middle = 5 * bottleneck(64, 64, 128) + bottleneck(64, 128, 256)
    middle += 6 * bottleneck(128, 128, 256) + bottleneck(128, 128, 512) + 2 * bottleneck(128, 128, 256)
    last = 128 * 512 + 3 * 512 + 49 * 512 + 2 * 512 + 512 * embedding_dim + 2 * embedding_dim
    assert sum(parameter.numel() for parameter in model.parameters()) == first + middle + last


def test_the_papers_arithmetic() -> None:
    """221 million multiply-adds at 112x112 and 128 components (table 2), and about a million parameters."""
    with torch.device("meta"):
        cost = measure_cost(MobileFaceNet(128))
    assert round(cost.flops / 2 / 1e6) == 221
    assert cost.parameters == pytest.approx(0.99e6, rel=0.02)


def test_maps_of_table_1() -> None:
    shapes: list[tuple[int, int]] = []

    def note(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> None:
        shapes.append((output.shape[2], output.shape[1]))

    with torch.device("meta"):
        model = MobileFaceNet(128).eval()
        for row in (*model.stem, *model.blocks, model.expand, model.neck[0]):
            row.register_forward_hook(note)
        assert model(torch.empty(1, 3, 112, 112)).shape == (1, 128)
    assert shapes == TABLE_1


def test_shortcuts_where_the_shape_stays() -> None:
    """With its last normalisation scaled to nothing a bottleneck gives back its input, or nothing."""
    model = MobileFaceNet(width=0.125).eval()
    shortcuts = []
    for block in model.blocks:
        nn.init.zeros_(block.layers[2][1].weight)
        inputs = torch.randn(1, block.layers[0][0].in_channels, 8, 8)
        output = block(inputs)
        shortcuts.append(output.any().item())
        if output.any():
            assert torch.equal(output, inputs)
    assert shortcuts == [False, *[True] * 4, False, *[True] * 6, False, *[True] * 2]


def test_nothing_is_squashed_where_table_1_says_linear() -> None:
    model = MobileFaceNet(width=0.125)
    for block in model.blocks:
        assert [type(layer[-1]) for layer in block.layers] == [nn.PReLU, nn.PReLU, nn.BatchNorm2d]
    assert [type(layer) for layer in model.neck] == [
        nn.Conv2d,
        nn.Flatten,
        EmbeddingBatchNorm,
        nn.Linear,
        EmbeddingBatchNorm,
    ]
    assert type(model.expand[-1]) is nn.PReLU


def test_each_channel_has_its_own_weights_of_positions() -> None:
    """GDConv: a channel's output is its map times its 7x7 weights, summed."""
    model = MobileFaceNet(width=0.125)
    maps, convolution = torch.randn(2, 64, 7, 7), model.neck[0]
    expected = (maps * convolution.weight[:, 0]).sum((2, 3))
    torch.testing.assert_close(convolution(maps)[:, :, 0, 0], expected)


@pytest.mark.parametrize("channels_last", [False, True])
def test_trains_in_either_memory_format(channels_last: bool) -> None:
    torch.manual_seed(0)
    model = MobileFaceNet(6, width=0.125)
    images = torch.randn(4, 3, 112, 112)
    expected = model(images).detach()
    if channels_last:
        model, images = model.to(memory_format=torch.channels_last), images.to(memory_format=torch.channels_last)
    embeddings = model(images)
    torch.testing.assert_close(embeddings, expected, atol=1e-3, rtol=1e-3)
    (embeddings**3).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_batch_of_one() -> None:
    model = MobileFaceNet(6, width=0.125)
    with pytest.raises(FacelitError, match="training batch of one image"):
        model(torch.randn(1, 3, 112, 112))
    assert model.eval()(torch.randn(1, 3, 112, 112)).shape == (1, 6)
