"""ONNX in onnxruntime against torch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from facelit.export import export_model

onnxruntime = pytest.importorskip("onnxruntime", reason='needs facelit[export]: pip install "facelit[export]"')
pytest.importorskip("onnxscript", reason='needs facelit[export]: pip install "facelit[export]"')


@pytest.fixture(scope="module")
def exported(model, crops, tmp_path_factory):
    return export_model(model, tmp_path_factory.mktemp("onnx") / "face.onnx", crops[:3])


@pytest.fixture(scope="module")
def session(exported):
    return onnxruntime.InferenceSession(str(exported.path), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("batch_size", [1, 64])
def test_onnx_equals_torch_on_100_crops(session, crops, expected, batch_size) -> None:
    images = np.ascontiguousarray(crops.transpose(0, 3, 1, 2))
    batches = [images[start : start + batch_size] for start in range(0, len(images), batch_size)]
    found = np.concatenate([session.run(None, {"images": batch})[0] for batch in batches])
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert np.ptp(expected, axis=0).max() > 100 * 1e-4  # the crops are told apart: agreement means something


def test_what_the_file_says_of_its_input_and_output(session) -> None:
    (images,), (embeddings,) = session.get_inputs(), session.get_outputs()
    batch = images.shape[0]
    assert batch in ("batch", "s0")  # torch 2.6 does not keep the name
    assert (images.name, images.type, images.shape) == ("images", "tensor(uint8)", [batch, 3, 112, 112])
    assert (embeddings.name, embeddings.type, embeddings.shape) == ("embeddings", "tensor(float)", [batch, 16])
    said = json.loads(session.get_modelmeta().custom_metadata_map["facelit"])
    assert (said["colour"], said["range"], said["embedding_dim"]) == ("RGB", [0, 255], 16)


def test_float_images_are_refused_where_bytes_are_meant(session, crops) -> None:
    """An image in 0..1 would give an embedding that means nothing."""
    with pytest.raises(Exception, match=r"(?i)unexpected input data type"):
        session.run(None, {"images": crops[:1].transpose(0, 3, 1, 2).astype(np.float32)})


def test_no_path_of_this_machine_is_in_the_file(exported) -> None:
    assert str(Path(__file__).resolve().parents[2]).encode() not in exported.path.read_bytes()
    assert b"graph.py" not in exported.path.read_bytes()


def test_the_oldest_runtime_named_reads_it(exported) -> None:
    """onnxruntime 1.14 came with ONNX 1.13: format version 8, opset 18; what it cannot know must not be in the file."""
    onnx = pytest.importorskip("onnx")
    written = onnx.load(exported.path)
    assert (written.ir_version, [(one.domain, one.version) for one in written.opset_import]) == (8, [("", 18)])
    onnx.checker.check_model(written, full_check=True)
    assert not any(node.metadata_props or node.overload for node in written.graph.node)
    assert not any(
        value.metadata_props for value in [*written.graph.value_info, *written.graph.input, *written.graph.initializer]
    )
    assert not written.graph.metadata_props
    assert not written.functions


def test_one_file(exported) -> None:
    """Weights lie inside, not in a file beside it."""
    assert [path.name for path in exported.path.parent.iterdir()] == ["face.onnx"]


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("VGG16", {"width": 0.01, "embedding_dim": 16}),
        ("TorchvisionBackbone", {"name": "squeezenet1_1", "embedding_dim": 16}),
    ],
)
def test_other_backbones_without_anything_inside(make_model, crops, tmp_path, kind, arguments) -> None:
    model = make_model(kind, **arguments)
    path = tmp_path / "plain.onnx"
    export_model(model, path, crops[:3], normalize=False, l2=False, layout="NHWC")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    images = ((crops[:7] - np.float32(127.5)) / np.float32(127.5)).astype(np.float32)
    found = session.run(None, {"images": images})[0]
    assert session.get_inputs()[0].type == "tensor(float)"
    lengths = np.linalg.norm(found, axis=1, keepdims=True)
    assert abs(lengths - 1).min() > 1e-3
    np.testing.assert_allclose(found / lengths, model.embed(crops[:7]), atol=1e-4)
