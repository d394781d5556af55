"""Decoding a batch of JPEGs on the GPU."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor

from facelit.data.batches import TrainBatch, as_tensor
from facelit.data.reading import CropReader, EncodedCrops
from facelit.errors import FacelitError
from facelit.storage.images import Crop


def decode_batch(batch: TrainBatch, crops: EncodedCrops, reader: CropReader) -> TrainBatch:
    """Replaces JPEGs by pixels, on the device that the labels are on.

    nvJPEG rounds otherwise than libjpeg-turbo: pixels may differ by a few levels from those that the workers decode. A
    batch that it cannot decode is read once more on the CPU, which names the image, or replaces it.

    Args:
        batch: As the workers made it, its tensors on the device.
        crops: Its images.
        reader: Reads the batch again where something is wrong with it.

    Returns:
        The batch, `images` uint8 (N, 3, 112, 112) in channels_last order.

    Raises:
        BadImageError: An image cannot be decoded, and is not to be skipped.
    """
    device = batch.labels.device
    try:
        return batch._replace(images=_decode(crops, device))
    except RuntimeError:
        images, labels, bad = reader.read(crops.indices)
        assert isinstance(images, np.ndarray)
        pixels = as_tensor(images).to(device)
        return batch._replace(images=pixels, labels=torch.from_numpy(labels).to(device), bad=bad)


def _decode(crops: EncodedCrops, device: torch.device) -> Tensor:
    images: list[Tensor | None] = [None if isinstance(file, bytes) else _to_chw(file, device) for file in crops.files]
    jpegs = [file for file in crops.files if isinstance(file, bytes)]
    decoded = iter(_decode_jpegs(jpegs, device) if jpegs else [])
    whole = [next(decoded) if image is None else image for image in images]
    return torch.stack(whole).contiguous(memory_format=torch.channels_last)


def _decode_jpegs(jpegs: list[bytes], device: torch.device) -> list[Tensor]:
    """RGB pixels of each, uint8 (3, 112, 112), by TorchCodec where it is installed, else by torchvision."""
    try:
        from torchcodec.decoders import decode_jpeg as decode
    except (ImportError, RuntimeError):  # absent, or without the libraries that it wants
        return _decode_with_torchvision(jpegs, device)
    decoded: list[Tensor] = decode(jpegs, mode="RGB", device=device)
    return decoded


def _decode_with_torchvision(jpegs: list[bytes], device: torch.device) -> list[Tensor]:
    try:
        from torchvision.io import ImageReadMode, decode_jpeg
    except ImportError:
        raise FacelitError(
            "data.decode_on_gpu needs TorchCodec with this torchvision: pip install 'torchcodec>=0.17'"
        ) from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated since 0.29, in favour of TorchCodec
        inputs = [torch.frombuffer(bytearray(jpeg), dtype=torch.uint8) for jpeg in jpegs]
        decoded: list[Tensor] = decode_jpeg(inputs, ImageReadMode.RGB, device=device)
    return decoded


def _to_chw(pixels: Crop, device: torch.device) -> Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1).to(device)
