"""safetensors: the weights to the bit, and a backbone built from the file alone."""

from __future__ import annotations

import dataclasses
import stat

import pytest
import torch
from torch import nn

from facelit import FacelitError
from facelit.export import export_model, load_safetensors, read_metadata
from facelit.export import safetensors as room

safetensors_torch = pytest.importorskip(
    "safetensors.torch", reason='needs facelit[export]: pip install "facelit[export]"'
)


@pytest.fixture(scope="module")
def path(model, crops, tmp_path_factory):
    return export_model(model, tmp_path_factory.mktemp("weights") / "face.safetensors", crops[:3]).path


class Own(nn.Module):
    """A backbone that is not facelit's."""

    embedding_dim = 4

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.AvgPool2d(28), nn.Flatten(), nn.Linear(48, 4))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images)


def test_weights_are_the_checkpoint_s_to_the_bit(path, model) -> None:
    found, weights = safetensors_torch.load_file(path), model.backbone.state_dict()
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weights[name]) for name in weights)


def test_a_backbone_is_built_from_the_file_alone(path, model) -> None:
    state = torch.get_rng_state()
    backbone = load_safetensors(path)
    assert torch.equal(torch.get_rng_state(), state)
    assert type(backbone) is type(model.backbone)
    assert not backbone.training
    images = torch.rand(3, 3, 112, 112)
    with torch.no_grad():
        torch.testing.assert_close(backbone(images), model.backbone(images))


def test_the_file_says_that_nothing_is_inside(path) -> None:
    said = read_metadata(path)
    assert (said.normalize_inside, said.l2_inside, said.dtype, said.range) == (False, False, "float32", (-1.0, 1.0))


def test_others_may_read_it_as_they_may_read_any_new_file(path) -> None:
    other = path.with_name("other")
    other.touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(other.stat().st_mode)


def test_a_strange_class_is_not_imported_but_may_be_handed_over(make_model, crops, tmp_path) -> None:
    model = make_model(backbone=Own())
    path = export_model(model, tmp_path / "own.safetensors", crops[:3]).path
    with pytest.raises(FacelitError, match=r"own\.safetensors.*pass it in"):
        load_safetensors(path)
    torch.manual_seed(5)
    backbone = load_safetensors(path, backbone=Own())
    assert torch.equal(backbone.layers[2].weight, model.backbone.layers[2].weight)


@pytest.mark.parametrize("class_path", ["os.system", "facelit.tools.pack.pack", "torch.nn.Linear", "facelit.nowhere.X"])
def test_a_hostile_file_runs_nothing(path, tmp_path, class_path) -> None:
    said = dataclasses.replace(read_metadata(path), class_path=class_path, init_args={"src": "x", "dst": "y"})
    hostile = tmp_path / "hostile.safetensors"
    hostile.write_bytes(safetensors_torch.save(safetensors_torch.load_file(path), {"facelit": said.to_json()}))
    with pytest.raises(FacelitError, match=f"{class_path}, which is not part of facelit"):
        load_safetensors(hostile)


def test_a_damaged_file_is_named(path, tmp_path) -> None:
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(FacelitError, match=r"cut\.safetensors.*damaged"):
        load_safetensors(cut)
    with pytest.raises(FacelitError, match="file not found"):
        load_safetensors(tmp_path / "absent.safetensors")


def test_a_network_that_does_not_fit_is_named(path) -> None:
    with pytest.raises(FacelitError, match=r"face\.safetensors does not fit"):
        load_safetensors(path, backbone=Own())


def test_layers_that_share_weights_are_written(tmp_path, crops, make_model) -> None:
    """safetensors itself refuses tensors that share memory."""
    network = Own()
    network.again = network.layers[2]
    export_model(make_model(backbone=network), tmp_path / "shared.safetensors", crops[:3])
    assert room.read_text(tmp_path / "shared.safetensors") is not None
