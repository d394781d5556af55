"""Learning-rate schedules over optimizer steps: a linear warm-up, then a cosine, a polynomial or steps."""

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor


class WarmupSchedule(torch.optim.lr_scheduler.LRScheduler, ABC):
    """Linear warm-up, then a decrease over the rest of the run; step it after each optimizer step.

    In a warm-up of w steps, step s (from 0) uses (s + 1) / (w + 1) of the highest rate, so that no step has rate 0, and
    step w has the highest: Goyal et al., arXiv 1706.02677, 2017, sec. 2.2.

    Args:
        optimizer: Its learning rates are the highest that the schedule reaches.
        warmup: Below 1, the fraction of the run's steps during which the rate rises; from 1 on, a number of steps.
        total_steps: Steps in the whole run; `FaceRecognizer` fills it in. Later steps keep the last rate.

    Raises:
        ValueError: If warmup is negative or not finite; from the first step on, if total_steps was never filled in.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, warmup: float = 0.1, total_steps: int | None = None) -> None:
        if not 0 <= warmup < math.inf:
            raise ValueError(f"warmup must be a fraction in [0, 1) or a number of steps, not {warmup}")
        self.warmup = warmup
        self.total_steps = total_steps
        super().__init__(optimizer)

    @abstractmethod
    def after_warmup(self, step: int, rising: float, total_steps: int) -> float:
        """The fraction of the highest rate after the warm-up.

        Args:
            step: From `rising` on.
            rising: Steps in the warm-up, not necessarily a whole number.
            total_steps: Steps in the whole run.
        """

    def set_total_steps(self, total_steps: int) -> None:
        """Sets the length of the run, and the next step's rates accordingly."""
        self.total_steps = total_steps
        rates = self.get_lr()
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        self._last_lr = rates

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the position in the schedule, but keeps this run's length, so that a run may be extended."""
        own = self.total_steps
        super().load_state_dict(state_dict)
        if own is not None and own != self.total_steps:
            # The next step's rate follows this run's schedule, whatever the optimizer has loaded.
            self.set_total_steps(own)

    def warmup_steps(self, total_steps: int) -> float:
        """Steps in the warm-up of a run of `total_steps`; not necessarily a whole number."""
        return self.warmup * total_steps if self.warmup < 1 else self.warmup

    def factor(self, step: int) -> float:
        """The fraction of the highest rate at optimizer step number `step`, counted from 0."""
        if self.total_steps is None:
            if step > 0:
                raise ValueError(f"{type(self).__name__} needs the length of the run: give it total_steps")
            return 1.0  # while the schedule is being constructed
        rising = self.warmup_steps(self.total_steps)
        if step < rising:
            return (step + 1) / (rising + 1)
        return self.after_warmup(step, rising, self.total_steps)

    def get_lr(self) -> list[float | Tensor]:
        """The rate of each parameter group for the next step."""
        return [base * self.factor(self.last_epoch) for base in self.base_lrs]


def _progress(step: int, rising: float, total_steps: int) -> float:
    """Progress after the warm-up, from 0 to 1."""
    return min(1.0, (step - rising) / max(1.0, total_steps - rising))


def _check_final(final: float) -> None:
    if not 0 <= final <= 1:
        raise ValueError(f"final must be a fraction of the highest rate, from 0 to 1, not {final}")


class WarmupCosine(WarmupSchedule):
    """Linear warm-up, then a half cosine down to a final rate; step it after each optimizer step.

    Loshchilov & Hutter, ICLR 2017, eq. 5.

    Args:
        optimizer: Its learning rates are the highest that the schedule reaches.
        warmup: Below 1, the fraction of the run's steps during which the rate rises; from 1 on, a number of steps.
        final: The last rate, as a fraction of the highest.
        total_steps: Steps in the whole run; `FaceRecognizer` fills it in. Later steps keep the final
            rate.

    Raises:
        ValueError: If warmup is negative, or final outside [0, 1].
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
        """`final + (1 - final) (1 + cos(pi p)) / 2`, where p is the progress from 0 to 1."""
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * _progress(step, rising, total_steps))) / 2


class WarmupPolynomial(WarmupSchedule):
    """Linear warm-up, then a power of the remaining fraction of the run; step it after each optimizer step.

    With power 2 and no warm-up this is the schedule of InsightFace's arcface_torch; power 1 is a straight line.

    Args:
        optimizer: Its learning rates are the highest that the schedule reaches.
        warmup: Below 1, the fraction of the run's steps during which the rate rises; from 1 on, a number of steps.
        power: The exponent.
        final: The last rate, as a fraction of the highest.
        total_steps: Steps in the whole run; `FaceRecognizer` fills it in. Later steps keep the final
            rate.

    Raises:
        ValueError: If warmup is negative, power not positive, or final outside [0, 1].
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
        """`final + (1 - final) (1 - p)^power`, where p is the progress from 0 to 1."""
        left = 1 - _progress(step, rising, total_steps)
        return self.final + (1 - self.final) * math.pow(left, self.power)


class WarmupMultiStep(WarmupSchedule):
    """Linear warm-up, then drops by a factor at given fractions of the run; step it after each optimizer step.

    Args:
        optimizer: Its learning rates are the highest that the schedule reaches.
        milestones: Fractions of the run's steps, including warm-up, after which the rate drops; [0.4, 0.7, 0.9] are
            epochs 8, 14 and 18 of 20.
        gamma: The factor of each drop.
        warmup: Below 1, the fraction of the run's steps during which the rate rises; from 1 on, a number of steps.
        total_steps: Steps in the whole run; `FaceRecognizer` fills it in.

    Raises:
        ValueError: If a milestone is not a fraction, gamma is not positive, or warmup is negative.
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
            raise ValueError(f"milestones must be fractions of the run, between 0 and 1, not {wrong[0]}")
        if not gamma > 0:
            raise ValueError(f"gamma must be positive, not {gamma}")
        self.milestones = list(milestones)
        self.gamma = gamma
        super().__init__(optimizer, warmup, total_steps)

    def after_warmup(self, step: int, rising: float, total_steps: int) -> float:
        """`gamma ** k` after k milestones."""
        return self.gamma ** sum(step >= round(milestone * total_steps) for milestone in self.milestones)
