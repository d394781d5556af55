"""Other projects' weights are recognised by names and shapes, and our networks compute what theirs do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor

import foreign_weights as foreign
from facelit.errors import FacelitError
from facelit.importing.checkpoint import fed
from facelit.importing.network import open_network
from facelit.importing.recognising import recognise
from facelit.importing.weights import Weights
from foreign_weights import Shapes, State

R18, R34, R50, R100, R200 = (2, 2, 2, 2), (3, 4, 6, 3), (3, 4, 14, 3), (3, 13, 30, 3), (6, 26, 60, 6)


def title(state: State) -> str:
    return recognise(Weights(state, "", [], {}), "weights.pth").network.title


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        (foreign.iresnet_shapes(R18), "IResNet-18 of arcface_torch"),
        (foreign.iresnet_shapes(R34), "IResNet-34 of arcface_torch"),
        (foreign.iresnet_shapes(R50), "IResNet-50 of arcface_torch"),
        (foreign.iresnet_shapes(R100), "IResNet-100 of arcface_torch"),
        (foreign.iresnet_shapes(R200), "IResNet-200 of arcface_torch"),
        (foreign.mbf_shapes(), "MobileFaceNet (mbf) of arcface_torch"),
        (foreign.ir_shapes(R18), "IR-18 of AdaFace"),
        (foreign.ir_shapes(R50), "IR-50 of AdaFace"),
        (foreign.ir_shapes(R100), "IR-101 of AdaFace"),
        (foreign.foamliu_shapes(), "MobileFaceNet of foamliu"),
        (foreign.xiaoccer_shapes(), "MobileFaceNet of Xiaoccer"),
        (foreign.inception_shapes(), "InceptionResnetV1 of facenet-pytorch"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_names_and_shapes_tell_the_network(shapes: Shapes, expected: str) -> None:
    assert title(foreign.on_meta(shapes)) == expected


def test_torchvision_is_recognised_by_its_shapes() -> None:
    with torch.device("meta"):
        state = torchvision.models.resnet18(num_classes=256).state_dict()
    found = recognise(Weights(state, "", [], {}), "weights.pth")
    assert found.network.title == "resnet18 of torchvision"
    assert found.network.init_args["embedding_dim"] == 256
    assert found.kind.assumed


def test_timm_is_recognised_by_the_name_that_the_file_has_for_it() -> None:
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        state = timm.create_model("mobilenetv4_conv_small", num_classes=64).state_dict()
    found = recognise(Weights(state, "", [], {"architecture": "mobilenetv4_conv_small"}), "weights.pth")
    assert found.network.title == "mobilenetv4_conv_small of timm"
    assert found.network.init_args["embedding_dim"] == 64


def test_a_name_in_the_file_is_a_hint_only() -> None:
    """Training scripts write `arch: resnet18` for networks of their own."""
    state = foreign.on_meta(foreign.iresnet_shapes(R18))
    found = recognise(Weights(state, "", [], {"architecture": "resnet18"}), "weights.pth")
    assert found.network.title == "IResNet-18 of arcface_torch"
    with pytest.raises(FacelitError, match="The closest is resnet18 of torchvision"):
        recognise(Weights(state, "", [], {}), "weights.pth", "resnet18")


@pytest.mark.parametrize(
    ("wrap", "left_out"),
    [
        (lambda s: {f"module.{k}": v for k, v in s.items()}, 0),
        (lambda s: {f"_orig_mod.module.{k}": v for k, v in s.items()}, 0),
        (lambda s: {f"model.{k}": v for k, v in s.items()} | {"head.kernel": torch.zeros(3, 4)}, 1),
        (lambda s: {k: v for k, v in s.items() if "num_batches" not in k}, 0),
    ],
    ids=["DataParallel", "compiled", "Lightning", "before torch 0.4.1"],
)
def test_wrappers_are_looked_through(wrap: Callable[[State], State], left_out: int) -> None:
    state = foreign.on_meta(foreign.foamliu_shapes())
    found = recognise(Weights(wrap(state), "", [], {}), "weights.pth")
    assert found.network.title == "MobileFaceNet of foamliu"
    assert len(found.left_out) == left_out


def test_cvlface_has_adafaces_network_and_other_colours() -> None:
    state = foreign.on_meta(foreign.ir_shapes(R18))
    cvlface = recognise(Weights({f"net.{k}": v for k, v in state.items()}, "", [], {}), "model.pt")
    adaface = recognise(Weights({f"model.{k}": v for k, v in state.items()}, "", [], {}), "a.ckpt")
    assert (cvlface.network.title, cvlface.kind.feed.colour) == ("IR-18 of CVLface", "RGB")
    assert (adaface.network.title, adaface.kind.feed.colour) == ("IR-18 of AdaFace", "BGR")


def test_the_length_of_the_embedding_is_read_from_the_shapes() -> None:
    shapes = foreign.foamliu_shapes()
    shapes = {k: (64, *v[1:]) if k.startswith(("conv3.", "bn.")) and v else v for k, v in shapes.items()}
    found = recognise(Weights(foreign.on_meta(shapes), "", [], {}), "weights.pth")
    assert found.network.init_args == {"embedding_dim": 64}


def test_the_closest_network_and_the_first_differences_are_named() -> None:
    shapes = foreign.iresnet_shapes(R34)
    shapes["fc.weight"] = (512, 25089)
    del shapes["bn2.weight"]
    shapes["zz.extra"] = (3, 4)
    with pytest.raises(FacelitError) as raised:
        title(foreign.on_meta(shapes))
    message = str(raised.value)
    assert message.startswith("weights.pth: ")
    assert "closest is IResNet-34 of arcface_torch" in message
    assert "bn2.weight is absent in the file and 512 there" in message
    assert "fc.weight is 512x25089 in the file and 512x25088 there" in message
    assert "zz.extra is 3x4 in the file and absent there" in message


def test_what_is_like_nothing_known_is_said_so() -> None:
    with pytest.raises(FacelitError, match=r"no network known to facelit resembles these 1 tensors: a.weight \(3x4\)"):
        title({"a.weight": torch.zeros(3, 4)})


def faces(count: int = 2) -> Tensor:
    noise = torch.rand(count, 3, 112, 112, generator=torch.Generator().manual_seed(3)) * 2 - 1
    return noise * torch.linspace(1, 0.1, count).view(-1, 1, 1, 1)


def pixels() -> Tensor:
    return faces() * 127.5 + 127.5


IMAGENET = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 1, 3, 1, 1)


@pytest.mark.parametrize(
    ("shapes", "reference"),
    [
        (foreign.iresnet_shapes(R18), lambda s: foreign.iresnet(s, (pixels() / 255 - 0.5) / 0.5, R18)),
        (foreign.ir_shapes(R18), lambda s: foreign.ir(s, (pixels()[:, [2, 1, 0]] / 255 - 0.5) / 0.5, R18)[0]),
        (foreign.mbf_shapes(), lambda s: foreign.mbf(s, (pixels() / 255 - 0.5) / 0.5)),
        (foreign.foamliu_shapes(), lambda s: foreign.foamliu(s, (pixels() / 255 - IMAGENET[0]) / IMAGENET[1])),
        (foreign.xiaoccer_shapes(), lambda s: foreign.xiaoccer(s, (pixels()[:, :, :, 8:104] - 127.5) / 128)),
        (
            foreign.inception_shapes(),
            lambda s: foreign.inception(
                s, (torch.nn.functional.interpolate(pixels(), (160, 160), mode="bilinear") - 127.5) / 128
            ),
        ),
    ],
    ids=["iresnet18", "ir18", "mbf", "foamliu", "xiaoccer", "inception"],
)
def test_imported_networks_compute_what_their_authors_did(
    shapes: Shapes, reference: Callable[[State], Tensor], tmp_path: Path
) -> None:
    state = foreign.random_state(shapes)
    torch.save({"epoch": 3, "net_state_dict": state, "few": {"a": torch.zeros(2, 2)}}, tmp_path / "theirs.pth")
    network = open_network(tmp_path / "theirs.pth")
    with torch.no_grad():
        found = fed(network, network.feed)(faces())
        expected = reference(state)
    directions = [torch.nn.functional.normalize(rows.double(), dim=1) for rows in (found, expected)]
    torch.testing.assert_close(directions[0], directions[1], rtol=0, atol=2e-5)
    # Two images get two embeddings: a reference that ignores its input would prove nothing.
    assert (directions[1][0] - directions[1][1]).abs().max() > 1e-3
