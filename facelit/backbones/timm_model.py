"""Any timm model as a backbone (extra `facelit[timm]`)."""

from __future__ import annotations

import difflib
from importlib import import_module
from typing import Any, Literal

import torch
from torch import Tensor, nn

from facelit.backbones.channels import check_sizes
from facelit.backbones.neck import make_neck
from facelit.errors import FacelitError

_IMAGE_SIZE = 112


class TimmBackbone(nn.Module):
    """A timm model without its classifier, and a linear layer or the standard neck from its pooled features.

    Models built for a fixed size, such as vision transformers, are built for 112x112; timm resamples the positions in
    their weights.

    Weights from ImageNet and the like were trained on images with different normalisation and size; on 112x112 crops in
    [-1, 1] they are a starting point for training, not features to freeze.

    Args:
        name: the model's name in timm, without a tag, such as "mobilenetv4_conv_small".
        embedding_dim: the length of an embedding, D.
        weights: the tag of weights that timm has for the model, such as "e2400_r224_in1k", or "pretrained" for its
            default; they are downloaded. None starts from scratch.
        neck: "standard" is BN - dropout - linear - BN; None is a linear layer.
        dropout: fraction of the features that the standard neck zeroes in training; None is 0.

    Attributes:
        embedding_dim: the length of an embedding.

    Raises:
        FacelitError: if timm is not installed, there is no such model or weights, the weights cannot be downloaded, or
            the model does not take images of 112x112. From the forward pass in training with the standard neck, if N
            is 1.
    """

    def __init__(
        self,
        name: str = "mobilenetv4_conv_small",
        embedding_dim: int = 512,
        weights: str | None = None,
        neck: Literal["standard"] | None = None,
        dropout: float | None = None,
    ) -> None:
        super().__init__()
        check_sizes(embedding_dim=embedding_dim)
        self.embedding_dim = embedding_dim
        self.model = _build(name, weights)
        self.neck = make_neck("TimmBackbone", _count_features(name, self.model), embedding_dim, neck, dropout)

    def forward(self, images: Tensor) -> Tensor:
        """Embeds crops, (N, 3, 112, 112) floating-point RGB in [-1, 1], as (N, D), not normalised."""
        embeddings: Tensor = self.neck(self.model(images))
        return embeddings


def _build(name: str, weights: str | None) -> nn.Module:
    try:
        timm = import_module("timm")
    except ModuleNotFoundError as error:
        if error.name != "timm":
            raise
        raise FacelitError('TimmBackbone: the package timm is not installed: pip install "facelit[timm]"') from None
    _check_name(timm, name)
    if weights is not None:
        return _build_pretrained(timm, name, weights)
    try:
        return _create(timm, name)
    except (RuntimeError, ValueError, AssertionError, TypeError) as error:
        raise _wrong_size(name, str(error)) from error


def _check_name(timm: Any, name: str) -> None:
    """Accepts names only: timm also takes a hub's address or a folder, through which a checkpoint could choose what is loaded."""
    names = timm.list_models()
    if name in names:
        return
    architecture, _, tag = name.partition(".")
    if architecture in names:
        raise FacelitError(f"TimmBackbone: {name}: give the tag as weights: name: {architecture}, weights: {tag}")
    close = difflib.get_close_matches(name, names, n=5, cutoff=0.5)
    hint = f"did you mean {', '.join(close)}?" if close else "timm.list_models() lists them"
    raise FacelitError(f"TimmBackbone: timm has no model {name!r}; {hint}")


def _build_pretrained(timm: Any, name: str, weights: str) -> nn.Module:
    tags = [full.partition(".")[2] for full in timm.list_models(f"{name}.*", pretrained=True)]
    if weights not in (*tags, "pretrained") or not tags:
        choices = (
            f"there are: {', '.join(tags)}, pretrained (the default ones), null" if tags else "there are none: null"
        )
        raise FacelitError(f"TimmBackbone: {name} has no weights {weights!r}; {choices}")
    try:
        return _create(timm, name if weights == "pretrained" else f"{name}.{weights}", pretrained=True)
    except (ImportError, MemoryError):
        raise
    except Exception as error:  # the hub's client has changed its HTTP library, and so its exceptions, before
        reason = " ".join(str(error).split())[:200]
        raise FacelitError(
            f"TimmBackbone: weights: {weights} of {name} could not be downloaded or do not fit ({reason}); "
            "go online, put them into $HF_HOME, or set weights: null"
        ) from error


def _create(timm: Any, name: str, pretrained: bool = False) -> nn.Module:
    """The model without classifier; for 112x112 if it is built for a fixed size."""
    try:
        model: nn.Module = timm.create_model(name, pretrained=pretrained, num_classes=0, img_size=(_IMAGE_SIZE,) * 2)
    except TypeError:  # a network for any size has no such argument
        model = timm.create_model(name, pretrained=pretrained, num_classes=0)
    return model


def _count_features(name: str, model: nn.Module) -> int:
    """The number of pooled features, found by running the model on shapes alone (meta tensors)."""
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    shapes = {key: torch.empty_like(value, device="meta") for key, value in state.items()}
    images = torch.empty(1, 3, _IMAGE_SIZE, _IMAGE_SIZE, device="meta")
    training = model.training
    model.eval()  # in training batch normalisation rejects a single value per channel
    try:
        with torch.no_grad():
            features = torch.func.functional_call(model, shapes, (images,))
    except (RuntimeError, ValueError, AssertionError, TypeError) as error:
        raise _wrong_size(name, str(error)) from error
    finally:
        model.train(training)
    if not isinstance(features, Tensor) or features.ndim != 2:
        raise FacelitError(f"TimmBackbone: {name} does not return pooled features; choose another name")
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", 1)
    if any(_IMAGE_SIZE % side for side in (patch if isinstance(patch, tuple) else (patch,))):
        raise _wrong_size(name, f"it would ignore pixels beyond the last whole patch of {patch}")
    return features.shape[1]


def _wrong_size(name: str, reason: str) -> FacelitError:
    return FacelitError(
        f"TimmBackbone: {name} does not take images of {_IMAGE_SIZE}x{_IMAGE_SIZE} ({' '.join(reason.split())[:200] or 'no reason given'}); "
        "choose another name"
    )
