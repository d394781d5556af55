"""Saves torch's random state, and restores it at the first step of a resumed run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

STATE_KEY = "rng_states"
"""Where a checkpoint keeps the states, among facelit's own entries: `cpu`, and `cuda` of a run on a GPU."""


class RandomState(Callback):
    """Lets a resumed run draw the random numbers, of dropout say, that the interrupted one would have drawn.

    `FaceRecognizer` makes one and calls `save_into` and `resume_from`.
    """

    def __init__(self) -> None:
        self._states: Mapping[str, Tensor] = {}

    def save_into(self, own: dict[str, Any], device: torch.device) -> None:
        """Adds the states of the CPU's generator and, on a GPU, of the device's to a checkpoint's own entries.

        Before the first step of a resumed run (after a validation that it made up) they are those that it was resumed with.
        """
        own[STATE_KEY] = {"cpu": torch.get_rng_state(), **self._states}
        if device.type == "cuda" and "cuda" not in self._states:
            own[STATE_KEY]["cuda"] = torch.cuda.get_rng_state(device)

    def resume_from(self, own: Mapping[str, Any]) -> None:
        """Keeps the states until the first step, as setting the run up draws numbers too."""
        self._states = own.get(STATE_KEY, {})

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Restores the states, once."""
        if "cpu" in self._states:
            torch.set_rng_state(self._states["cpu"])
        if "cuda" in self._states and pl_module.device.type == "cuda":
            torch.cuda.set_rng_state(self._states["cuda"], pl_module.device)
        self._states = {}
