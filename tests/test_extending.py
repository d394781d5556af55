"""What docs/extending.md shows works as it stands there."""

import importlib
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

import facelit
from facelit.cli import main
from tiny_run import ROOT

DOCUMENT = (ROOT / "docs" / "extending.md").read_text()
QUICK = """
model:
  backbone: {class_path: facelit.backbones.VGG16, init_args: {width: 0.01}}
data:
  train: {class_path: facelit.data.SyntheticFaces, init_args: {num_identities: 4, images_per_identity: 4}}
  verification: {tiny: {class_path: facelit.data.SyntheticPairs, init_args: {folds: 2, pairs_per_fold: 4}}}
  batch_size: 4
  num_workers: 0
verification: {hardest_pairs: 0}
trainer: {max_steps: 2, accelerator: cpu, enable_progress_bar: false, enable_model_summary: false}
"""


def files() -> dict[str, str]:
    """The files that the document tells to write, with what it tells to append to them."""
    found: dict[str, str] = {}
    for name, code in re.findall(
        r"<!-- file: ([\w.]+)(?:, appended)? -->\n```\w+\n(.*?)```", DOCUMENT, flags=re.DOTALL
    ):
        found[name] = f"{found[name]}\n{code}" if name in found else code
    return found


def commands() -> list[list[str]]:
    """The command lines that the document tells to run."""
    blocks = re.findall(r"<!-- run -->\n```sh\n(.*?)```", DOCUMENT, flags=re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.strip().splitlines()]


FITS = [command[2:] for command in commands() if command[:2] == ["python", "main.py"]]


def write_files(folder: Path) -> Path:
    """The document's files, beside facelit's configurations."""
    for name, code in files().items():
        (folder / name).write_text(code)
    (folder / "quick.yaml").write_text(QUICK)
    (folder / "configs").symlink_to(ROOT / "configs")
    images = np.random.default_rng(0).integers(0, 256, (12, 112, 112, 3), dtype=np.uint8)
    np.savez(folder / "faces.npz", images=images, people=np.array(["Ann", "Ben", "Cid"]).repeat(4))
    return folder


@contextmanager
def started_in(folder: Path) -> Iterator[None]:
    """Python knows the folder only as where it was started."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", [*sys.path])
        yield
    for name in {Path(file).stem for file in files()}:
        sys.modules.pop(name, None)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    with started_in(write_files(tmp_path)):
        yield tmp_path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """The runs of one of the document's commands, which is run once for all tests."""

    @cache
    def runs(number: int) -> Path:
        folder = write_files(tmp_path_factory.mktemp("extending"))
        with started_in(folder):
            fit(FITS[number])
        return folder / "runs"

    return runs


def fit(command: list[str], *more: str) -> None:
    """Runs a command of the document on little data: right behind the two shipped configurations, before its own options."""
    main([*command[:5], "--config", "quick.yaml", *command[5:], *more])


def checkpoint(folder: Path) -> Path:
    return max(folder.glob("**/last.ckpt"), key=lambda path: path.stat().st_mtime)


def test_the_document_has_what_it_promises() -> None:
    assert set(files()) == {"my_heads.py", "my_head.yaml", "test_my_heads.py", "my_backbones.py", "my_data.py"}
    assert len(FITS) == 4
    assert all(command[:2] == ["python", "main.py"] or command[2] == "pytest" for command in commands())


@pytest.mark.parametrize("number", range(len(FITS)))
def test_commands(finished: Callable[[int], Path], number: int) -> None:
    command, folder = FITS[number], finished(number)
    content = torch.load(checkpoint(folder), weights_only=True)
    assert content["global_step"] == 2
    named = [word for word in command if re.fullmatch(r"my_\w+\.[A-Z]\w+", word)] or ["my_heads.RingLossHead"]
    assert named[0] in (checkpoint(folder).parent.parent / "config.yaml").read_text()


def test_the_yaml_and_the_command_line(folder: Path, finished: Callable[[int], Path]) -> None:
    """The same head both ways; its checkpoint is measured, and goes on."""
    shutil.copytree(finished(0), folder / "runs")
    content = torch.load(checkpoint(folder), weights_only=True)
    assert content["hyper_parameters"]["head"]["init_args"]["weight"] == 0.02
    assert content["state_dict"]["head.softmax.weight"].shape == (4, 128)
    assert content["facelit"]["num_identities"] == 4
    last = str(checkpoint(folder))
    fit(["validate", *FITS[0][1:]], "--ckpt_path", last)
    fit(FITS[0], "--ckpt_path", last, "--trainer.max_steps", "3")
    assert torch.load(checkpoint(folder), weights_only=True)["global_step"] == 3
    options = ["--model.head", "my_heads.RingLossHead", "--model.head.weight", "0.1"]
    fit([*FITS[0][:5], *options])
    assert torch.load(checkpoint(folder), weights_only=True)["hyper_parameters"]["head"]["init_args"]["weight"] == 0.1


def test_a_checkpoint_alone_names_no_class(
    folder: Path, finished: Callable[[int], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        fit(["validate", *FITS[0][1:5]], "--ckpt_path", str(checkpoint(finished(0))))
    assert "my_heads.RingLossHead, which is not facelit's" in capsys.readouterr().err


def test_the_documents_own_tests(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(folder)
    namespace: dict[str, object] = {}
    exec(compile((folder / "test_my_heads.py").read_text(), "test_my_heads.py", "exec"), namespace)
    tests = [value for name, value in namespace.items() if name.startswith("test_") and callable(value)]
    assert len(tests) == 3
    for test in tests:
        test()


def test_own_backbones_open_in_python(
    folder: Path, finished: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(folder)
    (call,) = re.findall(r"backbone=(TwoConvolutions\(.*?\))\)", DOCUMENT)
    backbone = eval(call, vars(importlib.import_module("my_backbones")))
    model = facelit.load(checkpoint(finished(2)), backbone=backbone)
    assert model.embed([np.zeros((112, 112, 3), np.uint8)]).shape == (1, 128)
