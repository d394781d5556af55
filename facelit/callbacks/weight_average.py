"""Keeps a moving average of the backbone's weights, and measures and saves that instead of the weights themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities.rank_zero import rank_zero_info
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from facelit.errors import FacelitError

_PREFIX = "backbone."
STATE_KEY = "weight_average"
"""Where a checkpoint keeps what training goes on from, among facelit's own entries: `raw` and `updates`."""


class WeightAverage(Callback):
    """Exponential moving average of the backbone, made after each optimizer step; validations and checkpoints use it.

    After update number t the average is ``a <- d a + (1 - d) w`` with ``d = min(decay, (1 + t) / (10 + t))``: while the run is
    young the average forgets faster, and the random weights it starts from do not linger (the rule of TensorFlow's
    ExponentialMovingAverage with `num_updates`). Polyak & Juditsky, SIAM J. Control Optim. 30(4), 1992.

    - Averaged are the backbone's parameters and its floating-point buffers (the statistics of batch norms), in float32 or wider;
      whole numbers are copied. The head is not averaged: nothing measures it, and it may be larger than the backbone.
    - During a validation, and once training has ended, the backbone holds the average.
    - A checkpoint's `state_dict` holds the average too, so that all that reads checkpoints uses it. What training goes on from
      stands beside it, and a resumed run takes it up, with or without averaging.
    - Every process averages for itself; before a validation the buffers of the first one are handed to all, as they differ.

    `FaceRecognizer` makes one (`--model.ema_decay`) and calls `save_into` and `resume_from`.

    Args:
        decay: The share of the average that one step keeps, from 0 to below 1; None averages nothing.

    Raises:
        FacelitError: The decay is out of range.
    """

    def __init__(self, decay: float | None = None) -> None:
        if decay is not None and not 0 <= decay < 1:
            raise FacelitError(f"model.ema_decay must be a number from 0 to below 1, as 0.999, or null; not {decay}.")
        self.decay = decay
        self._average: dict[str, Tensor] = {}
        self._raw: dict[str, Tensor] = {}  # what the backbone holds when it does not hold the average
        self._updates = 0
        self._seen_step = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forgets the average of an earlier training: the backbone may have been given other weights since."""
        self._average, self._raw, self._updates = {}, {}, 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts from the weights as they are, or from the average that was resumed."""
        if self.decay is None:
            return
        self._seen_step = trainer.global_step
        live = _tensors(pl_module)
        for name, tensor in live.items():
            start = self._average.get(name, tensor.detach())
            self._average[name] = torch.empty_like(tensor, dtype=_wide(tensor)).copy_(start)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Updates the average, once for each optimizer step however many batches that took."""
        if self.decay is not None and trainer.global_step > self._seen_step:
            self._seen_step = trainer.global_step
            self._update(pl_module)

    @torch.no_grad()
    def _update(self, pl_module: LightningModule) -> None:
        self._updates += 1
        decay = min(self.decay or 0.0, (1 + self._updates) / (10 + self._updates))
        averages: dict[torch.dtype, list[Any]] = {}
        values: dict[torch.dtype, list[Any]] = {}
        for name, tensor in _tensors(pl_module).items():
            average = self._average[name]
            if average.is_floating_point():
                averages.setdefault(average.dtype, []).append(average)
                values.setdefault(average.dtype, []).append(tensor.detach().to(average.dtype))
            else:
                average.copy_(tensor)
        for dtype, some in averages.items():
            get_ema_multi_avg_fn(decay)(some, values[dtype], 0)  # type: ignore[no-untyped-call]  # torch's own

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Puts the average into the backbone."""
        self._lend(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Puts back what training goes on from."""
        if self._raw:
            with torch.no_grad():
                for name, tensor in _tensors(pl_module).items():
                    tensor.copy_(self._raw[name])
            self._raw = {}

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leaves the average in the backbone."""
        self._lend(pl_module)

    def _lend(self, pl_module: LightningModule) -> None:
        if not self._average or self._raw:
            return
        # Validations run in inference mode: what is kept beyond them must not be made in it.
        with torch.inference_mode(False), torch.no_grad():
            live = _tensors(pl_module)
            self._raw = {name: tensor.detach().clone() for name, tensor in live.items()}
            self._share_buffers(pl_module)
            for name, tensor in live.items():
                tensor.copy_(self._average[name])

    def _share_buffers(self, pl_module: LightningModule) -> None:
        if dist.is_available() and dist.is_initialized():
            buffers = {f"{_PREFIX}{name}" for name, _ in _backbone(pl_module).named_buffers()}
            for name, average in self._average.items():
                if name in buffers:
                    dist.broadcast(average, 0)

    def save_into(self, checkpoint: dict[str, Any], own: dict[str, Any]) -> None:
        """Puts the average into the checkpoint's `state_dict`, and what training goes on from beside it.

        Args:
            checkpoint: As Lightning has made it.
            own: facelit's own entries of it.
        """
        if not self._average:
            return
        state = checkpoint["state_dict"]
        if "optimizer_states" in checkpoint:  # without them nobody can resume from it
            raw = {name: self._raw.get(name, state[name]) for name in self._average}
            own[STATE_KEY] = {"raw": raw, "updates": self._updates}
        state.update(self._average)

    def resume_from(self, checkpoint: dict[str, Any], own: Mapping[str, Any]) -> None:
        """Takes up the average of a run that is resumed, and hands its `state_dict` what training goes on from.

        Args:
            checkpoint: As it was read, before the module loads it.
            own: facelit's own entries of it.
        """
        saved = own.get(STATE_KEY)
        if saved is None:
            if self.decay is not None:
                rank_zero_info("The checkpoint holds no average of the weights: the average starts from its weights.")
            return
        state = checkpoint["state_dict"]
        if self.decay is None:
            rank_zero_info(
                "model.ema_decay is not set: the run goes on without the checkpoint's average of the weights."
            )
        else:
            self._average = {name: state[name] for name in saved["raw"]}
            self._updates = saved["updates"]
        state.update(saved["raw"])


def _backbone(pl_module: LightningModule) -> nn.Module:
    backbone: Any = pl_module.backbone
    return backbone  # type: ignore[no-any-return]  # FaceRecognizer's


def _tensors(pl_module: LightningModule) -> dict[str, Tensor]:
    """Parameters and buffers that a checkpoint keeps of the backbone, by the names they have there."""
    return _backbone(pl_module).state_dict(prefix=_PREFIX)


def _wide(tensor: Tensor) -> torch.dtype:
    """At least float32: in bfloat16 a thousandth of a difference is rounded away."""
    return torch.promote_types(tensor.dtype, torch.float32) if tensor.is_floating_point() else tensor.dtype
