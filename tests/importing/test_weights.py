"""Files of weights: what they lie wrapped in, and what is refused."""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from facelit.checkpoints import read_checkpoint
from facelit.errors import FacelitError
from facelit.importing.weights import is_checkpoint, read_weights


def save(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


STATE = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.zeros(2)}


@pytest.mark.parametrize(
    ("content", "key"),
    [
        (STATE, ""),
        ({"state_dict": STATE}, "state_dict"),
        ({"x": 1, "ckpt": {"net_state_dict": STATE}}, "ckpt.net_state_dict"),
    ],
)
def test_nested_dicts_are_looked_through(content: Any, key: str, tmp_path: Path) -> None:
    weights = read_weights(save(tmp_path / "w.pth", content))
    assert weights.key == key
    assert set(weights.state) == set(STATE)
    assert torch.equal(weights.state["a.weight"], STATE["a.weight"])


def test_of_several_sets_the_largest_is_taken_or_the_one_asked_for(tmp_path: Path) -> None:
    average = {name: value + 1 for name, value in STATE.items()}
    path = save(
        tmp_path / "w.pth", {"head": {"w": torch.ones(2, 2)}, "state_dict": STATE, "ema": average, "optimizer": STATE}
    )
    weights = read_weights(path)
    assert (weights.key, weights.others) == ("state_dict", ["head", "ema"])
    assert torch.equal(read_weights(path, "ema").state["a.bias"], torch.ones(2))
    with pytest.raises(FacelitError, match=r"no weights under mean \(option key\): head, state_dict, ema"):
        read_weights(path, "mean")


def test_the_architecture_that_a_file_names(tmp_path: Path) -> None:
    assert read_weights(save(tmp_path / "w.pth", {"arch": "vit", "state_dict": STATE})).metadata == {
        "architecture": "vit"
    }
    (tmp_path / "config.json").write_text('{"architecture": "swin"}')
    assert read_weights(save(tmp_path / "v.pth", STATE)).metadata == {"architecture": "swin"}


def test_safetensors(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    path = tmp_path / "w.safetensors"
    safetensors.save_file(STATE, path)
    assert torch.equal(read_weights(path).state["a.weight"], STATE["a.weight"])
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(FacelitError, match=r"w\.safetensors: this \.safetensors is truncated or damaged"):
        read_weights(path)


class _Bomb:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("exploded"),))


@pytest.mark.parametrize("content", [{"args": argparse.Namespace(lr=1), "state_dict": STATE}, nn.Linear(2, 3), _Bomb()])
def test_a_pickle_that_wants_more_is_refused_with_the_way_out(
    content: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FacelitError) as raised:
        read_weights(save(tmp_path / "theirs.ckpt", content))
    message = str(raised.value)
    assert "holds more than weights" in message
    assert "torch.load('theirs.ckpt', weights_only=False" in message
    assert "\n" not in message
    assert not (tmp_path / "exploded").exists()


def test_the_way_out_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "theirs.ckpt", {"args": argparse.Namespace(lr=1), "state_dict": STATE})
    with pytest.raises(FacelitError) as raised:
        read_weights(tmp_path / "theirs.ckpt")
    command = str(raised.value).partition('python -c "')[2].removesuffix('"')
    exec(command, {})
    assert set(read_weights(tmp_path / "weights.pt").state) == set(STATE)


def test_a_torchscript_program_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(nn.Linear(2, 3), torch.zeros(1, 2)), tmp_path / "scripted.pt")
        with pytest.raises(FacelitError, match=r"TorchScript program.*torch\.jit\.load\('scripted\.pt'\)\.state_dict"):
            read_weights(tmp_path / "scripted.pt")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"hello there", "not a torch file of weights"),
        (b"PK\x03\x04 and no more", "truncated or damaged"),
    ],
)
def test_what_is_no_file_of_torchs(content: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(FacelitError, match=reason) as raised:
        read_weights(tmp_path / "w.pth")
    assert str(raised.value).startswith(f"{tmp_path / 'w.pth'}: ")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_truncated_file(zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save({"a": torch.zeros(5000, 4)}, path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(FacelitError, match="truncated or damaged"):
        read_weights(path)


def test_a_web_page_and_git_lfs_note(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    for read in (read_weights, read_checkpoint):
        for text, what in (
            ("\n<html>", "a web page"),
            ("version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
        ):
            path.write_text(text)
            with pytest.raises(FacelitError, match=rf"w\.pth: not a .*\(this is {what}.*\)\."):
                read(path)


def test_files_without_weights(tmp_path: Path) -> None:
    with pytest.raises(FacelitError, match=r"there are no weights in this file \(a dict of epoch, lr\)"):
        read_weights(save(tmp_path / "w.pth", {"epoch": 3, "lr": 0.1}))
    with pytest.raises(FacelitError, match="file not found"):
        read_weights(tmp_path / "absent.pth")
    with pytest.raises(FacelitError, match="is a folder"):
        read_weights(tmp_path)


def test_a_checkpoint_of_facelits_own_is_told_from_others(tmp_path: Path) -> None:
    assert is_checkpoint(save(tmp_path / "own.ckpt", {"state_dict": STATE, "facelit": {"num_identities": 3}}))
    assert not is_checkpoint(save(tmp_path / "theirs.ckpt", {"state_dict": STATE}))
    assert not is_checkpoint(tmp_path / "absent.ckpt")
