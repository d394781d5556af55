"""The training step of facelit in a bare loop, whole and in parts, with a clock that does not make a GPU wait."""

from __future__ import annotations

from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from facelit.data.batches import TrainBatch
from facelit.heads.base import metrics_wanted
from harness.training_setup import GRADIENT_CLIP, Setting, autocast, make_recognizer, network_optimizer

PARTS = (
    "data",
    "transfer, augmentation",
    "forward",
    "head forward",
    "head backward",
    "backward",
    "clipping",
    "optimizer",
    "center optimizer",
)


class PartClock:
    """Records when each part of a step ends: on a GPU as events in its queue, read once at the end.

    Args:
        device: The device that the steps run on.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._marks: list[tuple[str, Any]] = []

    def mark(self, part: str) -> None:
        """Marks the end of a part; "" only starts the clock."""
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # torch's own
            event.record()
            self._marks.append((part, event))
        else:
            self._marks.append((part, perf_counter()))

    def seconds(self) -> dict[str, list[float]]:
        """Seconds of each part, one per step, in the order of the first step."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        parts: dict[str, list[float]] = {}
        for (_, before), (part, after) in zip(self._marks, self._marks[1:], strict=False):
            if part:
                between = before.elapsed_time(after) / 1e3 if self.device.type == "cuda" else after - before
                parts.setdefault(part, []).append(between)
        return parts


class BareStep:
    """Backbone, head and optimizers as in `fit`, stepped without Lightning.

    Args:
        setting: The network, head and sizes.
    """

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.recognizer = make_recognizer(setting)
        self.optimizer = network_optimizer(self.recognizer)
        self._parameters = [p for p in self.recognizer.parameters() if p.requires_grad]

    def step(self, batch: TrainBatch, logs: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
        """Takes one optimizer step on a batch on the device; returns the loss, detached, and a logged step's metrics."""
        self.optimizer.zero_grad()
        with autocast(self.setting), metrics_wanted(logs):
            output = self.recognizer.head(self.recognizer(batch.images), batch.labels)
        torch.autograd.backward(output.loss)
        self._clip()
        self.optimizer.step()
        if self.recognizer.head_optimizer is not None:
            self.recognizer.head_optimizer.step()
        return output.loss.detach(), output.metrics

    def step_in_parts(self, batch: TrainBatch, clock: PartClock) -> None:
        """Takes the same step, split at the embeddings, so that the head's backward ends before the backbone's begins."""
        self.optimizer.zero_grad()
        with autocast(self.setting), metrics_wanted(False):
            embeddings = self.recognizer(batch.images)
            clock.mark("forward")
            leaf = embeddings.detach().requires_grad_()
            output = self.recognizer.head(leaf, batch.labels)
        clock.mark("head forward")
        torch.autograd.backward(output.loss)
        clock.mark("head backward")
        torch.autograd.backward(embeddings, leaf.grad)
        clock.mark("backward")
        self._clip()
        clock.mark("clipping")
        self.optimizer.step()
        clock.mark("optimizer")
        if self.recognizer.head_optimizer is not None:
            self.recognizer.head_optimizer.step()
            clock.mark("center optimizer")

    def _clip(self) -> None:
        torch.nn.utils.clip_grad_norm_(self._parameters, GRADIENT_CLIP)
