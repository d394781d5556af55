"""Any torchvision classification model as a backbone."""

import difflib
from collections.abc import Callable
from typing import Any, Literal

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import SqueezeNet, VisionTransformer, get_model, get_model_builder, get_model_weights

from facelit.backbones.channels import check_sizes
from facelit.backbones.neck import make_neck
from facelit.errors import FacelitError

_IMAGE_SIZE = 112


class TorchvisionBackbone(nn.Module):
    """A torchvision classification model whose last layer returns an embedding.

    The last linear layer is replaced by one with embedding_dim outputs, or by the standard neck. Auxiliary classifiers
    are removed.

    ImageNet weights were trained on images with different normalisation (ImageNet's mean and standard deviation for each
    channel) and mostly of another size; on 112x112 crops in [-1, 1] they are a starting point for training, not features
    to freeze.

    Args:
        name: the model's name in torchvision, such as "resnet50" or "mobilenet_v3_small".
        embedding_dim: the length of an embedding, D.
        weights: the name of weights that torchvision has for the model, such as "IMAGENET1K_V2", or "imagenet" for its
            default; they are downloaded. None starts from scratch.
        neck: "standard" is BN - dropout - linear - BN in place of the last linear layer.
        dropout: fraction of the features that the standard neck zeroes in training; None is 0. (Some models have their
            own dropout before it.)

    Attributes:
        embedding_dim: the length of an embedding.

    Raises:
        FacelitError: if there is no such model, weights or neck, the weights cannot be downloaded, or the model does not
            take images of 112x112. From the forward pass in training with the standard neck, if N is 1.
    """

    def __init__(
        self,
        name: str = "resnet50",
        embedding_dim: int = 512,
        weights: str | None = None,
        neck: Literal["standard"] | None = None,
        dropout: float | None = None,
    ) -> None:
        super().__init__()
        check_sizes(embedding_dim=embedding_dim)
        self.embedding_dim = embedding_dim
        self.model = _build(name, weights)
        _remove_auxiliary_classifiers(self.model)
        _replace_last_layer(
            self.model, lambda features: make_neck("TorchvisionBackbone", features, embedding_dim, neck, dropout)
        )
        _check_image_size(name, self.model)

    def forward(self, images: Tensor) -> Tensor:
        """Embeds crops, (N, 3, 112, 112) floating-point RGB in [-1, 1], as (N, D), not normalised."""
        embeddings: Tensor = self.model(images)
        return embeddings


def _build(name: str, weights: str | None) -> nn.Module:
    """The model as torchvision builds it, for 112x112 where its builder has that option."""
    _check_name(name)
    if weights is not None:
        return _build_pretrained(name, weights)
    options: dict[str, Any] = {}
    if get_model_builder(name).__module__ == VisionTransformer.__module__:
        options["image_size"] = _IMAGE_SIZE
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = True  # torchvision warns if this is left at its default
    try:
        model: nn.Module = get_model(name, weights=None, **options)
    except (RuntimeError, ValueError, AssertionError) as error:
        raise _wrong_size(name, error) from error
    return model


def _build_pretrained(name: str, weights: str) -> nn.Module:
    available = get_model_weights(name)
    chosen = "DEFAULT" if weights == "imagenet" else weights
    if chosen not in available.__members__:
        raise FacelitError(
            f"TorchvisionBackbone: {name} has no weights {weights!r}; there are: "
            f"{', '.join(available.__members__)}, imagenet (the default ones), null"
        )
    try:
        model: nn.Module = get_model(name, weights=available[chosen])
    except (OSError, RuntimeError) as error:
        raise FacelitError(
            f"TorchvisionBackbone: weights: {weights} could not be downloaded from "
            f"{available[chosen].url} ({error}); "
            "go online, put the file into $TORCH_HOME/hub/checkpoints, or set weights: null"
        ) from error
    return model


def _check_name(name: str) -> None:
    names = torchvision.models.list_models(module=torchvision.models)
    if name not in names:
        close = difflib.get_close_matches(name, names, n=5, cutoff=0.5)
        hint = f"did you mean {', '.join(close)}?" if close else f"there are: {', '.join(names)}"
        raise FacelitError(f"TorchvisionBackbone: torchvision has no classification model {name!r}; {hint}")


def _remove_auxiliary_classifiers(model: nn.Module) -> None:
    """GoogLeNet and Inception: a single output even in training, and no second normalisation of the input."""
    for attribute, value in {
        "aux_logits": False,
        "aux1": None,
        "aux2": None,
        "AuxLogits": None,
        "transform_input": False,  # into [-1, 1], where crops already are
    }.items():
        if hasattr(model, attribute):
            setattr(model, attribute, value)


def _replace_last_layer(model: nn.Module, make_layer: Callable[[int], nn.Module]) -> None:
    if isinstance(model, SqueezeNet):  # its last layer is a convolution, followed by ReLU and pooling
        dropout, convolution = model.classifier[0], model.classifier[1]
        last_layer = make_layer(convolution.in_channels)
        model.classifier = nn.Sequential(dropout, nn.AdaptiveAvgPool2d(1), nn.Flatten(), last_layer)
        return
    *_, (path, last) = ((path, part) for path, part in model.named_modules() if isinstance(part, nn.Linear))
    parent, _, attribute = path.rpartition(".")
    setattr(model.get_submodule(parent), attribute, make_layer(last.in_features))


def _check_image_size(name: str, model: nn.Module) -> None:
    """Runs the model on shapes alone (meta tensors), without arithmetic and without touching its weights."""
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    shapes = {key: torch.empty_like(value, device="meta") for key, value in state.items()}
    images = torch.empty(1, 3, _IMAGE_SIZE, _IMAGE_SIZE, device="meta")
    training = model.training
    model.eval()  # in training batch normalisation rejects a single value per channel
    try:
        with torch.no_grad():
            torch.func.functional_call(model, shapes, (images,))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise _wrong_size(name, error) from error
    finally:
        model.train(training)


def _wrong_size(name: str, error: Exception) -> FacelitError:
    return FacelitError(
        f"TorchvisionBackbone: {name} does not take images of {_IMAGE_SIZE}x{_IMAGE_SIZE} ({error}); "
        "choose another name, such as resnet50 (a vision transformer's weights fit its original size only)"
    )
