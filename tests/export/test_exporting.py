"""No file counts that does not give what the checkpoint gives; none is left half-written."""

from __future__ import annotations

import errno
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from facelit import FacelitError
from facelit.export import export_model, exporting, formats
from facelit.export.formats import FORMATS, format_of
from facelit.export.packages import require
from tiny_net import TinyNet


@pytest.fixture(scope="module")
def model(make_model):
    """Has a graph of few operations, which takes half as long to write."""
    return make_model(backbone=TinyNet())


@pytest.fixture(params=["face.onnx", "face.pt2", "face.safetensors"])
def target(request, tmp_path) -> Path:
    package = {"face.onnx": "onnxscript", "face.safetensors": "safetensors"}.get(request.param, "torch")
    pytest.importorskip(package, reason='needs facelit[export]: pip install "facelit[export]"')
    return tmp_path / request.param


def spoil(monkeypatch, target: Path, value: float) -> None:
    """Has one bias of the written weights changed, as a bug in an exporter would."""
    name, chosen = next((name, known) for name, known in FORMATS.items() if known.suffix == target.suffix)

    def write(graph, metadata, path) -> None:
        with torch.no_grad():
            graph.backbone[6].bias[0] += value
        chosen.write(graph, metadata, path)

    monkeypatch.setitem(formats.FORMATS, name, chosen._replace(write=write))


def test_a_broken_export_is_refused_and_leaves_nothing(model, crops, target, monkeypatch) -> None:
    before = model.embed(crops[:3])
    spoil(monkeypatch, target, 0.01)
    with pytest.raises(FacelitError, match=rf"{target.name}: not written.* differ .*more than 0\.0001"):
        export_model(model, target, crops[:3])
    assert list(target.parent.iterdir()) == []
    assert (model.embed(crops[:3]) == before).all()


def test_an_older_file_survives_a_broken_export(model, crops, tmp_path, monkeypatch) -> None:
    target = tmp_path / "face.pt2"
    target.write_text("the older one")
    spoil(monkeypatch, target, 0.01)
    with pytest.raises(FacelitError, match="not written"):
        export_model(model, target, crops[:3])
    assert [path.read_text() for path in tmp_path.iterdir()] == ["the older one"]
    monkeypatch.undo()
    export_model(model, target, crops[:3])
    assert [path.name for path in tmp_path.iterdir()] == ["face.pt2"]
    assert target.stat().st_size > 1000


def pretend(monkeypatch, change) -> None:
    """Has `.pt2` run as the graph itself, its embeddings changed by `change(embeddings)` in batches of more than one."""

    def open_runner(path, graph):
        def run(images):
            with torch.no_grad():
                embeddings = graph(images).numpy().copy()
            return change(embeddings) if len(images) > 1 else embeddings

        return run

    fake = FORMATS["torch_export"]._replace(write=lambda graph, metadata, path: path.touch(), open_runner=open_runner)
    monkeypatch.setitem(formats.FORMATS, "torch_export", fake)


def off_by(value: float):
    def change(embeddings):
        embeddings[4, 2] += value
        return embeddings

    return change


def test_the_reported_difference_is_the_largest(model, crops, tmp_path, monkeypatch) -> None:
    pretend(monkeypatch, off_by(5e-5))
    exported = export_model(model, tmp_path / "face.pt2", crops[:6])
    assert exported.difference.keys() == {1, 6}
    assert exported.difference[1] < 1e-6
    assert exported.difference[6] == pytest.approx(5e-5, rel=0.02)
    with pytest.raises(FacelitError, match="by up to 5e-05, more than 1e-05"):
        export_model(model, tmp_path / "strict.pt2", crops[:6], tolerance=1e-5)


def test_a_nan_is_no_agreement(model, crops, tmp_path, monkeypatch) -> None:
    pretend(monkeypatch, off_by(float("nan")))
    with pytest.raises(FacelitError, match="not written"):
        export_model(model, tmp_path / "face.pt2", crops[:6])
    assert list(tmp_path.iterdir()) == []


def test_lengths_count_too_and_relatively(model, crops, tmp_path, monkeypatch) -> None:
    """Without L2 inside, an embedding that is too long by a hundredth is wrong, however long embeddings are."""
    pretend(monkeypatch, lambda embeddings: embeddings * np.float32(1.01))
    with pytest.raises(FacelitError, match="not written"):
        export_model(model, tmp_path / "face.pt2", crops[:6], l2=False)
    exported = export_model(model, tmp_path / "face.pt2", crops[:6], l2=False, tolerance=1)
    directions = model.embed(crops[:6])
    assert exported.difference[6] == pytest.approx(0.01 * abs(directions).max(), rel=1e-3)


def test_a_full_disk_leaves_nothing(model, crops, tmp_path, monkeypatch) -> None:
    def write(graph, metadata, path) -> None:
        path.write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setitem(formats.FORMATS, "onnx", FORMATS["onnx"]._replace(write=write))
    with pytest.raises(FacelitError, match=r"face\.onnx: cannot write this file \(No space left on device\)"):
        export_model(model, tmp_path / "face.onnx", crops[:3])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full is Linux's")
def test_every_format_says_that_the_disk_is_full(model, target) -> None:
    """torch's own writer would end the process."""
    chosen = format_of(target)
    graph = exporting._make_graph(model, chosen, True, True, None, "NCHW")
    with pytest.raises(OSError, match="No space left"):
        chosen.write(graph, exporting._describe(model, graph), Path("/dev/full"))


class Undecided(nn.Module):
    """What it does depends on the values: no graph has that."""

    embedding_dim = 4

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3 * 112 * 112, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        flat = images.flatten(1)
        return self.layer(flat if float(flat.sum()) > 0 else -flat)


def test_a_network_without_a_graph_is_named(make_model, crops, tmp_path) -> None:
    with pytest.raises(FacelitError, match=r"face\.pt2: Undecided cannot be exported in this format \("):
        export_model(make_model(backbone=Undecided()), tmp_path / "face.pt2", crops[:3])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("face.onnx", "onnx"),
        ("face.onnx", "onnxscript"),
        ("face.onnx", "onnxruntime"),
        ("face.safetensors", "safetensors"),
    ],
)
def test_a_missing_package_is_named(model, crops, tmp_path, monkeypatch, name, missing) -> None:
    for module in [module for module in sys.modules if module.partition(".")[0] == missing]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(FacelitError) as error:
        export_model(model, tmp_path / name, crops[:3])
    assert str(error.value) == f'the package {missing} is not installed: pip install "facelit[export]"'
    assert list(tmp_path.iterdir()) == []


def test_every_package_is_asked_for() -> None:
    assert require("json").loads("1") == 1
    with pytest.raises(FacelitError, match="the package no_such_package is not installed"):
        require("json", "no_such_package.part")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("face.onnx", {"normalize": False, "dtype": "uint8"}, "cannot be uint8"),
        ("face.safetensors", {"dtype": "uint8"}, "holds only weights"),
        ("face.safetensors", {"layout": "NHWC"}, "holds only weights"),
        ("face.pth", {}, r"face\.pth.*must end in one of \.onnx, \.pt2, \.safetensors"),
        ("absent/face.onnx", {}, "no such folder"),
        ("", {"format": "onnx"}, "is a folder"),
    ],
)
def test_contradictions_are_told(model, crops, tmp_path, name, options, message) -> None:
    with pytest.raises(FacelitError, match=message):
        export_model(model, tmp_path / name, crops[:3], **options)


def test_the_checkpoint_is_not_overwritten(model, crops, tmp_path) -> None:
    link = tmp_path / "link.ckpt"
    link.symlink_to(model.checkpoint_path)
    with pytest.raises(FacelitError, match="the checkpoint itself"):
        export_model(model, link, crops[:3], format="onnx")


def test_too_few_crops_are_refused(model, crops, tmp_path) -> None:
    with pytest.raises(FacelitError, match="at least 2 crops"):
        export_model(model, tmp_path / "face.pt2", crops[:1])


def test_the_name_or_the_suffix_decides() -> None:
    assert format_of(Path("a.ONNX")) is FORMATS["onnx"]
    assert format_of(Path("a.onnx"), "safetensors") is FORMATS["safetensors"]


def test_tolerance_is_the_issue_s() -> None:
    assert exporting.TOLERANCE == 1e-4
