"""What was trained or measured on drawn faces says so: in the checkpoint, and before an answer."""

from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from facelit.cli import main
from facelit.data.synthetic import SyntheticFaces, SyntheticPairs, is_drawn
from facelit.inference.drawings import Drawings, find_drawings
from facelit.training import recognizer
from trained_run import TrainedRun, calibration

DRAWN = {"class_path": "facelit.data.SyntheticFaces"}
PAIRS = {"class_path": "facelit.data.synthetic.SyntheticPairs"}
PHOTOS = {"class_path": "facelit.data.IdentityFolder"}


@pytest.mark.parametrize(
    ("own", "train", "verification", "expected"),
    [
        ({}, None, None, Drawings()),
        ({}, PHOTOS, {"lfw": PHOTOS}, Drawings()),
        ({}, DRAWN, {"lfw": PHOTOS}, Drawings(True)),
        ({"drawn": True}, None, None, Drawings(True)),
        ({"drawn": True}, PHOTOS, None, Drawings(True)),
        ({}, PHOTOS, {"lfw": PAIRS, "unmeasured": PAIRS, "none": None}, Drawings(False, frozenset({"lfw"}))),
        ({"calibration": {"lfw": {}, "demo": {"drawn": True}}}, None, None, Drawings(False, frozenset({"demo"}))),
        ({"imported": {"network": "x"}}, DRAWN, {"lfw": PAIRS}, Drawings()),
    ],
)
def test_where_it_is_known_from(
    tmp_path: Path, own: dict[str, object], train: object, verification: object, expected: Drawings
) -> None:
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    checkpoint.parent.mkdir(parents=True)
    if train:
        (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump({"data": {"train": PHOTOS}}))
        config = yaml.safe_dump({"data": {"train": train, "verification": verification}})
        (tmp_path / "run" / "config-resumed-1.yaml").write_text(config)
    assert find_drawings({"facelit": {"calibration": {"lfw": {}}, **own}}, checkpoint) == expected


@pytest.mark.parametrize("text", ["", "[]", "data: 3", "data: {train: 3, verification: 4}", ": :", b"\xff\xff"])
def test_a_configuration_that_says_nothing(tmp_path: Path, text: str | bytes) -> None:
    (tmp_path / "config.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert find_drawings({}, tmp_path / "x.ckpt") == Drawings()


def test_sources_that_are_drawn() -> None:
    assert is_drawn(SyntheticFaces(num_identities=2, images_per_identity=2))
    assert is_drawn(SyntheticPairs(folds=2, pairs_per_fold=2))
    assert not is_drawn(None)


def test_the_training_set_of_a_trainer() -> None:
    trainer = SimpleNamespace(datamodule=SimpleNamespace(train="faces"))
    assert recognizer._training_set(trainer) == "faces"
    assert recognizer._training_set(SimpleNamespace(datamodule=None)) is None
    assert recognizer._training_set(None) is None


@pytest.mark.parametrize(
    ("drawn", "measured", "options", "remark"),
    [
        (True, True, [], "was trained on facelit's drawn faces: what it says about photos of people means nothing."),
        (True, False, ["--threshold", "0.5"], "was trained on facelit's drawn faces"),
        (False, True, [], "its threshold of made_up was measured on drawn faces and does not hold for photos"),
        (False, True, ["--threshold", "0.5"], ""),
        (False, False, [], ""),
    ],
)
@pytest.mark.parametrize("command", ["verify", "identify"])
def test_it_is_said_first(
    trained: TrainedRun,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    drawn: bool,
    measured: bool,
    options: list[str],
    remark: str,
) -> None:
    kept = calibration(best_accuracy=0.5)
    kept["made_up"] |= {"drawn": True} if measured else {}
    changed = trained.changed(tmp_path / "x.ckpt", facelit__calibration=kept, global_step=7)
    if drawn:
        changed = trained.changed(tmp_path / "x.ckpt", facelit__calibration=kept, facelit__drawn=True, global_step=7)
    photos = [str(trained.crop(0, 1))]
    photos += [str(trained.crop(0, 2))] if command == "verify" else ["--gallery", str(trained.crops)]
    with suppress(SystemExit):  # two different people
        main([command, *photos, "--aligned", "--checkpoint", str(changed), *options])
    printed = capsys.readouterr()
    assert remark in (printed.err.splitlines() or [""])[0]
    assert ("drawn faces" in printed.err) == bool(remark)
    assert "drawn" not in printed.out


@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "CROPS", "--jobs", "1"],
        ["embed", "CROPS", "--aligned"],
        ["evaluate", "CROPS", "--aligned"],
        ["cluster", "CROPS", "album", "--aligned", "--threshold", "0.5"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_other_commands_say_it_too(
    trained: TrainedRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [str(trained.crops) if argument == "CROPS" else argument for argument in arguments]
    drawn = trained.changed(tmp_path / "x.ckpt", facelit__drawn=True)
    for checkpoint in (drawn, trained.checkpoint):
        with suppress(SystemExit):
            main([*arguments, "--checkpoint", str(checkpoint), "--device", "cpu"])
        assert ("was trained on facelit's drawn faces" in capsys.readouterr().err) == (checkpoint == drawn)
