"""The setup of the training benchmarks: facelit's own networks, heads, loaders and optimizers, and crops that are free to read."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from pytorch_lightning import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from facelit import FaceRecognizer
from facelit.backbones import VGG16, TorchvisionBackbone
from facelit.data import FaceDataModule, IdentityBalancedSampler, IdentityFolder
from facelit.data.batches import TrainBatch
from facelit.data.sources import IdentitySource
from facelit.heads import CenterLossHead, Head, SoftmaxHead, TripletHead
from facelit.speed.hardware import allow_tf32
from facelit.storage.images import Crop

BACKBONES = ("vgg16", "vgg16_bn", "resnet50")
HEADS = ("softmax", "center", "triplet")
IDENTITIES = (8_631, 85_742, 360_232)
"""VGGFace2's training part, MS1MV2, Glint360K."""
EMBEDDING_DIM, IMAGES_PER_IDENTITY = 512, 4
GRADIENT_CLIP = 5.0
"""As in configs/center.yaml."""
PRECISIONS = {"32": "32-true", "bf16": "bf16-mixed"}
"""Lightning's names for them."""
DTYPES = {"32": torch.float32, "bf16": torch.bfloat16}


class Setting(NamedTuple):
    """One configuration: `width` scales VGG16's channels (ResNet-50 has one width), `precision` is a key of `DTYPES`."""

    backbone: str
    head: str
    identities: int
    batch: int
    width: float
    precision: str
    device: str
    compiled: bool = False
    workers: int = 0

    @property
    def name(self) -> str:
        """The name in tables; triplets do not depend on the number of identities."""
        return (
            f"{self.backbone}, {self.head}"
            if self.head == "triplet"
            else f"{self.backbone}, {self.head}, {self.identities:,}"
        )


def make_backbone(name: str, width: float) -> nn.Module:
    """A network with random weights."""
    if name == "resnet50":
        return TorchvisionBackbone("resnet50", EMBEDDING_DIM)
    return VGG16(EMBEDDING_DIM, batch_norm=name == "vgg16_bn", width=width)


def make_head(name: str, identities: int) -> Head:
    """A head with facelit's defaults."""
    if name == "triplet":
        return TripletHead()
    return (CenterLossHead if name == "center" else SoftmaxHead)(identities, EMBEDDING_DIM)


def make_recognizer(setting: Setting) -> FaceRecognizer:
    """Backbone, head and optimizers as `fit` sets them up, on the device, with a trainer that never runs."""
    optimizer = functools.partial(torch.optim.SGD, lr=1e-3, momentum=0.9, weight_decay=5e-4)
    torch.manual_seed(0)
    backbone, head = make_backbone(setting.backbone, setting.width), make_head(setting.head, setting.identities)
    recognizer = FaceRecognizer(backbone, head, optimizer=optimizer, compile=setting.compiled)
    recognizer.trainer = quiet_trainer(setting)
    return recognizer.to(setting.device).train()


def quiet_trainer(setting: Setting, **options: Any) -> Trainer:
    """A trainer with everything optional off, on one device; cuDNN times its kernels, as under `fit`."""
    silence_lightning()
    off = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary", "use_distributed_sampler"),
        False,
    )
    precision = PRECISIONS[setting.precision]
    allow_tf32(setting.device, precision)  # as under `fit`
    return Trainer(
        accelerator=setting.device,
        devices=1,
        precision=precision,
        **({"benchmark": setting.device == "cuda"} | off | options),
    )


def silence_lightning() -> None:
    """Keeps Lightning's messages out of the tables."""
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)


def network_optimizer(recognizer: FaceRecognizer) -> torch.optim.Optimizer:
    """Makes the network's optimizer, and the head's own, if any, as `recognizer.head_optimizer`."""
    configured = recognizer.configure_optimizers()
    assert isinstance(configured, dict)
    optimizer: torch.optim.Optimizer = configured["optimizer"]
    return optimizer


def autocast(setting: Setting) -> AbstractContextManager[object]:
    """The precision plugin's part of a step."""
    if setting.precision == "32":
        return nullcontext()
    return torch.autocast(setting.device, DTYPES[setting.precision])


class MemoryCrops(IdentitySource):
    """Random crops in memory, labelled with a given number of identities.

    Args:
        batch: Images per batch.
        num_identities: The number of identities that labels are spread over.
        batches: Batches per epoch.
    """

    def __init__(self, batch: int, num_identities: int, batches: int = 8) -> None:
        rng = np.random.default_rng(0)
        self._crops = rng.integers(0, 256, (2 * batch, 112, 112, 3), np.uint8)
        groups = np.arange(batch * batches) // IMAGES_PER_IDENTITY
        self._labels = (groups * max(1, num_identities // (int(groups[-1]) + 1)) % num_identities).astype(np.int64)
        self._num_identities = num_identities

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """Four images in a row of each identity, shape (batch * batches,)."""
        return self._labels

    @property
    def num_identities(self) -> int:
        """The requested number, whether or not all have images."""
        return self._num_identities

    @property
    def identities(self) -> Sequence[str]:
        """Their numbers."""
        return [str(number) for number in range(self._num_identities)]

    def image(self, index: int) -> Crop:
        """One of two batches of crops."""
        crop: Crop = self._crops[index % len(self._crops)]
        return crop

    def name(self, index: int) -> str:
        """Its number."""
        return str(index)


class RepeatedCrops(IdentityFolder):
    """A pack read repeatedly, as if it held a given number of images and identities, for a very long epoch.

    Reading and decoding are real; the labels are not. (The crops of a small pack stay in the page cache, and so would those of
    VGGFace2, 20 GB, on a machine with memory to spare.)

    Args:
        root: As for `IdentityFolder`.
        num_images: The number of images in the set.
        identities_of_set: The number of identities in the set.
    """

    def __init__(self, root: str, num_images: int = 3_137_807, identities_of_set: int = 8_631) -> None:
        super().__init__(root)
        self._stored = len(self.store)
        self._rows = np.arange(num_images, dtype=np.int64) % self._stored
        self._labels = np.arange(num_images, dtype=np.int32) // IMAGES_PER_IDENTITY % identities_of_set
        self._identities = [f"identity_{number:06d}" for number in range(identities_of_set)]


def make_data(source: IdentitySource, setting: Setting) -> FaceDataModule:
    """The data module of facelit, with P x K batches for triplets."""
    if setting.head == "triplet":
        sampler = IdentityBalancedSampler(setting.batch // IMAGES_PER_IDENTITY, IMAGES_PER_IDENTITY)
        return FaceDataModule(source, sampler=sampler, num_workers=setting.workers)
    return FaceDataModule(source, batch_size=setting.batch, num_workers=setting.workers)


def endless(loader: DataLoader[TrainBatch]) -> Iterator[TrainBatch]:
    """Yields the batches of one epoch after another."""
    while True:
        yield from loader


def on_device(batch: TrainBatch, data: FaceDataModule, device: torch.device) -> TrainBatch:
    """Transfers a batch and applies the data module's changes: float32 images in [-1, 1], augmented."""
    assert isinstance(batch.images, Tensor)
    images, labels, draws = (
        tensor.to(device, non_blocking=True) for tensor in (batch.images, batch.labels, batch.draws)
    )
    ready: TrainBatch = data.on_after_batch_transfer(batch._replace(images=images, labels=labels, draws=draws), 0)
    return ready
