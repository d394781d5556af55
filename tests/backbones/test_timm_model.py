"""TimmBackbone over a few of timm's families."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

import pytest
import torch
from torch import nn

from facelit.backbones import TimmBackbone
from facelit.backbones.neck import EmbeddingNeck
from facelit.errors import FacelitError

needs_timm = pytest.mark.skipif(
    importlib.util.find_spec("timm") is None, reason='needs facelit[timm]: pip install "facelit[timm]"'
)
SMALL = "mobilenetv3_small_050"


def test_without_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(FacelitError, match=r'^TimmBackbone: the package timm .*pip install "facelit\[timm\]"$'):
        TimmBackbone(SMALL)


@needs_timm
def test_features_are_timms_before_its_classifier() -> None:
    import timm

    torch.manual_seed(0)
    theirs = timm.create_model(SMALL).eval()
    backbone = TimmBackbone(SMALL, embedding_dim=6).eval()
    state = {name: value for name, value in theirs.state_dict().items() if not name.startswith("classifier.")}
    backbone.model.load_state_dict(state)  # the same names
    images = torch.randn(2, 3, 112, 112)
    with torch.no_grad():
        features = theirs.forward_head(theirs.forward_features(images), pre_logits=True)
        expected = features @ backbone.neck.weight.T + backbone.neck.bias
        torch.testing.assert_close(backbone(images), expected)
    assert backbone.embedding_dim == 6


@needs_timm
@pytest.mark.parametrize("neck", [None, "standard"])
def test_trains_at_112(neck: Any) -> None:
    torch.manual_seed(0)
    backbone = TimmBackbone(SMALL, 6, neck=neck, dropout=0.2 if neck else None)
    assert all(module.training for module in backbone.modules())
    images = torch.randn(3, 3, 112, 112).to(memory_format=torch.channels_last)
    (backbone.to(memory_format=torch.channels_last)(images) ** 3).sum().backward()
    without = {name for name, p in backbone.named_parameters() if p.grad is None}
    assert without == ({"neck.embedding_norm.weight"} if neck else set())
    if neck:
        assert isinstance(backbone.neck, EmbeddingNeck)


@needs_timm
@pytest.mark.parametrize(("name", "features"), [("vit_tiny_patch16_224", 192), ("xcit_nano_12_p16_224", 128)])
def test_those_for_one_size_are_made_for_112(name: str, features: int) -> None:
    backbone = TimmBackbone(name, 6).eval()
    assert backbone.neck.in_features == features  # the width in its paper: the classifier is gone
    with torch.no_grad():
        assert backbone(torch.zeros(1, 3, 112, 112)).shape == (1, 6)


@needs_timm
@pytest.mark.parametrize("name", ["vit_small_patch32_224", "botnet26t_256"])
def test_those_for_other_sizes_say_so(name: str) -> None:
    with pytest.raises(FacelitError, match=f"{name} does not take images of 112x112"):
        TimmBackbone(name)


@needs_timm
def test_unknown_names_get_suggestions() -> None:
    with pytest.raises(FacelitError, match=r"no model 'resnet19'; did you mean resnet18"):
        TimmBackbone("resnet19")
    with pytest.raises(FacelitError, match=r"give the tag as weights: name: resnet18, weights: a1_in1k"):
        TimmBackbone("resnet18.a1_in1k")
    with pytest.raises(FacelitError, match=r"no model 'qqqqqqqqqqqq'; timm\.list_models\(\) lists them"):
        TimmBackbone("qqqqqqqqqqqq")


@needs_timm
@pytest.mark.parametrize("address", ["hf-hub:timm/resnet18", "local-dir:somewhere", "timm/resnet18"])
def test_a_name_never_reaches_for_a_hub_or_a_folder(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stranger's checkpoint could give it."""
    import timm

    monkeypatch.setattr(timm, "create_model", lambda *_, **__: pytest.fail("must not be built"))
    with pytest.raises(FacelitError, match="timm has no model"):
        TimmBackbone(address)


@needs_timm
def test_weights_by_tag(monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    asked: list[tuple[str, bool]] = []
    real = timm.create_model

    def create(name: str, pretrained: bool = False, **options: Any) -> nn.Module:
        asked.append((name, pretrained))
        return real(name, **options)

    monkeypatch.setattr(timm, "create_model", create)
    with torch.device("meta"):
        for weights in (None, "pretrained", "tv_in1k"):
            TimmBackbone("resnet18", 6, weights)
    assert list(dict.fromkeys(asked)) == [("resnet18", False), ("resnet18", True), ("resnet18.tv_in1k", True)]
    with pytest.raises(FacelitError, match=r"resnet18 has no weights 'vggface'; there are: a1_in1k, .*pretrained"):
        TimmBackbone("resnet18", weights="vggface")


@needs_timm
def test_failed_download_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    def offline(*_: Any, **__: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(FacelitError, match=r"weights: pretrained of resnet18 .*no route.*weights: null"):
        TimmBackbone("resnet18", weights="pretrained")


@needs_timm
def test_other_slips() -> None:
    with pytest.raises(FacelitError, match="add neck: standard"):
        TimmBackbone(SMALL, dropout=0.1)
    with pytest.raises(ValueError, match="embedding_dim=0"):
        TimmBackbone(SMALL, 0)
