"""The network of a checkpoint, without the training around it: no Lightning, no downloads, no code from the file."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import torch
from torch import nn

from facelit.checkpoints import check_fits
from facelit.errors import FacelitError

_PREFIX = "backbone."
_BUILD_IT = "Build it yourself and pass it in: facelit.load(checkpoint, backbone=MyBackbone(...))"


def restore_backbone(checkpoint: Mapping[str, Any], path: str, backbone: nn.Module | None = None) -> nn.Module:
    """Rebuilds the backbone with its trained weights.

    Args:
        checkpoint: The result of `facelit.checkpoints.read_checkpoint`.
        path: The file it was read from, for messages.
        backbone: The network to fill; by default it is built from the checkpoint's configuration.

    Returns:
        The backbone in eval mode, float32, on the CPU.

    Raises:
        FacelitError: The checkpoint does not say how to build the backbone, names a class that is not part of facelit, or its
            weights do not fit.
    """
    state = checkpoint["state_dict"]
    weights = {name.removeprefix(_PREFIX): value for name, value in state.items() if name.startswith(_PREFIX)}
    if not weights:
        raise FacelitError(f"{path}: there is no backbone in this checkpoint: it was not written by facelit.")
    if backbone is None:
        backbone = build_backbone(checkpoint.get("hyper_parameters", {}).get("backbone"), path)
    backbone = backbone.float().cpu()
    check_fits(backbone.state_dict(), weights, path, "its backbone")
    backbone.load_state_dict(weights)
    return backbone.eval()


def build_backbone(configured: Any, path: str) -> nn.Module:
    """Builds a backbone from a checkpoint's hyperparameters, with random weights; nothing is downloaded.

    Args:
        configured: `class_path` and `init_args`, whose values may be further networks in the same form.
        path: The file they were read from, for messages.

    Raises:
        FacelitError: It is not such a configuration, names a class that is not part of facelit, or the class rejects its
            arguments.
    """
    if not isinstance(configured, Mapping) or not isinstance(configured.get("class_path"), str):
        raise FacelitError(
            f"{path}: the checkpoint does not say how its backbone is built (it was not made from the command line). {_BUILD_IT}"
        )
    backbone_class = _find_class(configured["class_path"], path)
    arguments = {
        name: build_backbone(value, path) if isinstance(value, Mapping) and "class_path" in value else value
        for name, value in (configured.get("init_args") or {}).items()
    }
    if "weights" in arguments:
        arguments["weights"] = None
    try:
        with torch.random.fork_rng(
            devices=[]
        ):  # initial weights, soon overwritten, must not cost the caller's random state
            return backbone_class(**arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        raise FacelitError(f"{path}: its backbone {configured['class_path']} cannot be built ({error}).") from None


def _find_class(class_path: str, path: str) -> type[nn.Module]:
    """Finds a backbone class of facelit's; an untrusted checkpoint must not import or call anything else."""
    module, _, name = class_path.rpartition(".")
    found: Any = None
    if module.startswith("facelit."):
        try:
            found = getattr(import_module(module), name, None)
        except ImportError:
            found = None
    if not (isinstance(found, type) and issubclass(found, nn.Module) and found.__module__.startswith("facelit.")):
        raise FacelitError(f"{path}: its backbone is a {class_path}, which is not part of facelit. {_BUILD_IT}")
    return found
