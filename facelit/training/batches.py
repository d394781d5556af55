"""What a step is given: facelit's own batches, or the (images, labels) of anybody's DataLoader."""

from __future__ import annotations

import torch
from pytorch_lightning.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from facelit.data.batches import EvalBatch, TrainBatch
from facelit.errors import FacelitError

_LARGEST = 1.01  # of an image in [-1, 1], whatever rounding it has gone through


def training_batch(batch: object, first: bool) -> TrainBatch:
    """Takes a training batch for what it is.

    Args:
        batch: A `TrainBatch`; or a tuple or list of two tensors, images float (N, 3, 112, 112) in [-1, 1] and labels (N,) of
            any integer dtype.
        first: Whether it is the first of an epoch, whose values are looked at.

    Returns:
        The batch, its labels int64.

    Raises:
        FacelitError: It is neither of them.
    """
    if isinstance(batch, TrainBatch):
        _check_images(batch.images)
        return batch
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise FacelitError(
            f"FaceRecognizer trains on batches of (images, labels), a tuple or list of two tensors; this DataLoader yields"
            f" {_describe(batch)}. Let the dataset return those two, or pass a collate_fn."
        )
    images, labels = batch
    pixels = _check_images(images)
    if first:
        _warn_of_range(pixels)
    if not isinstance(labels, Tensor):
        raise FacelitError(f"the labels must be a tensor of integers, not {_describe(labels)}.")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise FacelitError(f"the labels are {_dtype(labels)}; they must be integers, the identities counted from 0.")
    if labels.shape != pixels.shape[:1]:
        raise FacelitError(
            f"a batch has labels of shape {tuple(labels.shape)} for images of shape {tuple(pixels.shape)}: it needs one label"
            " for each image."
        )
    return TrainBatch(pixels, labels.long(), draws=labels.new_empty(0))


def images_of(batch: object, first: bool) -> Tensor:
    """The images of a batch to embed.

    Args:
        batch: An `EvalBatch`; or images, float (N, 3, 112, 112) in [-1, 1], alone or as the first of a tuple or list.
        first: Whether it is the first of its DataLoader, whose values are looked at.

    Raises:
        FacelitError: It is neither of them.
    """
    if isinstance(batch, EvalBatch):
        return _check_images(batch.images)
    if isinstance(batch, (tuple, list)) and batch:
        batch = batch[0]
    if not isinstance(batch, Tensor):
        raise FacelitError(
            "FaceRecognizer embeds images, alone or as the first of a tuple or list; this DataLoader yields"
            f" {_describe(batch)}. Let the dataset return such, or pass a collate_fn."
        )
    pixels = _check_images(batch)
    if first:
        _warn_of_range(pixels)
    return pixels


def _check_images(images: object) -> Tensor:
    if not isinstance(images, Tensor):
        raise FacelitError(f"the images must be a tensor of floats in [-1, 1], not {_describe(images)}.")
    if not images.is_floating_point():
        raise FacelitError(
            f"the images are {_dtype(images)}; FaceRecognizer takes floats in [-1, 1]. From bytes: images.float() / 127.5 - 1"
            " (FaceDataModule's loaders need their data module, which does this: trainer.fit(model, datamodule))."
        )
    return images


def _warn_of_range(images: Tensor) -> None:
    """Pixels in other units train all the same, and badly; and what the network embeds later is in [-1, 1]."""
    largest = float(images.detach().abs().amax()) if images.numel() else 0.0
    if largest > _LARGEST:
        rank_zero_warn(
            f"The images have values up to {largest:.3g} in size. FaceRecognizer expects [-1, 1], which is also what"
            " facelit's other commands give a trained network: scale bytes by images.float() / 127.5 - 1.",
            category=UserWarning,
        )


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _describe(value: object) -> str:
    """What something is, in a few words: "a tuple of 3"."""
    name = type(value).__name__
    article = "an" if name[0] in "aeiou" else "a"
    return f"{article} {name} of {len(value)}" if isinstance(value, (tuple, list, dict)) else f"{article} {name}"
