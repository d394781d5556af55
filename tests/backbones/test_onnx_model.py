"""ONNX files as backbones: tiny graphs made here, computed by hand."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from facelit.backbones import OnnxModel
from facelit.errors import FacelitError
from tiny_onnx import MATRIX, write_onnx

pytest.importorskip("onnxruntime")


def images(count: int = 3) -> torch.Tensor:
    return torch.rand(count, 3, 112, 112, generator=torch.Generator().manual_seed(1)) * 255


def by_hand(pictures: torch.Tensor) -> np.ndarray:
    return pictures.double().mean((2, 3)).numpy() @ MATRIX.astype(np.float64)


def test_embeddings_are_the_graphs(tmp_path: Path) -> None:
    model = OnnxModel.from_file(write_onnx(tmp_path / "m.onnx")).eval()
    assert model.embedding_dim == MATRIX.shape[1]
    np.testing.assert_allclose(model(images()).numpy(), by_hand(images()), rtol=1e-4, atol=1e-3)


def test_a_batch_of_one_goes_through_one_by_one(tmp_path: Path) -> None:
    model = OnnxModel.from_file(write_onnx(tmp_path / "m.onnx", batch=1)).eval()
    np.testing.assert_allclose(model(images(5)).numpy(), by_hand(images(5)), rtol=1e-4, atol=1e-3)


def test_weights_in_a_file_beside_it_are_taken_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a file loaded only from its own folder, and a checkpoint of it held no weights."""
    onnx = pytest.importorskip("onnx")
    (tmp_path / "theirs").mkdir()
    whole = onnx.load(write_onnx(tmp_path / "m.onnx"))
    path = tmp_path / "theirs" / "m.onnx"
    onnx.save_model(whole, path, save_as_external_data=True, location="m.onnx.data", size_threshold=0)
    monkeypatch.chdir(tmp_path)
    model = OnnxModel.from_file(path).eval()
    (tmp_path / "theirs" / "m.onnx.data").unlink()
    np.testing.assert_allclose(copy.deepcopy(model)(images()).numpy(), by_hand(images()), rtol=1e-4, atol=1e-3)
    with pytest.raises(
        FacelitError, match=r"m\.onnx: its weights lie in m\.onnx\.data, which cannot be read beside it"
    ):
        OnnxModel.from_file(path)


def test_bytes_and_other_layouts_are_given_what_they_take(tmp_path: Path) -> None:
    model = OnnxModel.from_file(write_onnx(tmp_path / "m.onnx", uint8=True, channels_last=True)).eval()
    np.testing.assert_allclose(
        model(images() + 0.2).numpy(), by_hand((images() + 0.2).round().clamp(max=255)), rtol=1e-4, atol=1e-3
    )


def test_the_state_dict_is_the_file(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "m.onnx")
    model = OnnxModel.from_file(path).eval()
    expected = model(images())
    path.unlink()
    again = OnnxModel(model.embedding_dim, model.num_bytes).eval()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(images()), expected)
    assert torch.equal(copy.deepcopy(again)(images()), expected)


def test_it_cannot_be_trained(tmp_path: Path) -> None:
    with pytest.raises(FacelitError, match="frozen"):
        OnnxModel.from_file(write_onnx(tmp_path / "m.onnx")).train()(images())


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"outputs": 2}, r"2 outputs \(embedding, other0\): say which is the embedding, --output NAME"),
        ({"batch": 4}, "its batch is fixed at 4 images: export it again"),
        ({"inputs": 2}, r"2 inputs \(image, second\)"),
        ({"channels": 1}, r"a face network takes \(batch, 3, height, width\)"),
        ({"flatten": False}, r"an output of shape \(3, 3, 1, 1\)"),
    ],
)
def test_other_graphs_are_refused_in_a_line(options: dict[str, int], reason: str, tmp_path: Path) -> None:
    with pytest.raises(FacelitError, match=reason) as raised:
        OnnxModel.from_file(write_onnx(tmp_path / "m.onnx", **options))  # type: ignore[arg-type]
    assert "\n" not in str(raised.value)


def test_one_of_several_outputs(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "m.onnx", outputs=2)
    np.testing.assert_allclose(
        OnnxModel.from_file(path, "embedding").eval()(images()), by_hand(images()), rtol=1e-4, atol=1e-3
    )
    with pytest.raises(FacelitError, match="no output 683: embedding, other0"):
        OnnxModel.from_file(path, "683")


def test_a_damaged_file(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "m.onnx")
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(FacelitError, match=r"m\.onnx: not an ONNX file with its weights, or a damaged one"):
        OnnxModel.from_file(path)


def test_without_onnxruntime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_onnx(tmp_path / "m.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(FacelitError, match=r'pip install "facelit\[export\]"'):
        OnnxModel.from_file(path)
