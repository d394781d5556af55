"""Training steps on a device that is not there: shapes, dtypes and devices of every tensor are tracked, numbers are not.

torch lets Python register a device of its own (`privateuseone`) and, under FakeTensorMode, runs everything but the
kernels on it. As on a GPU, tensors of two devices do not mix. What would wait for the device has no answer here, and raises:
numbers that are read, shapes that depend on numbers, copies between device and host.

The registration holds for a whole process, so this file runs as a program of its own. It prints a JSON object: by the name
of each case null, or what went wrong.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from facelit import FaceRecognizer, backbones, heads
from facelit.callbacks.finite_loss import StopOnNonFiniteLoss
from facelit.data import Augmentation, FaceDataModule
from facelit.data.augmentation import DRAWS_PER_IMAGE
from facelit.data.batches import EvalBatch, TrainBatch
from facelit.heads import CenterTerm, Head, HeadOutput
from facelit.speed.fusing import StepWatch, fuse
from facelit.training import sharding
from facelit.training.loss import apply_head
from facelit.training.optimization import default_optimizer
from facelit.training.resizing import shrunk
from facelit.verification import PairVerification

DEVICE = "fakegpu"
IDENTITIES, EMBEDDING, BATCH = 6, 8, 6
EVERYTHING = Augmentation(
    rotate=10,
    scale=0.1,
    shift=0.1,
    brightness=0.1,
    contrast=0.1,
    grayscale=0.1,
    erase=0.1,
    crop=0.1,
    saturation=0.1,
    blur=0.1,
    low_resolution=0.1,
)


class OneLayer(nn.Sequential):
    """The least that gives embeddings."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, EMBEDDING, 112), nn.Flatten())


class SmallNetwork(nn.Sequential):
    """All that a backbone consists of, in six layers."""

    def __init__(self) -> None:
        layers = nn.Conv2d(3, 4, 5, stride=4), nn.BatchNorm2d(4), nn.PReLU(4), nn.Dropout(0.2), nn.Flatten()
        super().__init__(*layers, nn.Linear(2916, EMBEDDING))


BACKBONES: dict[str, Callable[[], nn.Module]] = {
    "vgg16": lambda: backbones.VGG16(EMBEDDING, width=0.01),
    "vgg16_bn": lambda: backbones.VGG16(EMBEDDING, width=0.01, batch_norm=True, neck="standard"),
    "iresnet": lambda: backbones.IResNet(18, EMBEDDING, width=0.05),
    "mobilefacenet": lambda: backbones.MobileFaceNet(EMBEDDING, width=0.05),
    "torchvision": lambda: backbones.TorchvisionBackbone("resnet18", EMBEDDING),
    "timm": lambda: backbones.TimmBackbone("resnet10t", EMBEDDING),
}
HEADS: dict[str, Callable[[], Head]] = {
    "softmax": lambda: heads.SoftmaxHead(IDENTITIES, EMBEDDING),
    "softmax_smoothed": lambda: heads.SoftmaxHead(IDENTITIES, EMBEDDING, label_smoothing=0.1),
    "softmax_sampled": lambda: heads.SoftmaxHead(IDENTITIES, EMBEDDING, sample_rate=0.5),
    "softmax_sharded": lambda: _allocated(heads.SoftmaxHead(IDENTITIES, EMBEDDING, sharded=True)),
    "center": lambda: heads.CenterLossHead(IDENTITIES, EMBEDDING),
    "center_sharded": lambda: _allocated(heads.CenterLossHead(IDENTITIES, EMBEDDING, sharded=True)),
    "arcface": lambda: heads.ArcFaceHead(IDENTITIES, EMBEDDING),
    "arcface_center": lambda: heads.ArcFaceHead(IDENTITIES, EMBEDDING, center=CenterTerm(0.1)),
    "arcface_sampled": lambda: _allocated(heads.ArcFaceHead(IDENTITIES, EMBEDDING, sharded=True, sample_rate=0.5)),
    "cosface": lambda: heads.CosFaceHead(IDENTITIES, EMBEDDING),
    "combined": lambda: heads.CombinedMarginHead(IDENTITIES, EMBEDDING),
    "adaface": lambda: heads.AdaFaceHead(IDENTITIES, EMBEDDING),
    "triplet_semihard": lambda: heads.TripletHead(),
    "triplet_hard": lambda: heads.TripletHead(mining="hard"),
    "triplet_all": lambda: heads.TripletHead(mining="all"),
    "triplet_random": lambda: heads.TripletHead(mining="random"),
}


class _Faulty(heads.SoftmaxHead):
    """A head that does what it must not do on a GPU."""

    def __init__(self, fault: Callable[[Tensor, Tensor], object]) -> None:
        super().__init__(IDENTITIES, EMBEDDING)
        self.fault = fault

    def forward(self, embeddings: Tensor, labels: Tensor) -> HeadOutput:
        self.fault(embeddings, labels)
        return super().forward(embeddings, labels)


FAULTS: dict[str, Callable[[Tensor, Tensor], object]] = {
    "reads_a_number": lambda embeddings, labels: labels.max().item(),
    "asks_which": lambda embeddings, labels: (labels > 2).nonzero(),
    "selects_by_mask": lambda embeddings, labels: embeddings[labels > 2],
    "branches": lambda embeddings, labels: 1 if embeddings.sum() > 0 else 0,
    "mixes_devices": lambda embeddings, labels: embeddings + torch.ones(BATCH, EMBEDDING),
    "indexes_from_the_host": lambda embeddings, labels: torch.ones(BATCH, EMBEDDING).index_select(0, labels),
    "copies_to_the_host": lambda embeddings, labels: labels.cpu(),
    "copies_to_the_device": lambda embeddings, labels: torch.ones(BATCH).to(embeddings.device),
}


class NoCopies(TorchDispatchMode):
    """Copies between the simulated device and the host raise: the host waits for them, unless its memory is pinned."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.copy_):
            devices = {leaf.device.type for leaf in tree_leaves((args, out)) if isinstance(leaf, Tensor)}
            if len(devices) > 1:
                raise RuntimeError(f"a copy between {' and '.join(sorted(devices))}")
        return out


def _allocated(head: Head) -> Head:
    head.shard()
    return head


def move(module: nn.Module) -> None:
    """What `module.to(DEVICE)` would do: tensors of the same sizes, strides and dtypes on the simulated device."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(_moved(parameter), requires_grad=parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = _moved(buffer)


def _moved(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=DEVICE)


@dataclass
class Case:
    """What is tried: a step whose figures are logged, and one whose figures are not.

    Attributes:
        augmentation: What the crops go through.
        averages: Whether the weights are averaged, and a validation between the two steps fills a table of embeddings.
        recompute: Whether activations are computed again in the backward pass.
        optimizer: The network's.
        logged: Of each step whether its figures are.
        size: The side of the images that the backbone sees.
    """

    backbone: Callable[[], nn.Module]
    head: Callable[[], Head]
    augmentation: Augmentation = field(default_factory=Augmentation)
    averages: bool = False
    recompute: bool = False
    optimizer: Callable[[Any], torch.optim.Optimizer] = default_optimizer
    logged: Sequence[bool] = (True, False)
    size: int = 112

    def run(self) -> None:
        """Raises where something waits, or devices mix."""
        model = FaceRecognizer(
            self.backbone(),
            self.head(),
            checkpoint_activations=self.recompute,
            ema_decay=0.9 if self.averages else None,
        )
        metric = PairVerification([[0, 1], [0, 2], [1, 2], [2, 3]], [True, False, False, True], folds=2)
        data = FaceDataModule(augmentation=self.augmentation, num_workers=0)
        with FakeTensorMode():
            move(model)
            optimizer = self.optimizer(model.parameters())
            fuse(optimizer, torch.device(DEVICE))
            model.head_optimizer = model.head.make_optimizer()
            trainer: Any = SimpleNamespace(global_step=0, log_every_n_steps=50)
            watch = StopOnNonFiniteLoss()
            model.weight_average.on_train_start(trainer, model)
            for logged in self.logged:
                _step(model, data, optimizer, logged, trainer, watch, self.size)
                if self.averages and logged:
                    _validate(model, data, metric, trainer)


def _step(
    model: FaceRecognizer,
    data: FaceDataModule,
    optimizer: torch.optim.Optimizer,
    logged: bool,
    trainer: Any,
    watch: StopOnNonFiniteLoss,
    size: int,
) -> None:
    """What `FaceRecognizer` and Lightning do for one batch."""
    batch = TrainBatch(
        torch.empty(BATCH, 3, 112, 112, dtype=torch.uint8, device=DEVICE),
        torch.empty(BATCH, dtype=torch.int64, device=DEVICE),
        torch.empty(BATCH, DRAWS_PER_IMAGE, dtype=torch.int32, device=DEVICE),
        global_size=BATCH,
    )
    with NoCopies():
        batch = data.on_after_batch_transfer(batch, 0)
        optimizer.zero_grad()
        images = batch.images if size == 112 else shrunk(batch.images, size)
        output = apply_head(model.head, model(images), batch, logged)
        output.loss.backward()
        if model.head.sharded:
            sharding.clip_gradients(model.parameters(), model.head, 1.0)
        else:
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        with StepWatch(optimizer):
            optimizer.step()
        if model.head_optimizer is not None:
            model.head_optimizer.step()
        trainer.global_step += 1
        watch.on_train_batch_end(trainer, model, {"loss": output.loss}, batch, 0)
        model.weight_average.on_train_batch_end(trainer, model, None, batch, 0)
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    places = {tensor.device.type for tensor in (output.loss, *output.metrics.values(), *gradients)}
    if places != {DEVICE} or bool(output.metrics) != logged:
        raise RuntimeError(f"{len(output.metrics)} metrics; tensors on {' and '.join(sorted(places))}")


def _validate(model: FaceRecognizer, data: FaceDataModule, metric: PairVerification, trainer: Any) -> None:
    """The table of embeddings is filled without waiting; figures are computed on the host, and waited for."""
    model.eval()
    model.weight_average.on_validation_start(trainer, model)
    with torch.inference_mode(), NoCopies():
        for _ in range(2):
            images = torch.empty(2, 3, 112, 112, dtype=torch.uint8, device=DEVICE)
            batch = data.on_after_batch_transfer(EvalBatch(images, torch.empty(2, dtype=torch.int64, device=DEVICE)), 0)
            metric.update(model.validation_step(batch, 1), batch.numbers)
    model.weight_average.on_validation_end(trainer, model)
    model.train()


def cases() -> dict[str, Case]:
    """By name. Heads and backbones know nothing of each other: each is tried with one of the other kind."""
    found = {f"head {name}": Case(OneLayer, make) for name, make in HEADS.items()}
    found["head triplet_random"].logged = (False,)  # where figures are logged it looks at the labels' order
    for name, make in BACKBONES.items():
        found[f"backbone {name}"] = Case(make, HEADS["softmax"], logged=(False,))
    center = HEADS["center"]
    found["augmentation"] = Case(OneLayer, center, EVERYTHING, logged=(False,))
    found["average and verification"] = Case(SmallNetwork, center, averages=True)
    found["recomputing"] = Case(lambda: nn.Sequential(SmallNetwork()), center, recompute=True, logged=(False,))
    found["AdamW"] = Case(SmallNetwork, center, optimizer=torch.optim.AdamW, logged=(False,))
    found["smaller images"] = Case(BACKBONES["vgg16_bn"], HEADS["softmax"], logged=(False,), size=64)
    for name, fault in FAULTS.items():
        found[f"fault {name}"] = Case(OneLayer, lambda fault=fault: _Faulty(fault))  # type: ignore[misc]
    return found


def main() -> None:
    """Runs every case, or those whose names contain the argument: these with tracebacks."""
    _setup_privateuseone_for_python_backend(DEVICE)
    torch.fakegpu.get_amp_supported_dtype = lambda: [torch.bfloat16, torch.float16]  # type: ignore[attr-defined]
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    found: dict[str, str | None] = {}
    for name, case in cases().items():
        if wanted not in name:
            continue
        try:
            case.run()
            found[name] = None
        except Exception as error:
            if wanted:
                traceback.print_exc()
            found[name] = f"{type(error).__name__}: {error}"
    print(json.dumps(found))


if __name__ == "__main__":
    main()
