"""What a file says about itself comes back as it went in, whatever the format and the file's name."""

from __future__ import annotations

import json
import zipfile

import numpy as np
import pytest

from facelit import FacelitError, __version__
from facelit.align import TEMPLATE
from facelit.export import Metadata, export_model, read_metadata
from facelit.export.metadata import from_json
from tiny_net import TinyNet


def described(model, crops, path, **options) -> Metadata:
    exported = export_model(model, path, crops[:2], **options)
    assert read_metadata(path) == exported.metadata
    return exported.metadata


@pytest.mark.parametrize(
    ("name", "package"), [("face.onnx", "onnxscript"), ("face.pt2", "torch"), ("face.safetensors", "safetensors")]
)
def test_metadata_of_every_format(make_model, crops, tmp_path, name, package) -> None:
    pytest.importorskip(package, reason='needs facelit[export]: pip install "facelit[export]"')
    arguments = {"name": "squeezenet1_1", "embedding_dim": 8, "weights": None}
    model = make_model("TorchvisionBackbone", **arguments)
    said = described(model, crops, tmp_path / name)
    weights_alone = name.endswith("safetensors")
    assert said == Metadata(
        facelit=__version__,
        checkpoint="tiny.ckpt",
        step=7,
        class_path="facelit.backbones.TorchvisionBackbone",
        init_args=arguments,
        embedding_dim=8,
        dtype="float32" if weights_alone else "uint8",
        layout="NCHW",
        range=(-1.0, 1.0) if weights_alone else (0.0, 255.0),
        normalize_inside=not weights_alone,
        l2_inside=not weights_alone,
        template=tuple(tuple(point) for point in np.asarray(TEMPLATE).tolist()),
        calibration=model.calibration,
        size=(112, 112),
        colour="RGB",
    )
    assert said.calibration["drawn"]["thresholds"]["best_accuracy"]["threshold"] == 0.875
    (tmp_path / "renamed.bin").write_bytes((tmp_path / name).read_bytes())
    assert read_metadata(tmp_path / "renamed.bin") == said


def test_what_is_not_inside_is_said(make_model, crops, tmp_path) -> None:
    model = make_model(backbone=TinyNet())
    said = described(model, crops, tmp_path / "a.pt2", normalize=False, l2=False, layout="NHWC")
    assert (said.normalize_inside, said.l2_inside, said.dtype, said.range) == (False, False, "float32", (-1.0, 1.0))
    assert said.input_shape == "(batch, 112, 112, 3)"
    said = described(model, crops, tmp_path / "b.pt2", dtype="float32")
    assert (said.normalize_inside, said.dtype, said.range) == (True, "float32", (0.0, 255.0))


def values() -> dict[str, object]:
    return Metadata(
        "0.1.0", "a.ckpt", 1, "x.Y", None, 4, "uint8", "NCHW", (0.0, 255.0), True, True, ((1.0, 2.0),), {}
    ).as_dict()


def test_json_and_back() -> None:
    said = from_json(json.dumps(values()), "x")
    assert from_json(said.to_json(), "x") == said
    assert said.template == ((1.0, 2.0),)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version 2; this facelit reads version 1"),
        ({"format": "other"}, "damaged"),
        ({"template": None}, "damaged"),
        ({"range": 5}, "damaged"),
        ({"surplus": 5}, "damaged"),
    ],
)
def test_strange_metadata_are_refused(change, message) -> None:
    with pytest.raises(FacelitError, match=f"face.pt2.*{message}"):
        from_json(json.dumps({**values(), **change}), "face.pt2")


@pytest.mark.parametrize("key", ["version", "format", "range", "template", "l2_inside"])
def test_missing_values_are_refused(key) -> None:
    kept = {name: value for name, value in values().items() if name != key}
    with pytest.raises(FacelitError, match="damaged"):
        from_json(json.dumps(kept), "face.pt2")


def test_files_of_others_are_named(tmp_path) -> None:
    with zipfile.ZipFile(tmp_path / "other.pt2", "w") as archive:
        archive.writestr("archive/data", "x")
    with pytest.raises(FacelitError, match=r"other\.pt2: there is no facelit metadata"):
        read_metadata(tmp_path / "other.pt2")
    with pytest.raises(FacelitError, match="file not found"):
        read_metadata(tmp_path / "absent.onnx")
    with pytest.raises(FacelitError, match="damaged"):
        from_json("no json", "face.pt2")
    pytest.importorskip("onnx", reason='needs facelit[export]: pip install "facelit[export]"')
    (tmp_path / "text.onnx").write_text("this is a text")
    with pytest.raises(FacelitError, match=r"text\.onnx: not an .onnx, .pt2 or .safetensors file"):
        read_metadata(tmp_path / "text.onnx")
