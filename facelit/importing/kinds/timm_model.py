"""timm's models, whose classifier gives an embedding (extra `facelit[timm]`)."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Any

from facelit.backbones import TimmBackbone
from facelit.importing.kinds.kind import CLASSIFIER_NOTE, RANGES, Kind, Network, Published, State

_CLASSIFIERS = ("head.fc.", "head.linear.", "classifier.", "fc.", "head.")
"""Names of the last layers in timm's configurations, longer ones first."""


def _names(state: State) -> State:
    """Facelit's `TimmBackbone` keeps the classifier as its neck."""
    prefix = next((one for one in _CLASSIFIERS if f"{one}weight" in state and state[f"{one}weight"].ndim == 2), None)
    if prefix is None:
        return {}
    return {
        f"neck.{name.removeprefix(prefix)}" if name.startswith(prefix) else f"model.{name}": value
        for name, value in state.items()
    }


def _networks(state: State, hint: str | None) -> Iterator[Network]:
    """The model named in the file; otherwise all models with matching first and last layers, which takes a while."""
    if "neck.weight" not in state:
        return
    try:
        timm: Any = import_module("timm")
    except ModuleNotFoundError:
        return
    dim = int(state["neck.weight"].shape[0])
    names = timm.list_models()
    if hint is not None:
        name = hint.partition(".")[0]
        names = [name] if name in names else []
    for name in names:
        config = timm.get_pretrained_cfg(name, allow_unregistered=True)
        if config is not None and all(f"model.{one}.weight" in state for one in _first_layers(config)):
            yield Network(f"{name} of timm", TimmBackbone, {"name": name, "embedding_dim": dim})


def _first_layers(config: Any) -> list[str]:
    first = config.first_conv
    return [str(one) for one in first] if isinstance(first, tuple | list) else [str(first)]


TIMM = Kind(
    "timm",
    "",
    _networks,
    RANGES["imagenet"],
    assumed=True,
    convert=_names,
    published=(
        Published(
            "timm's models",
            "any that takes 112x112, with a classifier for embeddings",
            "https://github.com/huggingface/pytorch-image-models",
            "differs",
            "ImageNet and others, unless trained on",
            "none: not trained on faces",
            "facelit import model.safetensors mine.ckpt --architecture mobilenetv4_conv_small",
        ),
    ),
    notes=(CLASSIFIER_NOTE,),
)
