"""`facelit import`: what everything that exists makes of its checkpoint, and what the user reads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import facelit
import foreign_weights as foreign
from facelit.cli import main
from facelit.inference.drawings import Drawings
from facelit.tools.models import models
from tiny_onnx import MATRIX, write_onnx
from tiny_run import make_run
from trained_run import trained_run

MEAN, STD = (torch.tensor(values).view(3, 1, 1) for values in ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375]))


class Theirs:
    """A folder with a tiny run's crops and configuration, and foamliu's network with random values, imported."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = make_run(folder)
        self.state = foreign.random_state(foreign.foamliu_shapes())
        self.weights = folder / "mobilefacenet.pt"
        torch.save({f"module.{name}": value for name, value in self.state.items()}, self.weights)
        self.checkpoint = folder / "theirs.ckpt"
        main(["import", str(self.weights), str(self.checkpoint)])

    def crop(self, person: int, number: int) -> Path:
        return self.folder / "crops" / f"person_{person:02d}" / f"person_{person:02d}_{number:04d}.png"

    def embed(self, *crops: Path) -> np.ndarray:
        """What its authors' code computes."""
        pixels = np.stack([np.asarray(Image.open(crop).convert("RGB")) for crop in crops]).transpose(0, 3, 1, 2)
        with torch.no_grad():
            rows = foreign.foamliu(self.state, (torch.tensor(pixels) - MEAN) / STD).double().numpy()
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Theirs:
    return Theirs(tmp_path_factory.mktemp("theirs"))


def fails(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    with pytest.raises(SystemExit) as raised:
        main([str(argument) for argument in arguments])
    assert raised.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    message = lines[-1]
    assert message.startswith("facelit: error: "), lines
    return message


def test_what_it_says(theirs: Theirs, capsys: pytest.CaptureFixture[str]) -> None:
    main(["import", str(theirs.weights), str(theirs.folder / "again.ckpt")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "mobilefacenet.pt: MobileFaceNet of foamliu, embeddings of 128 numbers."
    assert lines[1] == "Input: RGB, 112x112, ImageNet's mean and std (known for this kind)."
    assert lines[-2].startswith(f"Wrote {theirs.folder / 'again.ckpt'}")
    assert lines[-1].endswith("--verification.calibrate true")


def test_python_embeds_as_its_authors_do(theirs: Theirs) -> None:
    crops = [theirs.crop(0, 1), theirs.crop(1, 1)]
    found = facelit.load(theirs.checkpoint).embed(crops)
    np.testing.assert_allclose(found, theirs.embed(*crops), atol=2e-5)


def test_validate_measures_and_calibrates_it_and_verify_uses_that(
    theirs: Theirs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "theirs.ckpt"
    copy.write_bytes(theirs.checkpoint.read_bytes())
    arguments = ["validate", "--config", theirs.config, "--ckpt_path", copy, "--verification.calibrate", "true"]
    main([str(argument) for argument in arguments])
    content = torch.load(copy, weights_only=True)
    threshold = content["facelit"]["calibration"]["tiny"]["thresholds"]["best_accuracy"]["threshold"]
    assert content["facelit"]["imported"]["file"] == "mobilefacenet.pt"
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(
            [
                "verify",
                *map(str, (theirs.crop(0, 1), theirs.crop(1, 1))),
                "--checkpoint",
                str(copy),
                "--aligned",
                "--json",
            ]
        )
    answer = json.loads(capsys.readouterr().out)
    first, second = theirs.embed(theirs.crop(0, 1), theirs.crop(1, 1))
    assert answer["score"] == pytest.approx(first @ second, abs=1e-5)
    assert answer["threshold"]["value"] == threshold

    main(["card", "--checkpoint", str(copy)])
    card = (tmp_path / "card.md").read_text()
    assert card.startswith("# Face embeddings by MobileFaceNet of foamliu")
    for fact in ("`mobilefacenet.pt`", "github.com/foamliu/MobileFaceNet", "Apache-2.0", "ImageNet's mean and std"):
        assert fact in card
    assert "random weights" not in card


def test_exports_come_back_and_embed_alike(theirs: Theirs, tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    crops = [theirs.crop(0, 1), theirs.crop(1, 1)]
    main(["export", str(tmp_path / "face.safetensors"), "--checkpoint", str(theirs.checkpoint)])
    main(["import", str(tmp_path / "face.safetensors"), str(tmp_path / "face.ckpt")])
    np.testing.assert_allclose(facelit.load(tmp_path / "face.ckpt").embed(crops), theirs.embed(*crops), atol=2e-5)


def test_an_export_says_that_faces_were_drawn(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    own = trained_run()
    kept = {"made_up": {**next(iter(facelit.load(own.checkpoint).calibration.values())), "drawn": True}}
    (tmp_path / "older").mkdir()
    # Of a version whose checkpoints do not say so: the configuration of the run does.
    (tmp_path / "older" / "config.yaml").write_text(
        "data: {verification: {tiny: {class_path: facelit.data.SyntheticPairs}}}\n"
    )
    for folder, changes in (
        (".", {"facelit__drawn": True}),
        (".", {"facelit__calibration": kept}),
        ("older", {"facelit__drawn": False}),
    ):
        drawn = own.changed(tmp_path / folder / "drawn.ckpt", **changes)
        assert facelit.load(drawn).drawings != Drawings()
        main(["export", str(tmp_path / "face.safetensors"), "--checkpoint", str(drawn)])
        main(["import", str(tmp_path / "face.safetensors"), str(tmp_path / "face.ckpt"), "--overwrite"])
        assert facelit.load(tmp_path / "face.ckpt").drawings == facelit.load(drawn).drawings


def test_an_onnx_that_facelit_wrote(theirs: Theirs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It brings its thresholds along; and what cannot be done with an ONNX is refused in a line."""
    pytest.importorskip("onnxruntime")
    own, target = trained_run(), tmp_path / "face.ckpt"
    drawn = own.changed(tmp_path / "drawn.ckpt", facelit__drawn=True)
    main(["export", str(tmp_path / "face.onnx"), "--checkpoint", str(drawn)])
    main(["import", str(tmp_path / "face.onnx"), str(target)])
    model, crops = facelit.load(target), [own.crop(0, 1), own.crop(1, 1)]
    expected = facelit.load(own.checkpoint)
    np.testing.assert_allclose(model.embed(crops), expected.embed(crops), atol=1e-5)
    assert model.calibration["tiny"]["thresholds"] == expected.calibration["tiny"]["thresholds"]
    assert model.drawings.trained
    message = fails(capsys, "verify", crops[0], crops[1], "--checkpoint", tmp_path / "face.onnx")
    assert "face.onnx is not a checkpoint. Turn it into one: " in message
    assert "import" in message
    main(["import", str(tmp_path / "face.onnx"), str(tmp_path / "bgr.ckpt"), "--colour", "BGR"])
    assert not facelit.load(tmp_path / "bgr.ckpt").calibration  # they were not measured so
    (tmp_path / "face.onnx").unlink()
    message = fails(capsys, "export", tmp_path / "twice.onnx", "--checkpoint", target)
    assert "holds an ONNX already: use face.onnx" in message
    message = fails(capsys, "fit", "--config", theirs.config, "--model.init_backbone", target)
    assert "an ONNX graph is frozen and cannot be trained (option model.init_backbone)" in message


@pytest.mark.parametrize("source", ["weights", "checkpoint"])
def test_fit_starts_from_it(source: str, theirs: Theirs, tmp_path: Path) -> None:
    arguments = {
        "config": theirs.config,
        "model.init_backbone": getattr(theirs, source),
        "model.optimizer.lr": 0,
        "trainer.max_steps": 1,
        "trainer.logger.save_dir": tmp_path,
        "data.verification": "null",
    }
    main(["fit", *(f"--{name}={value}" for name, value in arguments.items())])
    (last,) = tmp_path.rglob("last.ckpt")
    state = torch.load(last, weights_only=True)["state_dict"]
    for name, value in theirs.state.items():
        if name.endswith("weight"):
            assert torch.equal(state[f"backbone.network.{name}"].cpu(), value), name
    assert state["head.weight"].shape[1] == 128
    # And the run is one of facelit's own: its configuration builds the network again.
    config = yaml.safe_load((last.parents[1] / "config.yaml").read_text())
    assert config["model"]["backbone"]["init_args"]["network"]["class_path"] == "facelit.backbones.ReluMobileFaceNet"
    assert facelit.load(last).embedding_dim == 128


def test_an_onnx_is_measured_as_it_is(theirs: Theirs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime")
    main(["import", str(write_onnx(tmp_path / "m.onnx", normalise=True, batch=1)), str(tmp_path / "m.ckpt")])
    said = capsys.readouterr().out
    assert "Input: RGB, 112x112, in 0..255 (known for this kind)" in said
    assert "one by one" in said
    crop = theirs.crop(0, 1)
    means = np.asarray(Image.open(crop), np.float64).mean((0, 1))
    expected = (means - 127.5) / 128 @ MATRIX
    found = facelit.load(tmp_path / "m.ckpt").embed(crop)[0]
    np.testing.assert_allclose(found, expected / np.linalg.norm(expected), atol=1e-4)
    main(["validate", "--config", str(theirs.config), "--ckpt_path", str(tmp_path / "m.ckpt")])
    assert "tiny: accuracy" in capsys.readouterr().out


def test_options_say_how_it_was_fed(theirs: Theirs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "t.ckpt"
    options = ["--colour", "BGR", "--mean", "128", "--std", "100", "110", "120", "--l2", "--flip_average"]
    main(["import", str(theirs.weights), str(target), *options])
    said = "Input: BGR, 112x112, (x - 128/128/128) / 100/110/120, L2, averaged with the mirror image (set by options)."
    assert said in capsys.readouterr().out
    arguments = torch.load(target, weights_only=True)["hyper_parameters"]["backbone"]["init_args"]
    assert (arguments["colour"], arguments["mean"], arguments["std"]) == ("BGR", [128.0] * 3, [100.0, 110.0, 120.0])
    assert arguments["l2"]
    assert arguments["flip_average"]


def test_pairs_check_it(theirs: Theirs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime")
    pairs = ["--pairs", theirs.folder / "pairs.txt", "--root", theirs.folder / "crops"]
    main([str(one) for one in ("import", write_onnx(tmp_path / "m.onnx"), tmp_path / "t.ckpt", *pairs)])
    assert "standard deviations apart" in capsys.readouterr().out


def test_user_errors(theirs: Theirs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights, target = theirs.weights, tmp_path / "t.ckpt"
    cases = {
        ("import", tmp_path / "no.pth", target): "file not found",
        ("import", weights, theirs.checkpoint): "exists already",
        ("import", weights, weights, "--overwrite"): "would replace the weights themselves",
        ("import", weights, tmp_path / "no" / "t.ckpt"): "there is no folder",
        ("import", weights, tmp_path): "is a folder: name a file",
        ("import", theirs.checkpoint, target): "is already a facelit checkpoint",
        ("import", weights, target, "--size", 112): "--size 112: 2 numbers are expected",
        ("import", weights, target, "--size", 112, 96): "does not take images of 112x96 (option size)",
        ("import", weights, target, "--mean", "a"): "--mean a: 1 or 3 numbers are expected",
        ("import", weights, target, "--range", "0..1", "--std", 3): "--range already sets mean and std",
        ("import", weights, target, "--std", 0): "--std 0: must be above 0",
        ("import", weights, target, "--root", tmp_path): "give --pairs too",
        ("import", weights, target, "--pairs", "p.txt"): "--root FOLDER",
        ("import", weights, target, "--output", "x"): "--output is for .onnx files",
        ("import", weights, target, "--key", "ema"): "no weights under ema",
        ("import", weights, target, "--colour", "GBR"): "--colour GBR: not a valid value",
    }
    for arguments, reason in cases.items():
        assert reason in fails(capsys, *arguments), arguments
        assert not target.exists()


def test_fit_does_not_resume_an_import(theirs: Theirs, capsys: pytest.CaptureFixture[str]) -> None:
    message = fails(capsys, "fit", "--config", theirs.config, "--ckpt_path", theirs.checkpoint)
    assert f"--model.init_backbone {theirs.checkpoint}" in message


def test_models_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    models()
    text = capsys.readouterr().out
    for name in (
        "arcface_torch mbf",
        "AdaFace",
        "CVLface",
        "foamliu/MobileFaceNet",
        "facenet-pytorch",
        "w600k_r50",
        "SFace",
    ):
        assert name in text
    models(json=True)
    rows = json.loads(capsys.readouterr().out)
    assert all(
        row["command"].startswith("facelit import ") and row["home"].startswith("https://github.com/") for row in rows
    )
    assert all(row["licence"] and row["trained_on"] and row["lfw"] for row in rows)
