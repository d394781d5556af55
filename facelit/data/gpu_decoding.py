"""Decodes a batch of JPEGs on the GPU."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable

import numpy as np
import simplejpeg
import torch
from torch import Tensor

from facelit.data.batches import TrainBatch, as_tensor
from facelit.data.reading import CropReader, EncodedCrops
from facelit.errors import FacelitError
from facelit.storage.images import CROP_SIZE, Crop

Decode = Callable[[list[bytes], torch.device], list[Tensor]]
"""Decodes JPEGs on a device to the RGB pixels of each, uint8 (3, height, width)."""

_log = logging.getLogger(__name__)


class GpuDecoder:
    """Decodes batches with TorchCodec if it works, else with torchvision.

    nvJPEG rounds differently from libjpeg-turbo: pixels may differ by a few levels from those decoded by workers.

    Args:
        reader: Reads a batch again if something is wrong with it.
        device: The device of the batches.

    Attributes:
        name: The name of the decoder.

    Raises:
        FacelitError: Neither decoder works on this device.
    """

    def __init__(self, reader: CropReader, device: torch.device) -> None:
        self.reader = reader
        self.name, self._decode_jpegs = _find_decoder(device)
        self._warned = False

    def decode(self, batch: TrainBatch, crops: EncodedCrops) -> TrainBatch:
        """Replaces JPEGs with pixels, on the labels' device.

        A batch that cannot be decoded is read again on the CPU, which names the bad image or replaces it.

        Args:
            batch: The workers' batch, with its tensors on the device.
            crops: Its images.

        Returns:
            The batch with `images` uint8 (N, 3, 112, 112) in the channels-last memory format.

        Raises:
            BadImageError: An image cannot be decoded, and bad images are not skipped.
            torch.OutOfMemoryError: The pixels do not fit on the device.
        """
        device = batch.labels.device
        try:
            return batch._replace(images=self._pixels(crops, device))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            images, labels, bad = self.reader.read(crops.indices)
            self._warn_if_nothing_is(bad, error)
            assert isinstance(images, np.ndarray)
            pixels = as_tensor(images).to(device)
            return batch._replace(images=pixels, labels=torch.from_numpy(labels).to(device), bad=bad)

    def _pixels(self, crops: EncodedCrops, device: torch.device) -> Tensor:
        images = [None if isinstance(file, bytes) else _to_chw(file, device) for file in crops.files]
        jpegs = [file for file in crops.files if isinstance(file, bytes)]
        decoded = iter(self._decode_jpegs(jpegs, device) if jpegs else [])
        whole = [next(decoded) if image is None else image for image in images]
        return torch.stack(whole).contiguous(memory_format=torch.channels_last)

    def _warn_if_nothing_is(self, bad: object, error: RuntimeError) -> None:
        if not bad and not self._warned:
            self._warned = True
            _log.warning(
                "data.decode_on_gpu: %s failed to decode a batch in which the CPU finds nothing wrong (%s). The main process"
                " decoded it; this is slow, and will not be reported again.",
                self.name,
                _first_line(error),
            )


def _find_decoder(device: torch.device) -> tuple[str, Decode]:
    """Finds the first decoder that works on the device; returns its name and function."""
    failures = []
    for name, load in (("TorchCodec", _torchcodec), ("torchvision", _torchvision)):
        try:
            decode = load()
            _try(decode, device)
        except torch.OutOfMemoryError:
            raise
        except (ImportError, RuntimeError) as error:  # not installed, or missing its own libraries
            failures.append(f"{name}: {_first_line(error)}")
        else:
            return name, decode
    raise FacelitError(
        f"data.decode_on_gpu: no installed decoder works on {device} ({'; '.join(failures)}). Install TorchCodec for this"
        " CUDA version (pip install 'torchcodec>=0.17'), or turn the option off."
    )


def _try(decode: Decode, device: torch.device) -> None:
    grey = np.full((CROP_SIZE, CROP_SIZE, 3), 128, np.uint8)
    (pixels,) = decode([simplejpeg.encode_jpeg(grey)], device)
    if pixels.device.type != device.type or pixels.shape != (3, CROP_SIZE, CROP_SIZE):
        raise RuntimeError(f"returns pixels {tuple(pixels.shape)} on {pixels.device}")


def _torchcodec() -> Decode:
    from torchcodec.decoders import decode_jpeg

    def decode(jpegs: list[bytes], device: torch.device) -> list[Tensor]:
        decoded: list[Tensor] = decode_jpeg(jpegs, mode="RGB", device=device)
        return decoded

    return decode


def _torchvision() -> Decode:
    from torchvision.io import ImageReadMode, decode_jpeg

    def decode(jpegs: list[bytes], device: torch.device) -> list[Tensor]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecated since 0.29, in favour of TorchCodec
            inputs = [torch.frombuffer(bytearray(jpeg), dtype=torch.uint8) for jpeg in jpegs]
            decoded: list[Tensor] = decode_jpeg(inputs, ImageReadMode.RGB, device=device)
        return decoded

    return decode


def _to_chw(pixels: Crop, device: torch.device) -> Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1).to(device)


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
