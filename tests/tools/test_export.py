"""`facelit export` on the command line: what it prints, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from facelit import FacelitError
from facelit.backbones import VGG16
from facelit.cli import main
from facelit.export import FormatName, export_model, load_safetensors
from facelit.tools import export as tool
from facelit.tools.export import export


@pytest.fixture(autouse=True)
def _few_crops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool, "_NUM_CROPS", 4)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder `runs` with one run in the current one; its checkpoint has no thresholds."""
    monkeypatch.chdir(tmp_path)
    arguments = {"width": 0.01, "embedding_dim": 16}
    torch.manual_seed(0)
    checkpoint = {
        "state_dict": {f"backbone.{name}": value for name, value in VGG16(**arguments).state_dict().items()},
        "hyper_parameters": {"backbone": {"class_path": "facelit.backbones.VGG16", "init_args": arguments}},
        "global_step": 1234,
        "facelit": {"num_identities": 3},
    }
    path = tmp_path / "runs" / "tiny" / "version_0" / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True)
    torch.save(checkpoint, path)
    return path


def calibrate(path: Path, step: int, flip_average: bool) -> None:
    thresholds = {"best_accuracy": {"threshold": 0.41250, "far": 0.1, "tar": 0.8}}
    checkpoint = torch.load(path, weights_only=True)
    entry = {"pairs": 1200, "step": step, "flip_average": flip_average, "thresholds": thresholds}
    checkpoint["facelit"]["calibration"] = {"drawn": entry}
    torch.save(checkpoint, path)


def test_it_says_what_it_compared_and_what_it_wrote(run: Path, capsys) -> None:
    assert export("face.pt2") == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert "last.ckpt" in printed.err  # which checkpoint was taken, as none was named
    assert lines[0].endswith("last.ckpt: VGG16, step 1,234")
    assert "4 built-in faces" in lines[1]
    assert "in batches of 1," in lines[1]
    assert "in batches of 4" in lines[1]
    size = Path("face.pt2").stat().st_size / 1e6
    assert lines[2] == f"face.pt2: {size:,.1f} MB"
    assert lines[3] == "  in   uint8 (batch, 3, 112, 112), RGB in 0..255, aligned crops"
    assert lines[4] == "  out  float32 (batch, 16), of length 1"
    assert "no thresholds" in lines[5]


def test_options_are_passed_on(run: Path, capsys) -> None:
    export("face.pt2", checkpoint=str(run), no_normalize=True, no_l2=True, layout="NHWC")
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "float32 (batch, 112, 112, 3), RGB in -1..1" in printed.out
    assert "not normalised" in printed.out
    export("face.pt2", checkpoint=str(run), input="float32")
    assert "float32 (batch, 3, 112, 112), RGB in 0..255" in capsys.readouterr().out


def test_crops_of_a_folder(run: Path, capsys) -> None:
    """Spread over the whole folder, not its first ones."""
    folder = Path("crops")
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(9):
        Image.fromarray(rng.integers(0, 256, (112, 112, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    shown, faces = tool._read_crops("crops")
    assert (shown, faces.shape) == ("crops of crops", (4, 112, 112, 3))
    assert (faces[0] == np.asarray(Image.open("crops/0.png"))).all()
    assert (faces[-1] == np.asarray(Image.open("crops/8.png"))).all()
    export("face.pt2", checkpoint=str(run), crops="crops")
    assert "on 4 crops of crops" in capsys.readouterr().out
    Image.new("RGB", (100, 112)).save(folder / "9.png")
    with pytest.raises(FacelitError, match=r"9\.png.*100x112"):
        export("other.pt2", checkpoint=str(run), crops="crops")
    with pytest.raises(FacelitError, match=r"nowhere.*option crops"):
        export("other.pt2", checkpoint=str(run), crops="nowhere")
    assert not Path("other.pt2").exists()


@pytest.mark.parametrize(("step", "flip_average"), [(1234, False), (1000, True)])
def test_thresholds_travel_and_say_what_they_are_for(run: Path, capsys, step, flip_average) -> None:
    calibrate(run, step, flip_average)
    export("face.pt2", checkpoint=str(run))
    printed = capsys.readouterr().out
    older = "" if step == 1234 else " at step 1,000"
    assert f"thresholds measured on drawn{older}, 1,200 pairs: best_accuracy 0.412500" in printed
    assert ("flip averaging" in printed) == flip_average


def test_info_prints_the_metadata(run: Path, capsys) -> None:
    export("face.pt2", checkpoint=str(run))
    capsys.readouterr()
    assert export("face.pt2", info=True) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["format"] == "facelit-export"
    assert (said["checkpoint"], said["step"], said["embedding_dim"]) == ("last.ckpt", 1234, 16)
    assert said["template"][0] == pytest.approx([38.2946, 51.6963])


def test_the_command_line(run: Path, capsys) -> None:
    pytest.importorskip("safetensors", reason='needs facelit[export]: pip install "facelit[export]"')
    main(["export", "weights.bin", "--format", "safetensors", "--checkpoint", str(run)])
    assert load_safetensors("weights.bin").embedding_dim == 16
    for arguments, message in [
        (["face.pth"], "must end in one of"),
        ([], "OUT is missing"),
        (["face.onnx", "--format", "tflite"], "--format"),
        (["face.pt2", "--checkpoint", "absent.ckpt"], "absent.ckpt"),
    ]:
        with pytest.raises(SystemExit) as end:
            main(["export", *arguments])
        assert end.value.code == 2
        error = capsys.readouterr().err
        assert message in error
        assert len(error.splitlines()) <= 2


def test_a_refused_export_ends_with_status_2(run: Path, capsys, monkeypatch) -> None:
    def strict(model, path, crops, format: FormatName | None = None, *options):
        return export_model(model, path, crops, format, *options, tolerance=-1.0)

    monkeypatch.setattr("facelit.export.export_model", strict)
    with pytest.raises(SystemExit) as end:
        main(["export", "face.pt2", "--checkpoint", str(run)])
    assert end.value.code == 2
    assert "not written" in capsys.readouterr().err
    assert not Path("face.pt2").exists()


def test_help_reads_well(capsys) -> None:
    with pytest.raises(SystemExit) as end:
        main(["export", "--help"])
    assert end.value.code == 0
    printed = capsys.readouterr().out
    assert "examples:" in printed
    for option in ("--checkpoint", "--no_normalize", "--no_l2", "--layout", "--crops", "--info", "--format", "--input"):
        assert option in printed
