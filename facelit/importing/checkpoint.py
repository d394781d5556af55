"""Makes facelit checkpoints from other people's networks."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from facelit.backbones import ImportedBackbone
from facelit.checkpoints import CHECKPOINT_KEY, check_fits, read_checkpoint
from facelit.errors import FacelitError
from facelit.importing.kinds import Feed
from facelit.importing.network import ForeignNetwork, open_network
from facelit.importing.weights import is_checkpoint
from facelit.storage.files import replacing

_PREFIX = "backbone."


def fed(network: ForeignNetwork, feed: Feed) -> nn.Module:
    """Wraps a network as a backbone, (N, 3, 112, 112) RGB in [-1, 1] to (N, D), unless it takes facelit's crops itself."""
    if feed == Feed():
        return network.module
    return ImportedBackbone(network.module, network.embedding_dim, **feed._asdict()).eval()


def make_checkpoint(network: ForeignNetwork, feed: Feed, source: Path) -> dict[str, Any]:
    """Makes a checkpoint like those of `fit`, without head and optimizer.

    Args:
        network: The network.
        feed: Its preprocessing.
        source: The file it was opened from, for the record.
    """
    state = {f"{_PREFIX}{name}": value for name, value in fed(network, feed).state_dict().items()}
    # Fed in another way, an exported network is no longer what its thresholds were measured on.
    calibration = network.calibration if feed == network.feed else {}
    own: dict[str, Any] = {"num_identities": None, "imported": _record(network, feed, source)}
    if network.drawn:
        own["drawn"] = True
    if calibration:
        own["calibration"] = {name: {**entry, "step": 0} for name, entry in calibration.items()}
    return {
        "state_dict": state,
        "hyper_parameters": {"backbone": _configuration(network, feed)},
        "global_step": 0,
        "epoch": 0,
        "pytorch-lightning_version": version("pytorch-lightning"),
        CHECKPOINT_KEY: own,
    }


def write_checkpoint(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Writes or replaces the file, atomically.

    Raises:
        FacelitError: It cannot be written.
    """
    try:
        with replacing(path) as temporary:
            torch.save(dict(checkpoint), temporary)
    except (OSError, RuntimeError) as error:  # torch's writer raises the latter where there is no folder or no space
        reason = str(error).strip().splitlines()[0][:120]
        raise FacelitError(f"{path}: cannot write this file ({reason}).") from None


def read_any(path: Path | str) -> dict[str, Any]:
    """Reads a facelit checkpoint, or makes one in memory from other weights.

    Raises:
        FacelitError: The file is neither.
    """
    path = Path(path)
    if is_checkpoint(path):
        return read_checkpoint(path)
    network = open_network(path)
    return make_checkpoint(network, network.feed, path)


def load_backbone(backbone: nn.Module, path: Path | str) -> None:
    """Copies the weights of a checkpoint's backbone, or other weights, into `backbone`.

    Raises:
        FacelitError: It has other parameters or shapes, or cannot be trained.
    """
    checkpoint = read_any(path)
    refuse_frozen(checkpoint, path)
    state = checkpoint["state_dict"]
    weights = {name.removeprefix(_PREFIX): value for name, value in state.items() if name.startswith(_PREFIX)}
    check_fits(backbone.state_dict(), weights, path, "this backbone (option model.init_backbone)")
    backbone.load_state_dict(weights)


def refuse_frozen(checkpoint: Mapping[str, Any], path: Path | str) -> None:
    """Rejects an imported ONNX, which cannot be trained.

    Raises:
        FacelitError: The checkpoint is an imported ONNX.
    """
    if imported_as(checkpoint).get("frozen"):
        raise FacelitError(
            f"{path}: an ONNX graph is frozen and cannot be trained (option model.init_backbone). Start from the PyTorch weights"
            " that it was made from."
        )


def imported_as(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint's record of the file it was imported from; empty for one that `fit` wrote."""
    record: dict[str, Any] = checkpoint.get(CHECKPOINT_KEY, {}).get("imported", {})
    return record


def _configuration(network: ForeignNetwork, feed: Feed) -> dict[str, Any]:
    """The `class_path` and `init_args` of `fed`, as plain values, which load with `weights_only`."""
    inner = {"class_path": network.class_path, "init_args": network.init_args}
    if feed == Feed():
        return inner
    arguments = {name: list(value) if isinstance(value, tuple) else value for name, value in feed._asdict().items()}
    return {
        "class_path": f"facelit.backbones.{ImportedBackbone.__name__}",
        "init_args": {"network": inner, "embedding_dim": network.embedding_dim, **arguments},
    }


def _record(network: ForeignNetwork, feed: Feed, source: Path) -> dict[str, Any]:
    published = network.kind.published if network.kind else ()
    with source.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256") if hasattr(hashlib, "file_digest") else hashlib.sha256(file.read())
    return {
        "file": source.name,
        "sha256": digest.hexdigest(),
        "network": network.title,
        "home": published[0].home if published else None,
        "licence": published[0].licence if published else None,
        "feed": feed.describe(),
        "frozen": not network.trainable,
    }
