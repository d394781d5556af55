"""Every backbone from a checkpoint of `fit` through `facelit.load` and into a file."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch

from facelit.export import export_model, load_safetensors

NARROW = [
    ("IResNet", {"depth": 18, "embedding_dim": 16, "width": 0.1, "dropout": 0.4}),
    ("MobileFaceNet", {"embedding_dim": 16, "width": 0.1}),
    ("TimmBackbone", {"name": "resnet10t", "embedding_dim": 16, "neck": "standard", "dropout": 0.4}),
]
VGG16_WITH_NECK = {"embedding_dim": 16, "width": 0.01, "batch_norm": True, "neck": "standard"}


@pytest.fixture(scope="module", params=NARROW, ids=lambda case: case[0])
def narrow(request, make_model):
    kind, arguments = request.param
    if kind == "TimmBackbone" and importlib.util.find_spec("timm") is None:
        pytest.skip('needs facelit[timm]: pip install "facelit[timm]"')
    model = make_model(kind, **arguments)
    assert type(model.backbone).__name__ == kind
    return model


@pytest.fixture(scope="module")
def unit(narrow, crops):
    """Unit embeddings by the formulas written out."""
    images = torch.from_numpy(((crops[:5].astype(np.float32) - 127.5) / 127.5).transpose(0, 3, 1, 2))
    with torch.no_grad():
        raw = narrow.backbone(images).numpy()
    return raw / np.linalg.norm(raw, axis=1, keepdims=True)


def test_loaded_by_facelit(narrow, crops, unit) -> None:
    np.testing.assert_allclose(narrow.embed(crops[:5]), unit, atol=1e-5)
    assert np.ptp(unit, axis=0).max() > 10 * 1e-4  # the crops are told apart: agreement to 1e-4 means something


def test_onnx(narrow, crops, unit, tmp_path) -> None:
    for package in ("onnxruntime", "onnxscript"):
        pytest.importorskip(package, reason='needs facelit[export]: pip install "facelit[export]"')
    import onnxruntime

    path = export_model(narrow, tmp_path / "a.onnx", crops[:3]).path
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found = session.run(None, {"images": np.ascontiguousarray(crops[:5].transpose(0, 3, 1, 2))})[0]
    np.testing.assert_allclose(found, unit, atol=1e-4)


def test_torch_export_and_safetensors(make_model, crops, tmp_path) -> None:
    """ONNX goes through `torch.export` too: once is enough."""
    model = make_model("VGG16", **VGG16_WITH_NECK)
    program = torch.export.load(export_model(model, tmp_path / "a.pt2", crops[:3]).path).module()
    with torch.no_grad():
        found = program(torch.from_numpy(crops[:5].transpose(0, 3, 1, 2).copy()))
    np.testing.assert_allclose(found.numpy(), model.embed(crops[:5]), atol=1e-4)
    export_model(model, tmp_path / "a.safetensors", crops[:3])
    state = load_safetensors(tmp_path / "a.safetensors").state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.backbone.state_dict().items())
