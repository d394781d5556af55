"""Learning-rate schedules over optimizer steps: a linear warm-up, then a cosine, a polynomial or steps."""

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor


class WarmupSchedule(torch.optim.lr_scheduler.LRScheduler, ABC):
    """Linear warm-up, then down over the rest of the run; step it after each optimizer step.

    Step number s, counted from 0, of a warm-up of w steps has (s + 1) / (w + 1) of the highest rate, so that no step is
    made with rate 0, and step w has all of it: Goyal et al., arXiv 1706.02677, 2017, sec. 2.2.

    Args:
        optimizer: whose rates are scheduled; its rates are the highest ones.
        warmup: below 1 the share of the run's steps that the rate rises in; from 1 on a number of steps.
        total_steps: steps of the whole run; :class:`~facelit.FaceRecognizer` fills it in. Steps past it keep the last
            rate.

    Raises:
        ValueError: if warmup is negative or no number; from the first step on, if nobody filled in total_steps.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, warmup: float = 0.1, total_steps: int | None = None) -> None:
        if not 0 <= warmup < math.inf:
            raise ValueError(f"warmup must be a share from 0 to below 1, or a number of steps, not {warmup}")
        self.warmup = warmup
        self.total_steps = total_steps
        super().__init__(optimizer)

    @abstractmethod
    def after_warmup(self, step: int, rising: float, total_steps: int) -> float:
        """The share of the highest rate after the warm-up.

        Args:
            step: from `rising` on.
            rising: steps of the warm-up, not always whole.
            total_steps: steps of the whole run.
        """

    def set_total_steps(self, total_steps: int) -> None:
        """Says how long the run is, and sets the rates of the step that comes next accordingly."""
        self.total_steps = total_steps
        rates = self.get_lr()
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        self._last_lr = rates

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the place in the schedule; its length stays this run's, so that a run may be prolonged."""
        own = self.total_steps
        super().load_state_dict(state_dict)
        if own is not None and own != self.total_steps:
            # The next step's rate is that of this run's schedule, whatever the optimizer has loaded.
            self.set_total_steps(own)

    def warmup_steps(self, total_steps: int) -> float:
        """Steps of the warm-up in a run of so many; not always a whole number."""
        return self.warmup * total_steps if self.warmup < 1 else self.warmup

    def factor(self, step: int) -> float:
        """The share of the highest rate that optimizer step number ``step`` is made with, counted from 0."""
        if self.total_steps is None:
            if step > 0:
                raise ValueError(f"{type(self).__name__} must know how long the run is: give it total_steps")
            return 1.0  # while the schedule is being made
        rising = self.warmup_steps(self.total_steps)
        if step < rising:
            return (step + 1) / (rising + 1)
        return self.after_warmup(step, rising, self.total_steps)

    def get_lr(self) -> list[float | Tensor]:
        """The rate of each parameter group for the next step."""
        return [base * self.factor(self.last_epoch) for base in self.base_lrs]


def _progress(step: int, rising: float, total_steps: int) -> float:
    """How much of the way after the warm-up is done, from 0 to 1."""
    return min(1.0, (step - rising) / max(1.0, total_steps - rising))


def _check_final(final: float) -> None:
    if not 0 <= final <= 1:
        raise ValueError(f"final must be a share from 0 to 1 of the highest rate, not {final}")


class WarmupCosine(WarmupSchedule):
    """Linear warm-up, then a half cosine down to a final rate; step it after each optimizer step.

    Loshchilov & Hutter, ICLR 2017, eq. 5.

    Args:
        optimizer: whose rates are scheduled; its rates are the highest ones.
        warmup: below 1 the share of the run's steps that the rate rises in; from 1 on a number of steps.
        final: the last rate, as a share of the highest one.
        total_steps: steps of the whole run; :class:`~facelit.FaceRecognizer` fills it in. Steps past it keep the
            final rate.

    Raises:
        ValueError: if warmup is negative, or final outside [0, 1].
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        warmup: float = 0.1,
        final: float = 0.0,
        total_steps: int | None = None,
    ) -> None:
        _check_final(final)
        self.final = final
        super().__init__(optimizer, warmup, total_steps)

    def after_warmup(self, step: int, rising: float, total_steps: int) -> float:
        """``final + (1 - final) (1 + cos(pi p)) / 2``, p being the progress from 0 to 1."""
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * _progress(step, rising, total_steps))) / 2


class WarmupPolynomial(WarmupSchedule):
    """Linear warm-up, then a power of what is left of the run; step it after each optimizer step.

    With power 2 and no warm-up it is the schedule of InsightFace's arcface_torch, with power 1 a straight line.

    Args:
        optimizer: whose rates are scheduled; its rates are the highest ones.
        warmup: below 1 the share of the run's steps that the rate rises in; from 1 on a number of steps.
        power: the exponent.
        final: the last rate, as a share of the highest one.
        total_steps: steps of the whole run; :class:`~facelit.FaceRecognizer` fills it in. Steps past it keep the
            final rate.

    Raises:
        ValueError: if warmup is negative, power not positive, or final outside [0, 1].
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        warmup: float = 0.1,
        power: float = 2.0,
        final: float = 0.0,
        total_steps: int | None = None,
    ) -> None:
        _check_final(final)
        if not power > 0:
            raise ValueError(f"power must be positive, not {power}")
        self.power = power
        self.final = final
        super().__init__(optimizer, warmup, total_steps)

    def after_warmup(self, step: int, rising: float, total_steps: int) -> float:
        """``final + (1 - final) (1 - p)^power``, p being the progress from 0 to 1."""
        left = 1 - _progress(step, rising, total_steps)
        return self.final + (1 - self.final) * math.pow(left, self.power)


class WarmupMultiStep(WarmupSchedule):
    """Linear warm-up, then falls by a factor at given shares of the run; step it after each optimizer step.

    Args:
        optimizer: whose rates are scheduled; its rates are the highest ones.
        milestones: the shares of the run's steps, warm-up included, after which the rate falls; [0.4, 0.7, 0.9] are
            epochs 8, 14 and 18 of 20.
        gamma: the factor it falls by.
        warmup: below 1 the share of the run's steps that the rate rises in; from 1 on a number of steps.
        total_steps: steps of the whole run; :class:`~facelit.FaceRecognizer` fills it in.

    Raises:
        ValueError: if a milestone is no share, gamma not positive, or warmup negative.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        milestones: list[float],
        gamma: float = 0.1,
        warmup: float = 0.1,
        total_steps: int | None = None,
    ) -> None:
        wrong = [milestone for milestone in milestones if not 0 < milestone < 1]
        if wrong:
            raise ValueError(f"milestones are shares of the run, between 0 and 1: not {wrong[0]}")
        if not gamma > 0:
            raise ValueError(f"gamma must be positive, not {gamma}")
        self.milestones = list(milestones)
        self.gamma = gamma
        super().__init__(optimizer, warmup, total_steps)

    def after_warmup(self, step: int, rising: float, total_steps: int) -> float:
        """The factor, once for each milestone that is past."""
        return self.gamma ** sum(step >= round(milestone * total_steps) for milestone in self.milestones)
