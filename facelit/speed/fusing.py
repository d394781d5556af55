"""Makes optimizers update all parameters in one kernel, and tells whether a step was taken or skipped."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from facelit.lightning import forbid_fused_unscaling

_FUSED_ON = {"cuda": (SGD, Adam, AdamW), "cpu": (SGD,)}
_CHOICES = ("fused", "foreach")


def fuse(optimizer: Optimizer, device: torch.device, scaled: bool = False) -> None:
    """Turns on torch's fused implementation, if the optimizer's class has one that pays on the device.

    The user's own choice (`fused` or `foreach`, true or false) is kept. Loading a checkpoint changes neither the
    implementation, so that a run begun on a GPU can continue without one and vice versa, nor the memory order
    (channels_last or not) of this run.

    Args:
        optimizer: The user's optimizer.
        device: The device of its parameters.
        scaled: Whether a gradient scaler is in use (16-mixed). Fusing then stays off: a fused optimizer would do the
            unscaling itself, and Lightning could no longer clip gradients.
    """
    if not scaled:
        if type(optimizer) in _FUSED_ON.get(device.type, ()) and _is_open(optimizer, device):
            for group in (optimizer.defaults, *optimizer.param_groups):
                group["fused"] = True
        forbid_fused_unscaling(optimizer)
    optimizer.register_load_state_dict_pre_hook(_keep_choice)
    optimizer.register_load_state_dict_post_hook(_lay_out_state)


def _is_open(optimizer: Optimizer, device: torch.device) -> bool:
    """Whether the user made no choice, and a fused kernel can update all parameters."""
    return all(
        group["fused"] is None
        and group["foreach"] is None
        and not group["differentiable"]
        and all(parameter.device.type == device.type and parameter.is_floating_point() for parameter in group["params"])
        for group in optimizer.param_groups
    )


def _keep_choice(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """The saved state, with this run's choice of implementation."""
    groups = state["param_groups"]
    if len(groups) != len(optimizer.param_groups):
        return state  # torch reports it
    kept = [
        {**saved, **{name: own[name] for name in _CHOICES if name in own}}
        for saved, own in zip(groups, optimizer.param_groups, strict=True)
    ]
    return {**state, "param_groups": kept}


def _lay_out_state(optimizer: Optimizer) -> None:
    """Gives the state of each parameter the parameter's memory layout.

    A fused CPU kernel silently assumes the same layout; a GPU kernel rejects any other.
    """
    for parameter, kept in optimizer.state.items():
        if not isinstance(parameter, Tensor) or not isinstance(kept, dict):
            continue  # other people's optimizers may keep anything
        for name, value in kept.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                kept[name] = torch.empty_like(parameter, dtype=value.dtype, device=value.device).copy_(value)


class StepWatch:
    """Tells whether an optimizer took its step, or a gradient scaler skipped it (fp16, non-finite gradients).

    Use it as a context manager around the step. Without fusing, the scaler decides on the host whether to call the optimizer,
    and nothing is read from the device. A fused optimizer decides on the device, which means waiting for it.

    Args:
        optimizer: The optimizer, or Lightning's wrapper of it.
    """

    def __init__(self, optimizer: Any) -> None:
        self._optimizer: Optimizer = getattr(optimizer, "optimizer", optimizer)
        self._called = False
        self._found_inf: Tensor | None = None

    def __enter__(self) -> StepWatch:
        self._hook = self._optimizer.register_step_post_hook(self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hook.remove()

    @property
    def stepped(self) -> bool:
        """Whether parameters were updated."""
        return self._called and (self._found_inf is None or not bool(self._found_inf))

    def _note(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._called = True
        self._found_inf = getattr(optimizer, "found_inf", None)  # GradScaler.step sets it on fused ones
