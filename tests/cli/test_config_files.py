"""Several configuration files together, and paths with `~` and `$VAR` in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonargparse import Namespace

from facelit.cli import lightning_cli as cli_module
from facelit.cli import main
from facelit.cli.config_files import expand_paths
from facelit.data import FaceDataModule
from facelit.errors import FacelitError
from facelit.storage.paths import expand_path
from facelit.tools import check as check_module

CFP = {"class_path": "facelit.data.PairsBin", "init_args": {"path": "cfp_fp.bin"}}


def sets_of(tmp_path: Path, capsys: pytest.CaptureFixture[str], later: Any, *options: str) -> dict[str, Any]:
    """The verification sets of center.yaml (which has LFW) and a later file."""
    (tmp_path / "later.yaml").write_text(yaml.safe_dump({"data": {"verification": later}}))
    files = ["--config", "configs/center.yaml", "--config", str(tmp_path / "later.yaml")]
    with pytest.raises(SystemExit) as ended:
        main(["fit", *files, *options, "--print_config"])
    assert ended.value.code in (0, None)
    found: dict[str, Any] = yaml.safe_load(capsys.readouterr().out)["data"]["verification"]
    return found


@pytest.fixture(autouse=True)
def _in_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])


def test_a_later_file_adds_its_sets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It dropped LFW, and val/accuracy, by which the best checkpoint is chosen, became another set's."""
    found = sets_of(tmp_path, capsys, {"cfp_fp": CFP})
    assert list(found) == ["lfw", "cfp_fp"]
    assert found["lfw"]["init_args"]["root"] == "datasets/lfw/aligned_112"
    assert found["cfp_fp"]["init_args"]["path"] == "cfp_fp.bin"


def test_null_removes_a_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(sets_of(tmp_path, capsys, {"cfp_fp": CFP, "lfw": None})) == ["cfp_fp"]
    assert sets_of(tmp_path, capsys, None) is None
    removed = sets_of(tmp_path, capsys, {"cfp_fp": CFP}, "--data.verification.lfw", "null")
    assert removed["lfw"] is None
    assert FaceDataModule(verification=removed | {"cfp_fp": None}).verification == {}


def test_a_later_file_changes_a_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = sets_of(tmp_path, capsys, {"lfw": {"init_args": {"root": "elsewhere"}}})["lfw"]
    assert found["class_path"] == "facelit.data.PairsFolder"
    assert (found["init_args"]["root"], found["init_args"]["pairs"]) == ("elsewhere", "datasets/lfw/pairs.txt")
    assert sets_of(tmp_path, capsys, {"lfw": CFP})["lfw"]["init_args"]["path"] == "cfp_fp.bin"


def test_which_sets_count_is_said() -> None:
    def said(sets: Any, monitor: str | None, **options: Any) -> str:
        data, checkpoint = Namespace(verification=sets), Namespace(monitor=monitor)
        trainer = Namespace({"limit_val_batches": None, "check_val_every_n_epoch": 1, "max_epochs": 2} | options)
        return cli_module._what_chooses(Namespace(data=data, checkpoint=checkpoint, trainer=trainer))

    both = {"lfw": 1, "cfp_fp": 1, "removed": None}
    assert said(both, "val/accuracy") == (
        "Verification sets: lfw, cfp_fp. The best checkpoint is chosen by the accuracy on lfw."
    )
    assert said(both, "cfp_fp/auc").endswith("chosen by cfp_fp/auc.")
    assert "No verification sets" in said(None, None)
    assert "No validation in this run (trainer.limit_val_batches 0)" in said(both, "val/accuracy", limit_val_batches=0)
    never = said(both, "val/accuracy", check_val_every_n_epoch=3)
    assert "No validation in this run (trainer.check_val_every_n_epoch 3, trainer.max_epochs 2)" in never
    assert "chosen by" in said(both, "val/accuracy", check_val_every_n_epoch=2)


def test_paths_are_expanded_as_a_shell_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    monkeypatch.setenv("SCR", "/scratch")
    monkeypatch.setenv("EMPTY", "")
    monkeypatch.setenv("HOMEWARD", "~/x")
    monkeypatch.delenv("ABSENT", raising=False)
    monkeypatch.chdir(tmp_path)
    for text, expanded in {
        "~/runs": "/home/ann/runs",
        "~": "/home/ann",
        "$SCR/runs": "/scratch/runs",
        "${SCR}/a/$SCR": "/scratch/a//scratch",
        "a~b": "a~b",
        "A$$P_0001.jpg": "A$$P_0001.jpg",
        "IResNet": "IResNet",
        "${SCR:-/else}/a": "/scratch/a",
        "${ABSENT:-/else}/a": "/else/a",
        "${ABSENT-~/b}": "/home/ann/b",
        "${EMPTY:-/else}/a/${EMPTY-x}": "/else/a/",
        "$HOMEWARD/a": "/home/ann/x/a",
        "price$5/a": "price$5/a",
        "~x": "~x",
    }.items():
        assert expand_path(text) == expanded
    for text, message in {
        "$ABSENT/x": r"\$ABSENT/x: there is no environment variable ABSENT",
        "a/${ABSENT}/x": "there is no environment variable ABSENT",
        "$EMPTY/x": "the environment variable EMPTY is empty",
        "~nobody_of_this_name/x": "there is no user nobody_of_this_name",
        "$(whoami)/x": "commands are not run",
        "$env:HOME/x": "there is no environment variable env",
    }.items():
        with pytest.raises(FacelitError, match=message):
            expand_path(text)
    (tmp_path / "$SCR").mkdir()
    assert expand_path("$SCR") == "$SCR"


def test_every_path_of_a_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCR", "/scratch")
    logger = Namespace(class_path="CSVLogger", init_args=Namespace(save_dir="$SCR/runs"))
    config = Namespace(
        fit=Namespace(
            ckpt_path="$SCR/last.ckpt",
            trainer=Namespace(logger=[logger], default_root_dir="$SCR", max_epochs=3),
            data=Namespace(train=Namespace(init_args={"root": "$SCR/crops"}), verification={"lfw": {"x": ["$SCR"]}}),
        )
    )
    assert expand_paths(config) is config
    assert "$" not in str(config)
    assert logger.init_args.save_dir == "/scratch/runs"
    assert config.fit.trainer.max_epochs == 3


def test_training_and_tools_expand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where a folder is missing, the message has the expanded name."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SCR", str(tmp_path))
    (tmp_path / "x.yaml").write_text(yaml.safe_dump({"data": {"train": {"init_args": {"root": "~/crops"}}}}))
    with pytest.raises(SystemExit):
        main(["fit", "--config", "configs/center.yaml", "--config=$SCR/x.yaml"])
    assert f"training folder not found: {tmp_path}/crops" in capsys.readouterr().err
    seen: dict[str, Any] = {}

    def check(data: str, against: list[str] | None = None) -> None:
        """Checks.

        Args:
            data: A folder.
            against: Sets.
        """
        seen.update(data=data, against=against)

    monkeypatch.setattr(check_module, "check", check)
    main(["check", "$SCR/crops", "--against", "~/lfw", "$SCR/cfp"])
    assert seen == {"data": f"{tmp_path}/crops", "against": [f"{tmp_path}/lfw", f"{tmp_path}/cfp"]}
