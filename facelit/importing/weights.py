"""Reads other people's weights safely, whatever they are wrapped in."""

from __future__ import annotations

import json
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from facelit.checkpoints import CHECKPOINT_KEY, UNREADABLE
from facelit.errors import FacelitError
from facelit.storage.downloads import what_lies_instead

_WRAPPERS = ("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.", "encoder.", "student.")
"""Prefixes that DataParallel, torch.compile, Lightning modules and the like put before the names of the network they hold."""


class View(NamedTuple):
    """Weights with a prefix removed from their names.

    Attributes:
        prefix: The removed prefix, such as "model."; may be empty.
        state: Parameters and buffers by name.
        left_out: Names without the prefix.
    """

    prefix: str
    state: dict[str, Tensor]
    left_out: list[str]


class Weights(NamedTuple):
    """The weights in a file.

    Attributes:
        state: Parameters and buffers by name, as in the file.
        key: The key of the weights in the file, such as "state_dict"; empty if they are the whole file.
        others: The keys of further sets of weights.
        metadata: Texts stored with the weights (in a .safetensors), and the architecture's name if the file has it.
    """

    state: dict[str, Tensor]
    key: str
    others: list[str]
    metadata: dict[str, str]

    def views(self) -> Iterator[View]:
        """The weights unchanged, and without each prefix that wrappers put before names, outermost first."""
        pending = [View("", self.state, [])]
        while pending:
            view = pending.pop(0)
            yield view
            for wrapper in _WRAPPERS:
                inner = {name.removeprefix(wrapper): v for name, v in view.state.items() if name.startswith(wrapper)}
                if inner:
                    rest = [view.prefix + name for name in view.state if not name.startswith(wrapper)]
                    pending.append(View(view.prefix + wrapper, inner, view.left_out + rest))


def read_weights(path: Path | str, key: str | None = None) -> Weights:
    """Reads a torch file (`.pth`, `.pt`, `.ckpt`, `.tar`, ...) or a `.safetensors`; nothing in the file is executed.

    Args:
        path: The file.
        key: Which of several sets of weights in it; by default the one with the most tensors.

    Raises:
        FacelitError: The file does not exist, is damaged, holds more than weights, or none; or there is no such set.
    """
    path = Path(path)
    if not path.is_file():
        raise FacelitError(
            f"file not found: {path}" if not path.is_dir() else f"{path} is a folder: name the file in it."
        )
    if path.suffix == ".safetensors":
        state, metadata = _read_safetensors(path)
        return Weights(state, "", [], _architecture_beside(path) | metadata)
    content = _load(path)
    found = {place: state for place, state in _states(content, "")}
    if not found:
        raise FacelitError(f"{path}: there are no weights in this file ({_describe(content)}).")
    if key is not None and key not in found:
        raise FacelitError(f"{path}: there are no weights under {key} (option key): {', '.join(filter(None, found))}.")
    chosen = key if key is not None else max(found, key=lambda place: len(found[place]))
    architecture = content.get("arch") if isinstance(content, Mapping) else None
    metadata = {"architecture": architecture} if isinstance(architecture, str) else _architecture_beside(path)
    return Weights(found[chosen], chosen, [place for place in found if place != chosen], metadata)


def _architecture_beside(path: Path) -> dict[str, str]:
    """The network's name in timm, from a `config.json` next to the weights."""
    try:
        config = json.loads((path.parent / "config.json").read_text(encoding="utf-8"))
        return {"architecture": str(config["architecture"])}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def is_checkpoint(path: Path | str) -> bool:
    """Whether a file is a facelit checkpoint; False if it cannot be read."""
    path = Path(path)
    if not path.is_file() or path.suffix.lower() in (".onnx", ".safetensors", ".pt2"):
        return False
    try:
        content = _load(path)
    except FacelitError:
        return False
    return isinstance(content, Mapping) and "state_dict" in content and CHECKPOINT_KEY in content


def _load(path: Path) -> Any:
    if path.stat().st_size == 0:
        raise FacelitError(f"{path}: this file is empty.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on pickle protocols and TorchScript: what cannot be read is an error
            return torch.load(path, weights_only=True, map_location="cpu", mmap=zipfile.is_zipfile(path))
    except UNREADABLE as error:
        raise FacelitError(f"{path}: {_explain(str(error), path)}") from None


def _explain(message: str, path: Path) -> str:
    """Torch's page of advice in one line, with what to do."""
    strange = re.search(r"GLOBAL ([\w.]+)", message)
    if strange:
        return (
            f"this file holds more than weights ({strange.group(1)}): loading it could run its author's code, which facelit never"
            " does. If you trust it, extract the weights with the program that wrote it:"
            f" python -c \"import torch; c = torch.load('{path.name}', weights_only=False, map_location='cpu');"
            " torch.save(c.state_dict() if hasattr(c, 'state_dict') else c['state_dict'], 'weights.pt')\""
        )
    if "TorchScript" in message:
        return (
            "this is a TorchScript program, not weights. Extract them:"
            f" python -c \"import torch; torch.save(torch.jit.load('{path.name}').state_dict(), 'weights.pt')\""
        )
    reason = what_lies_instead(path) or next((line.strip() for line in message.splitlines() if line.strip()), "")[:100]
    return f"not a torch file of weights, or truncated or damaged ({reason or 'it ends too early'})."


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        safetensors: Any = import_module("safetensors")
    except ModuleNotFoundError:
        raise FacelitError(f'{path}: the package safetensors is not installed: pip install "facelit[export]"') from None
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118  # not a dict
    except (safetensors.SafetensorError, OSError) as error:
        raise FacelitError(f"{path}: this .safetensors is truncated or damaged ({error}).") from None


def _states(content: Any, place: str) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """All mappings of names to tensors in a nested file."""
    if not isinstance(content, Mapping):
        return
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if any(value.is_floating_point() and value.ndim > 1 for value in tensors.values()):
        yield place, tensors
    for name, value in content.items():
        if name not in ("optimizer", "optimizer_states", "optim"):
            yield from _states(value, f"{place}.{name}" if place else str(name))


def _describe(content: Any) -> str:
    if isinstance(content, Mapping):
        names = ", ".join(str(name) for name in list(content)[:5])
        return f"a dict of {names}{', ...' if len(content) > 5 else ''}" if content else "an empty dict"
    return f"a {type(content).__name__}"
