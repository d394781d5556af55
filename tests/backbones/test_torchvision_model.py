"""TorchvisionBackbone over torchvision's families; the heavy ones on shapes alone."""

from typing import Any

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models import ResNet18_Weights

from facelit.backbones import TorchvisionBackbone
from facelit.backbones.neck import EmbeddingNeck
from facelit.errors import FacelitError

LIGHT = ["resnet18", "mobilenet_v3_small", "squeezenet1_1", "shufflenet_v2_x0_5"]
HEAVY = [
    "convnext_tiny",
    "densenet121",
    "efficientnet_b0",
    "googlenet",
    "inception_v3",
    "mnasnet0_5",
    "swin_t",
    "vgg11_bn",
    "vit_b_16",
]


@pytest.mark.parametrize("name", LIGHT)
def test_trains_at_112(name: str) -> None:
    torch.manual_seed(0)
    backbone = TorchvisionBackbone(name, embedding_dim=6)
    assert all(module.training for module in backbone.modules())
    assert backbone.embedding_dim == 6
    embeddings = backbone(torch.randn(3, 3, 112, 112))
    assert embeddings.shape == (3, 6)
    assert (embeddings < 0).any()  # the linear layer comes last
    embeddings.sum().backward()
    assert all(p.grad is not None for p in backbone.parameters())


@pytest.mark.parametrize("name", HEAVY)
def test_shapes_at_112(name: str) -> None:
    with torch.device("meta"):
        backbone = TorchvisionBackbone(name, embedding_dim=6)
        assert backbone(torch.empty(3, 3, 112, 112)).shape == (3, 6)
    *_, last = (m for m in backbone.modules() if isinstance(m, nn.Linear))
    assert last.out_features == 6
    assert not any("aux" in parameter.lower() for parameter, _ in backbone.named_parameters())


def test_only_the_last_layer_differs_from_torchvisions() -> None:
    with torch.device("meta"):
        theirs = torchvision.models.resnet18().state_dict()
        ours = TorchvisionBackbone("resnet18", 6).model.state_dict()
    assert list(ours) == list(theirs)
    assert {key for key in ours if ours[key].shape != theirs[key].shape} == {"fc.weight", "fc.bias"}


def test_the_check_leaves_the_weights_alone() -> None:
    torch.manual_seed(0)
    theirs = torchvision.models.resnet18().state_dict()
    torch.manual_seed(0)
    ours = TorchvisionBackbone("resnet18", 6).model.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs if not key.startswith("fc."))


def test_unknown_name_gets_suggestions() -> None:
    with pytest.raises(FacelitError, match=r"resnet5.*did you mean .*resnet50"):
        TorchvisionBackbone("resnet5")
    with pytest.raises(FacelitError, match="there are: alexnet"):
        TorchvisionBackbone("qqqqqqqqqqqq")
    with pytest.raises(FacelitError, match="no classification model"):
        TorchvisionBackbone("fasterrcnn_resnet50_fpn")


@pytest.mark.parametrize("name", ["vit_b_32", "maxvit_t"])
def test_models_for_other_sizes_say_so(name: str) -> None:
    with torch.device("meta"), pytest.raises(FacelitError, match=f"{name} does not take images of 112x112"):
        TorchvisionBackbone(name)


def test_imagenet_means_the_default_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    state = torchvision.models.resnet18().state_dict()
    monkeypatch.setattr(ResNet18_Weights, "get_state_dict", lambda *_, **__: state)
    for weights in ("imagenet", "IMAGENET1K_V1"):
        model = TorchvisionBackbone("resnet18", 6, weights).model
        assert torch.equal(model.state_dict()["conv1.weight"], state["conv1.weight"])
        assert model.fc.out_features == 6


def test_unknown_weights_are_listed() -> None:
    with pytest.raises(FacelitError, match=r"'vggface'.*IMAGENET1K_V1, DEFAULT, imagenet"):
        TorchvisionBackbone("resnet18", weights="vggface")


def test_failed_download_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(ResNet18_Weights, "get_state_dict", offline)
    with pytest.raises(FacelitError, match=r"weights: imagenet .*no route.*weights: null"):
        TorchvisionBackbone("resnet18", weights="imagenet")


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "squeezenet1_1"])
def test_the_standard_neck_in_place_of_the_last_layer(name: str) -> None:
    torch.manual_seed(0)
    backbone = TorchvisionBackbone(name, 6, neck="standard", dropout=0.25)
    *_, neck = (module for module in backbone.modules() if isinstance(module, EmbeddingNeck))
    assert neck.dropout.p == 0.25
    images = torch.randn(3, 3, 112, 112)
    embeddings = backbone(images)
    torch.testing.assert_close(embeddings.mean(0), torch.zeros(6), atol=1e-4, rtol=0)  # the last BN's
    embeddings.pow(3).sum().backward()
    assert sum(parameter.grad is None for parameter in backbone.parameters()) == 1  # the scale that stays 1
    with pytest.raises(FacelitError, match="add neck: standard"):
        TorchvisionBackbone(name, 6, dropout=0.25)
