"""Checkpoints with flipped bits, and checkpoints that a stranger has made up: one line, never other weights."""

import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from facelit import FacelitError
from facelit.checkpoints import SKIP_CHECKSUMS, read_checkpoint
from flipped_bits import flip_bits


def checkpoint() -> dict[str, Any]:
    """With all that facelit and Lightning put into one."""
    thresholds = {"best_accuracy": {"threshold": 0.3, "far": 0.1, "tar": 0.9}}
    return {
        "state_dict": {"backbone.weight": torch.randn(40, 8), "head.weight": torch.randn(5, 8)},
        "hyper_parameters": {"backbone": {"class_path": "facelit.backbones.VGG16"}},
        "callbacks": {"ModelCheckpoint{}": {"best_model_path": "a.ckpt"}},
        "loops": {},
        "optimizer_states": [{"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"params": [0]}]}],
        "lr_schedulers": [{"last_epoch": 3}],
        "epoch": 3,
        "global_step": 40,
        "pytorch-lightning_version": "2.6.6",
        "facelit": {
            "num_identities": 5,
            "rng_states": {"cpu": torch.get_rng_state()},
            "identity_places": [1],
            "weight_average": {"raw": {"backbone.weight": torch.randn(40, 8)}, "updates": 4},
            "calibration": {"lfw": {"pairs": 6000, "step": 40, "thresholds": thresholds}},
        },
    }


def save(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and [*one] == [*other] and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return isinstance(other, list) and len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and bool(one == other)


def test_no_flipped_bit_goes_unseen(tmp_path: Path) -> None:
    content = checkpoint()
    path = save(tmp_path / "a.ckpt", content)
    assert same(read_checkpoint(path), content)
    unseen: list[int] = []
    seen: list[str] = []
    for position in flip_bits(path, 300):
        try:
            unseen += [] if same(read_checkpoint(path), content) else [position]
        except FacelitError as error:
            seen.append(str(error))
    assert unseen == []
    assert len(seen) > 100
    assert all(str(path) in message and "\n" not in message for message in seen)


def test_checksums_can_be_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = checkpoint()
    path = save(tmp_path / "a.ckpt", content)
    data = bytearray(path.read_bytes())
    data[data.index(content["state_dict"]["backbone.weight"].numpy().tobytes())] ^= 1
    path.write_bytes(data)
    with pytest.raises(FacelitError, match=r"damaged one \(Bad CRC-32 for file"):
        read_checkpoint(path)
    monkeypatch.setenv(SKIP_CHECKSUMS, "1")
    assert not same(read_checkpoint(path), content)


def rewrite(path: Path, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(path.with_name("new.ckpt"), "w", compression) as new:
        for entry in old.namelist():
            new.writestr(entry, old.read(entry))
    return path.with_name("new.ckpt")


@pytest.mark.parametrize("skip", ["", "1"])
def test_compressed_entries_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, skip: str) -> None:
    """A few kilobytes could stand for any amount of memory."""
    monkeypatch.setenv(SKIP_CHECKSUMS, skip)
    path = save(tmp_path / "a.ckpt", checkpoint())
    with pytest.raises(FacelitError, match="it is compressed, as no checkpoint of torch's is"):
        read_checkpoint(rewrite(path, zipfile.ZIP_DEFLATED))


def test_entries_that_lie_over_each_other_are_refused(tmp_path: Path) -> None:
    """Each of many names for one large entry would be read in full."""
    path = tmp_path / "a.ckpt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", os.urandom(5000))
        archive.filelist *= 20
    with pytest.raises(FacelitError, match="its entries are larger than the file"):
        read_checkpoint(path)


WRONG: dict[str, Any] = {
    "state_dict": [1, 2],
    "state_dict.backbone.weight": "a string",
    "hyper_parameters": 3,
    "callbacks": [1],
    "loops": None,
    "optimizer_states": {"a": 1},
    "optimizer_states.0": 4,
    "optimizer_states.0.state": [],
    "optimizer_states.0.param_groups": 0,
    "lr_schedulers": "x",
    "epoch": "3",
    "global_step": 4.5,
    "facelit": [5],
    "facelit.num_identities": "many",
    "facelit.rng_states": torch.zeros(3),
    "facelit.rng_states.cpu": 5,
    "facelit.identity_places": 3,
    "facelit.weight_average": 3,
    "facelit.weight_average.raw": [torch.zeros(3)],
    "facelit.weight_average.updates": None,
    "facelit.calibration": [1],
    "facelit.calibration.lfw": 0.5,
    "facelit.calibration.lfw.step": "40",
    "facelit.calibration.lfw.thresholds": [0.3],
    "facelit.calibration.lfw.thresholds.best_accuracy": 0.3,
    "facelit.calibration.lfw.thresholds.best_accuracy.threshold": "high",
}


@pytest.mark.parametrize("name", WRONG)
def test_entries_of_wrong_types_are_named(tmp_path: Path, name: str) -> None:
    content = checkpoint()
    *parents, key = name.split(".") if name != "state_dict.backbone.weight" else ["state_dict", "backbone.weight"]
    holder: Any = content
    for parent in parents:
        holder = holder[int(parent) if parent.isdigit() else parent]
    holder[int(key) if key.isdigit() else key] = WRONG[name]
    path = save(tmp_path / "a.ckpt", content)
    with pytest.raises(FacelitError, match=rf"a\.ckpt: not a checkpoint of facelit's.*`{name}` is of type \w+, not"):
        read_checkpoint(path)


class Touches:
    """Unpickled carelessly, it leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("key", ["state_dict", "hyper_parameters", "callbacks", "facelit", "more"])
def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path, key: str) -> None:
    path = save(tmp_path / "a.ckpt", {**checkpoint(), key: {"x": Touches(tmp_path / "executed")}})
    with pytest.raises(FacelitError, match=r"a\.ckpt: not a checkpoint"):
        read_checkpoint(path)
    assert not (tmp_path / "executed").exists()
