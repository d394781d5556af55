"""The command line and the shipped configurations."""

import re
import shlex
import shutil
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

import facelit
from facelit.cli import main
from tiny_run import ROOT, make_run, tiny_config, write_config, write_crops

CONFIGS = sorted(set((ROOT / "configs").glob("*.yaml")) - {ROOT / "configs" / "suites.yaml"})
"""Of `fit`; tests/tools/test_suites.py has the other one."""


def shown_commands(path: Path) -> list[list[str]]:
    """The command lines that a configuration's comments show, without the program."""
    shown = re.findall(r"^#.*?python main\.py (.*?)(?:   \(.*)?$", path.read_text(), flags=re.MULTILINE)
    return [shlex.split(command) for command in shown]


def printed_config(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--print_config"])
    captured = capsys.readouterr()
    assert ended.value.code == 0, captured.err
    return yaml.safe_load(captured.out)


def leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from leaves(inner, f"{prefix}.{key}" if prefix else key)
    else:
        yield prefix, value


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_configurations_parse_as_they_say(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each command in a file's comments names the file, parses, and ends up with what the last file on it says."""
    monkeypatch.chdir(ROOT)
    commands = shown_commands(path)
    assert commands
    for command in commands:
        assert f"configs/{path.name}" in command
        config = dict(leaves(printed_config(capsys, *command)))
        last = [name for option, name in pairwise(command) if option == "--config"][-1]
        for key, value in leaves(yaml.safe_load((ROOT / last).read_text())):
            if f"--{key}" not in command:
                # null removes a verification set of an earlier file
                found = config.get(key) if value is None else config[key]
                assert found == value, f"{' '.join(command)}: {key}"


@pytest.mark.parametrize("name", ["arcface.yaml", "center.yaml", "triplet.yaml"])
def test_every_option_is_explained(name: str) -> None:
    """By a comment above it, above an earlier option of the same group, or above what it is an option of."""
    explained: list[tuple[int, bool]] = []  # indentation and whether there is a comment, of the groups around a line
    comment_above, count = False, 0
    for line in (ROOT / "configs" / name).read_text().splitlines():
        text = line.strip()
        if not text or text.startswith("#"):
            comment_above = text.startswith("#")
            continue
        indent, key = len(line) - len(line.lstrip()), text.split(":")[0]
        while explained and explained[-1][0] > indent:
            explained.pop()
        here = comment_above or any(comment for _, comment in explained)
        if explained and explained[-1][0] == indent:
            explained.pop()
        is_section = indent == 0 and text.endswith(":")
        explained.append((indent, here and not (is_section and not comment_above)))
        if not is_section and key not in ("class_path", "init_args"):
            assert here, f"{name}: nothing explains {key!r}"
            count += 1
        comment_above = False
    assert count > 30


def test_names_of_classes_may_be_short(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    arguments = ["fit", "--config", "configs/center.yaml", "--model.head", "SoftmaxHead"]
    arguments += ["--model.backbone", "TorchvisionBackbone", "--model.backbone.name", "resnet18"]
    arguments += ["--data.train", "SyntheticFaces"]
    config = printed_config(capsys, *arguments)
    assert config["model"]["head"]["class_path"] == "facelit.heads.SoftmaxHead"
    assert config["model"]["backbone"]["class_path"] == "facelit.backbones.TorchvisionBackbone"
    assert config["model"]["backbone"]["init_args"]["name"] == "resnet18"
    assert config["data"]["train"]["class_path"] == "facelit.data.SyntheticFaces"


@pytest.mark.parametrize("file", ["center", "triplet"])
def test_another_backbone_does_not_take_over_vgg16s_dropout(
    file: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    arguments = ["fit", "--config", f"configs/{file}.yaml"]
    backbone = printed_config(capsys, *arguments)["model"]["backbone"]
    assert backbone["init_args"]["dropout"] == 0.5
    for name, options, default in (
        ("TorchvisionBackbone", ["--model.backbone.name", "resnet50"], None),
        ("TimmBackbone", ["--model.backbone.name", "resnet50"], None),
        ("IResNet", [], 0.0),
    ):
        backbone = printed_config(capsys, *arguments, "--model.backbone", name, *options)["model"]["backbone"]
        assert backbone["init_args"]["dropout"] == default


@pytest.mark.parametrize("optimizer", ["Adam", "Adagrad", "AdamW", "SGD"])
def test_optimizers_go_by_their_names(
    optimizer: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    options = ["--model.optimizer", optimizer, "--model.optimizer.lr", "0.125"]
    found = printed_config(capsys, "fit", "--config", "configs/center.yaml", *options)["model"]["optimizer"]
    assert found["class_path"] in (f"torch.optim.{optimizer}", f"torch.optim.{optimizer.lower()}.{optimizer}")
    assert found["init_args"]["lr"] == 0.125


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["fit", "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    for option in ("--model.head", "--model.backbone", "--data.train", "--ckpt_path", "--trainer.max_epochs"):
        assert option in shown


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose training images are gone; its verification images are elsewhere."""
    folder = tmp_path_factory.mktemp("trained")
    config = make_run(folder, trainer__max_epochs=1)
    write_crops(folder / "verification")
    text = yaml.safe_load(config.read_text())
    text["data"]["verification"]["tiny"]["init_args"]["root"] = str(folder / "verification")
    config.write_text(yaml.safe_dump(text))
    main(["fit", "--config", str(config)])
    shutil.rmtree(folder / "crops")
    return folder


def metrics(folder: Path) -> str:
    """The newest log."""
    return max(folder.glob("**/metrics.csv"), key=lambda path: path.stat().st_mtime).read_text()


@pytest.mark.parametrize("command", ["validate", "test"])
def test_verification_needs_no_training_images_and_says_each_figure_once(
    trained: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in trained.glob("**/metrics.csv"):
        path.unlink()
    main([command, "--config", str(trained / "tiny.yaml"), "--ckpt_path", "last"])
    assert "tiny/accuracy" in metrics(trained)
    said = capsys.readouterr().out
    assert "tiny: accuracy" in said
    assert said.count("accuracy") == 1


def test_the_checkpoints_network_wins(trained: Path, caplog: pytest.LogCaptureFixture) -> None:
    main(["validate", "--config", str(trained / "tiny.yaml"), "--ckpt_path", "last"])
    expected = metrics(trained)
    caplog.clear()
    other = ["--model.backbone.plain", "true", "--model.backbone.embedding_dim", "24"]
    main(["validate", "--config", str(trained / "tiny.yaml"), "--ckpt_path", "last", *other])
    assert "backbone.plain is False in the checkpoint and True in the configuration" in caplog.text
    assert metrics(trained) == expected


def test_the_version_is_the_packages() -> None:
    (version,) = re.findall(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE)
    assert version == facelit.__version__


def test_ci_runs_what_the_readme_says() -> None:
    readme = (ROOT / "README.md").read_text()
    block = re.search(r"<!-- ci:test -->\n+```\w*\n(.*?)\n```", readme, flags=re.DOTALL)
    assert block is not None
    for tool in ("pytest", "ruff check", "ruff format", "mypy"):
        assert tool in block[1]
    script = (ROOT / ".ci" / "run").read_text()
    assert "ci:test" in script
    assert "pytest" not in script


def test_options_before_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command is not the first argument: every command is known, and its part of the file is read."""
    config = tiny_config(tmp_path, data__verification=None)
    both = write_config(tmp_path, {"validate": {"ckpt_path": "absent.ckpt"}, "fit": {**config, "hue": 3}}, "both.yaml")
    with pytest.raises(SystemExit) as end:
        main(["--config", str(both), "fit"])
    assert end.value.code == 2
    assert "unknown option hue" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(write_config(tmp_path, {"hue": 3}, "one.yaml"))])
    assert "unknown option hue" in capsys.readouterr().err
