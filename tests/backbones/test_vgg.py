"""VGG16 against torchvision's own."""

from itertools import pairwise
from typing import Any

import pytest
import torch
import torchvision
from torchvision.models import VGG16_Weights

from facelit.backbones import VGG16
from facelit.backbones.neck import EmbeddingNeck
from facelit.errors import FacelitError

CHANNELS = [3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]


def count(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("batch_norm", [False, True])
def test_number_of_parameters(batch_norm: bool) -> None:
    with torch.device("meta"):
        model = VGG16(embedding_dim=512, batch_norm=batch_norm)
    convolutions = sum(9 * i * o + o for i, o in pairwise(CHANNELS))
    linears = (512 * 3 * 3 * 4096 + 4096) + (4096 * 512 + 512)
    assert count(model) == convolutions + linears + (2 * sum(CHANNELS[1:]) if batch_norm else 0)
    assert model.embedding_dim == 512
    embedding = [name for name, _ in model.embedding.named_parameters(prefix="embedding")]
    assert embedding == ["embedding.0.weight", "embedding.0.bias", "embedding.3.weight", "embedding.3.bias"]


@pytest.mark.parametrize("batch_norm", [False, True])
def test_features_are_torchvisions(batch_norm: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    builder = torchvision.models.vgg16_bn if batch_norm else torchvision.models.vgg16
    with torch.device("meta"):
        theirs = builder().features.eval()
        ours = VGG16(batch_norm=batch_norm, dropout=0.0)
    torch.manual_seed(0)
    theirs = theirs.to_empty(device="cpu")
    state = {
        name: torch.rand_like(value) * 0.05 if value.is_floating_point() else torch.zeros_like(value)
        for name, value in theirs.state_dict().items()
    }
    theirs.load_state_dict(state)
    ours.features = ours.features.to_empty(device="cpu").eval()
    ours.features.load_state_dict(state)  # the same keys
    images = torch.rand(1, 3, 112, 112) * 2 - 1
    with torch.no_grad():
        features = theirs(images)
        assert features.shape == (1, 512, 3, 3)
        assert torch.equal(ours.features(images), features)


@pytest.mark.parametrize(("width", "dim"), [(0.25, 32), (0.125, 8), (0.01, 4)])
def test_narrow_ones(width: float, dim: int) -> None:
    model = VGG16(embedding_dim=dim, width=width, batch_norm=True)
    embeddings = model(torch.randn(2, 3, 112, 112))
    assert embeddings.shape == (2, dim)
    embeddings.sum().backward()
    channels = [m.out_channels for m in model.features if isinstance(m, torch.nn.Conv2d)]
    assert channels == [max(8, round(c * width / 8) * 8) for c in CHANNELS[1:]]
    assert all(p.grad is not None for p in model.parameters())


def test_initialised_as_torchvisions() -> None:
    torch.manual_seed(0)
    model = VGG16(width=0.5)
    convolution, linear = model.features[5], model.embedding[0]
    assert convolution.weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.02)  # fan out, ReLU
    assert linear.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert all(not b.any() for name, b in model.named_parameters() if name.endswith("bias"))


@pytest.mark.parametrize("dropout", [0.0, 0.9])
def test_dropout_acts_in_training_only(dropout: float) -> None:
    torch.manual_seed(0)
    model = VGG16(embedding_dim=8, width=0.1, dropout=dropout)
    images = torch.randn(2, 3, 112, 112)
    assert torch.equal(model(images), model(images)) == (dropout == 0)
    model.eval()
    assert torch.equal(model(images), model(images))


def test_imagenet_features_are_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.device("meta"):
        shapes = torchvision.models.vgg16().state_dict()
    kept = {name: torch.rand(value.shape) for name, value in shapes.items() if name.startswith("features")}
    state = {**kept, "classifier.0.weight": torch.zeros(1)}
    monkeypatch.setattr(VGG16_Weights, "get_state_dict", lambda *_, **__: state)
    model = VGG16(embedding_dim=4, weights="imagenet")
    assert kept.keys() == model.features.state_dict(prefix="features.").keys()
    for name, value in model.features.state_dict(prefix="features.").items():
        assert torch.equal(value, kept[name])


def test_failed_download_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(VGG16_Weights, "get_state_dict", offline)
    with (
        torch.device("meta"),
        pytest.raises(FacelitError, match=r"weights: imagenet .*no route.*weights: null"),
    ):
        VGG16(weights="imagenet")


@pytest.mark.parametrize("options", [{"weights": "imagenet", "width": 0.5}, {"weights": "vggface"}])
def test_weights_that_do_not_fit(options: dict[str, Any]) -> None:
    with pytest.raises(FacelitError, match="imagenet"):
        VGG16(**options)


def test_the_standard_neck_takes_the_map_channel_by_channel() -> None:
    torch.manual_seed(0)
    model = VGG16(embedding_dim=6, width=0.02, batch_norm=True, neck="standard", dropout=0.0)
    assert isinstance(model.embedding, EmbeddingNeck)
    assert isinstance(model.embedding.norm, torch.nn.BatchNorm2d)
    images = torch.randn(3, 3, 112, 112)
    embeddings = model(images)
    assert embeddings.shape == (3, 6)
    torch.testing.assert_close(embeddings.mean(0), torch.zeros(6), atol=1e-4, rtol=0)  # the last BN's
    (embeddings**3).sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == ["embedding.embedding_norm.weight"]
    with pytest.raises(FacelitError, match=r"training batch of one image.*data\.batch_size"):
        model(images[:1])
    plain = VGG16(embedding_dim=6, width=0.02)
    assert plain(images[:1]).shape == (1, 6)
    with pytest.raises(FacelitError, match="VGG16: neck must be standard or null, not 'linear'"):
        VGG16(width=0.02, neck="linear")  # type: ignore[arg-type]
