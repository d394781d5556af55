"""The standard neck against its four steps written out in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from facelit.backbones.neck import EmbeddingBatchNorm, EmbeddingNeck, make_neck
from facelit.errors import FacelitError


def normalise(values: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    return (values - values.mean(axes, keepdims=True)) / np.sqrt(values.var(axes, keepdims=True) + 1e-5)


@pytest.mark.parametrize("shape", [(7, 5), (7, 5, 3, 2)])
def test_four_steps_written_out(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    area = int(np.prod(shape[2:]))
    neck = EmbeddingNeck(5, 4, area=area).double()
    scale, shift = np.linspace(0.5, 2, 5), np.linspace(-1, 1, 5)
    with torch.no_grad():
        neck.norm.weight.copy_(torch.from_numpy(scale))
        neck.norm.bias.copy_(torch.from_numpy(shift))
        neck.embedding_norm.bias.copy_(torch.arange(4.0))
    features = torch.randn(shape, dtype=torch.float64)
    per_channel = (1, 5, *[1] * (len(shape) - 2))
    first = normalise(features.numpy(), (0, *range(2, len(shape))))
    first = first * scale.reshape(per_channel) + shift.reshape(per_channel)
    weight, bias = neck.linear.weight.detach().numpy(), neck.linear.bias.detach().numpy()
    expected = normalise(first.reshape(7, -1) @ weight.T + bias, (0,)) + np.arange(4)
    np.testing.assert_allclose(neck(features).detach().numpy(), expected, atol=1e-9)


def test_eval_takes_one_image_and_the_running_statistics() -> None:
    torch.manual_seed(0)
    neck = EmbeddingNeck(5, 4, dropout=0.9, area=4)
    for _ in range(300):
        neck(torch.randn(16, 5, 2, 2) * 3 + 1)
    neck.eval()
    images = torch.randn(3, 5, 2, 2) * 3 + 1
    one_by_one = torch.cat([neck(image[None]) for image in images])
    torch.testing.assert_close(one_by_one, neck(images))
    norm = neck.embedding_norm
    linear = neck.linear(neck.norm(images).flatten(1))
    torch.testing.assert_close(neck(images), (linear - norm.running_mean) / (norm.running_var + 1e-5).sqrt())


@pytest.mark.parametrize("neck", [EmbeddingNeck(5, 4), EmbeddingNeck(5, 4, area=4), EmbeddingBatchNorm(5)])
def test_a_training_batch_of_one_says_what_to_do(neck: nn.Module) -> None:
    image = torch.randn(1, 5, 2, 2) if isinstance(getattr(neck, "norm", None), nn.BatchNorm2d) else torch.randn(1, 5)
    with pytest.raises(FacelitError, match=r"training batch of one image.*data\.batch_size"):
        neck(image)
    assert torch.isfinite(neck.eval()(image)).all()


def test_the_scale_of_the_embedding_stays_one() -> None:
    neck = EmbeddingNeck(5, 4)
    optimizer = torch.optim.SGD(neck.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(3):
        (neck(torch.randn(6, 5)) ** 3).sum().backward()
        optimizer.step()
    state = neck.state_dict()
    assert torch.equal(state["embedding_norm.weight"], torch.ones(4))
    assert state["embedding_norm.bias"].any()
    assert not torch.equal(state["norm.weight"], torch.ones(5))


def test_dropout_acts_between_the_norm_and_the_linear_layer() -> None:
    torch.manual_seed(0)
    neck = EmbeddingNeck(1000, 1, dropout=0.25)
    seen: list[torch.Tensor] = []
    neck.linear.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    neck(torch.randn(4, 1000) + 5)
    assert (seen[0] == 0).float().mean().item() == pytest.approx(0.25, abs=0.03)


def test_the_choice_of_a_neck() -> None:
    assert type(make_neck("B", 5, 4, None, None)) is type(make_neck("B", 5, 4, None, 0.0)) is nn.Linear
    neck = make_neck("B", 5, 4, "standard", 0.4)
    assert isinstance(neck, EmbeddingNeck)
    assert neck.dropout.p == 0.4
    assert make_neck("B", 5, 4, "standard", None).dropout.p == 0
    with pytest.raises(FacelitError, match=r"B: dropout belongs to the standard neck: add neck: standard"):
        make_neck("B", 5, 4, None, 0.4)
    with pytest.raises(FacelitError, match=r"B: neck must be standard or null, not 'bn'"):
        make_neck("B", 5, 4, "bn", None)  # type: ignore[arg-type]
