"""torchvision's classification models, whose last layer gives an embedding."""

from __future__ import annotations

from collections.abc import Iterator

from facelit.backbones import TorchvisionBackbone
from facelit.importing.kinds.kind import CLASSIFIER_NOTE, RANGES, Kind, Network, Published, State

_CLASSES = 1000
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked", "relative_position_index")
_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")
_PREFIX = "model."


def _networks(state: State, hint: str | None) -> Iterator[Network]:
    """The models with the same number of parameters below their last layer, which torchvision states for each."""
    import torchvision
    from torchvision.models import get_model_weights, list_models

    last = [value for name, value in state.items() if name.endswith(".weight") and value.ndim == 2][-1:]
    if not last:
        return
    outputs, features = last[0].shape
    count = sum(value.numel() for name, value in state.items() if not name.endswith(_BUFFERS))
    below = count - outputs * (features + 1)
    for name in list_models(module=torchvision.models):
        sets = list(get_model_weights(name))
        known = sets[0].meta["num_params"] - _CLASSES * (features + 1) if sets else None
        if name == hint or known == below:
            yield Network(f"{name} of torchvision", TorchvisionBackbone, {"name": name, "embedding_dim": int(outputs)})


def _names(state: State) -> State:
    return {f"{_PREFIX}{name}": value for name, value in state.items() if not name.startswith(_AUXILIARY)}


TORCHVISION = Kind(
    "torchvision",
    "",
    _networks,
    RANGES["imagenet"],
    assumed=True,
    convert=_names,
    published=(
        Published(
            "torchvision's models",
            "ResNet, MobileNet, EfficientNet, ... with a last layer for embeddings",
            "https://github.com/pytorch/vision",
            "BSD-3-Clause (code)",
            "ImageNet, unless trained on",
            "none: not trained on faces",
            "facelit import resnet50_on_faces.pth resnet50.ckpt",
        ),
    ),
    notes=(CLASSIFIER_NOTE,),
)
