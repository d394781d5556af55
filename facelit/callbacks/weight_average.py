"""Keeps a moving average of the backbone's weights, which validations and checkpoints use instead of the weights."""

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
"""The key, among facelit's own entries in a checkpoint, of the state that training continues from: `raw` and `updates`."""


class WeightAverage(Callback):
    """Exponential moving average of the backbone, updated after each optimizer step; validations and checkpoints use it.

    The t-th update is `a <- d a + (1 - d) w` with `d = min(decay, (1 + t) / (10 + t))`: early in a run the average forgets
    faster, so that the random weights it starts from do not linger (the rule of TensorFlow's ExponentialMovingAverage with
    `num_updates`). Polyak & Juditsky, SIAM J. Control Optim. 30(4), 1992.

    - The average covers the backbone's parameters and floating-point buffers (the statistics of batch norms), in float32 or
      wider; integers are copied. The head is not averaged: nothing measures it, and it may be larger than the backbone.
    - During a validation, and once training has ended, the backbone holds the average.
    - A checkpoint's `state_dict` holds the average too, so that everything that reads checkpoints uses it. The weights that
      training continues from are stored separately, and a resumed run restores them, with or without averaging.
    - Every process keeps its own average; before a validation the first process's buffers are broadcast, as they differ.

    `FaceRecognizer` makes one (`--model.ema_decay`) and calls `save_into` and `resume_from`.

    Args:
        decay: The share of the average kept by each step, from 0 to below 1; None turns averaging off.

    Raises:
        FacelitError: The decay is out of range.
    """

    def __init__(self, decay: float | None = None) -> None:
        if decay is not None and not 0 <= decay < 1:
            raise FacelitError(
                f"model.ema_decay must be a number from 0 to below 1, such as 0.999, or null; not {decay}."
            )
        self.decay = decay
        self._average: dict[str, Tensor] = {}
        self._raw: dict[str, Tensor] = {}  # the backbone's own weights, while it holds the average
        self._updates = 0
        self._seen_step = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forgets the average of an earlier training: the backbone's weights may have been replaced since."""
        self._average, self._raw, self._updates = {}, {}, 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts from the current weights, or from the resumed average."""
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
        """Updates the average once per optimizer step, however many batches a step takes."""
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
        """Restores the weights that training continues from."""
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
        # Validations run in inference mode, where tensors that outlive them must not be created.
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
        """Puts the average into the checkpoint's `state_dict`, and the weights that training continues from into `own`.

        Args:
            checkpoint: The checkpoint that Lightning is about to write.
            own: facelit's own entries in it.
        """
        if not self._average:
            return
        state = checkpoint["state_dict"]
        if "optimizer_states" in checkpoint:  # without them the run cannot be resumed
            raw = {name: self._raw.get(name, state[name]) for name in self._average}
            own[STATE_KEY] = {"raw": raw, "updates": self._updates}
        state.update(self._average)

    def resume_from(self, checkpoint: dict[str, Any], own: Mapping[str, Any]) -> None:
        """Restores the average of a resumed run, and puts the weights that training continues from into its `state_dict`.

        Args:
            checkpoint: The checkpoint, before the module loads it.
            own: facelit's own entries in it.
        """
        saved = own.get(STATE_KEY)
        if saved is None:
            if self.decay is not None:
                rank_zero_info("The checkpoint holds no average of the weights: the average starts from its weights.")
            return
        state = checkpoint["state_dict"]
        if self.decay is None:
            rank_zero_info(
                "model.ema_decay is not set: the run continues without the checkpoint's average of the weights."
            )
        else:
            self._average = {name: state[name] for name in saved["raw"]}
            self._updates = saved["updates"]
        state.update(saved["raw"])


def _backbone(pl_module: LightningModule) -> nn.Module:
    backbone: Any = pl_module.backbone
    return backbone  # type: ignore[no-any-return]  # FaceRecognizer's


def _tensors(pl_module: LightningModule) -> dict[str, Tensor]:
    """The backbone's parameters and buffers, by their names in a checkpoint."""
    return _backbone(pl_module).state_dict(prefix=_PREFIX)


def _wide(tensor: Tensor) -> torch.dtype:
    """At least float32: bfloat16 rounds away a thousandth of a difference."""
    return torch.promote_types(tensor.dtype, torch.float32) if tensor.is_floating_point() else tensor.dtype
