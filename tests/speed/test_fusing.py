"""Fused optimizers: where they are turned on, that checkpoints do not bind to them, and steps that a scaler skips."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from facelit.speed.fusing import StepWatch, fuse

CPU = torch.device("cpu")
SGD = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3}


def optimizer(kind: str = "SGD", model: nn.Module | None = None, **options: Any) -> torch.optim.Optimizer:
    torch.manual_seed(0)
    model = nn.Linear(3, 2) if model is None else model
    return getattr(torch.optim, kind)(model.parameters(), **{"lr": 0.1, **options})


def choices(of: torch.optim.Optimizer) -> list[tuple[Any, Any]]:
    return [(group["fused"], group["foreach"]) for group in of.param_groups]


def train(of: torch.optim.Optimizer, steps: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    parameters = [parameter for group in of.param_groups for parameter in group["params"]]
    for _ in range(steps):
        for parameter in parameters:
            parameter.grad = torch.empty_like(parameter)  # in the parameter's memory order, as autograd makes it
            parameter.grad.copy_(torch.randn(parameter.shape, generator=generator))
        of.step()
    return [parameter.detach().clone() for parameter in parameters]


def test_turned_on_where_it_is_open() -> None:
    fused = optimizer(**SGD)
    fuse(fused, CPU)
    assert choices(fused) == [(True, None)]
    for one, other in zip(train(fused), train(optimizer(**SGD)), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("choice", [{"fused": False}, {"foreach": True}, {"foreach": False}, {"differentiable": True}])
def test_a_choice_is_left_alone(choice: dict[str, bool]) -> None:
    chosen = optimizer(**SGD, **choice)
    before = choices(chosen)
    fuse(chosen, CPU)
    assert choices(chosen) == before


def test_off_under_a_gradient_scaler_and_where_there_is_none() -> None:
    for other, device, scaled in (
        (optimizer(**SGD), CPU, True),
        (optimizer("Adagrad"), torch.device("cuda"), False),
        (optimizer("RMSprop"), CPU, False),
        (optimizer(**SGD), torch.device("cuda"), False),  # its parameters are on the CPU
        (optimizer(**SGD), torch.device("meta"), False),
    ):
        fuse(other, device, scaled=scaled)
        assert all(not group.get("fused") for group in other.param_groups)
        assert not getattr(other, "_step_supports_amp_scaling", False)


@pytest.mark.parametrize("kind", ["SGD", "Adam", "AdamW"])
@pytest.mark.parametrize("saved_fused", [False, True])
def test_a_checkpoint_goes_on_with_this_runs_choice(kind: str, saved_fused: bool) -> None:
    """As from a GPU to a machine without one, and back; momentum and step counts are the saved ones."""
    options = {"momentum": 0.9} if kind == "SGD" else {}
    saved = optimizer(kind, fused=saved_fused, **options)
    train(saved)
    state = copy.deepcopy(saved.state_dict())
    here = optimizer(kind, nn.Linear(3, 2), fused=not saved_fused, **options)
    with torch.no_grad():
        for mine, its in zip(here.param_groups[0]["params"], saved.param_groups[0]["params"], strict=True):
            mine.copy_(its)
    fuse(here, CPU)
    here.load_state_dict(state)
    assert choices(here) == [(not saved_fused, None)]
    assert state["param_groups"][0]["fused"] is saved_fused, "what was loaded is not changed"
    for one, other in zip(train(here), train(saved), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("kind", ["SGD", "Adam"])
def test_a_checkpoint_of_another_memory_order(kind: str) -> None:
    """A run with channels_last goes on without it: its momentum belongs to the same weights as before."""
    options = {"momentum": 0.9} if kind == "SGD" else {}
    saved = optimizer(kind, nn.Conv2d(2, 4, 3).to(memory_format=torch.channels_last), **options)
    train(saved)
    state = copy.deepcopy(saved.state_dict())
    here = optimizer(kind, nn.Conv2d(2, 4, 3), **options)
    with torch.no_grad():
        for mine, its in zip(here.param_groups[0]["params"], saved.param_groups[0]["params"], strict=True):
            mine.copy_(its)
    fuse(here, CPU)
    here.load_state_dict(state)
    for one, other in zip(train(here), train(saved), strict=True):
        torch.testing.assert_close(one, other)


def test_other_groups_are_still_refused() -> None:
    here = optimizer(**SGD)
    fuse(here, CPU)
    state = here.state_dict()
    with pytest.raises(ValueError, match="different number of parameter groups"):
        here.load_state_dict({**state, "param_groups": state["param_groups"] * 2})


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(("gradient", "steps"), [(1.0, True), (float("inf"), False), (float("nan"), False)])
def test_a_watch_sees_what_a_scaler_skips(fused: bool, gradient: float, steps: bool) -> None:
    watched = optimizer(**SGD, fused=fused)
    (weight, bias) = watched.param_groups[0]["params"]
    before = weight.detach().clone()
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale((weight.sum() + bias.sum()) * gradient).backward()
    with StepWatch(watched) as watch:
        scaler.step(watched)
        scaler.update()
    assert watch.stepped is steps
    assert torch.equal(weight, before) is not steps
    watched.step()
    assert watch.stepped is steps, "it looks at one step"
