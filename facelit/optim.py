"""CenterSGD: the update rule of center loss as a torch optimizer; learning-rate schedules; parameter groups.

Wen, Zhang, Li, Qiao: A Discriminative Feature Learning Approach for Deep Face Recognition, ECCV 2016 [1].
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from facelit.distributed import all_gather, world_size

_RECORDING = "_center_recording"


class _Recording(list[tuple[Tensor, Tensor, tuple[int, ...] | None]]):
    """The batches (labels, embeddings, rows of each process) that wait for the next step; pickles as None."""

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()


def record_batch(centers: Tensor, labels: Tensor, embeddings: Tensor, parts: tuple[int, ...] | None = ()) -> None:
    """Keeps a batch for the next step of the CenterSGD that owns these centers; without one does nothing.

    Args:
        centers: (C, D) the parameter that the optimizer was made with.
        labels: (N,) int64, from 0 to C - 1.
        embeddings: (N, D) embeddings of any floating-point dtype; kept detached, in the centers' dtype.
        parts: the samples that each process holds of this batch, in rank order; without it, N each. None for sharded
            centers: the batch is the global one already, and its labels number this process's rows (those outside 0 to
            C - 1 are other processes').
    """
    recording = getattr(centers, _RECORDING, None)
    if recording is not None:  # without an optimizer to empty it, the recording would grow for ever
        # A copy: under CUDA graphs the next forward overwrites the buffer that the embeddings stand in.
        parts = (len(labels),) * world_size() if parts == () else parts
        recording.append((labels.detach(), embeddings.detach().to(centers.dtype, copy=True), parts))


def _start_recording(centers: Tensor) -> None:
    setattr(centers, _RECORDING, _Recording())


def _take_recording(centers: Tensor) -> _Recording:
    """What was recorded since the last call; a new recording starts."""
    recording: _Recording | None = getattr(centers, _RECORDING, None)
    _start_recording(centers)
    return recording or _Recording()


def move_centers(centers: Tensor, labels: Tensor, embeddings: Tensor, alpha: float, sharded: bool = False) -> None:
    """Moves centers towards the embeddings of their identities, in place: eq. 4 of [1].

    ``c_j <- c_j - alpha * sum_{i: y_i = j} (c_j - x_i) / (1 + n_j)``, n_j being the number of samples of
    identity j. Only the rows named in ``labels`` are read or written, and nothing waits for the device.

    Args:
        centers: (C, D) tensor.
        labels: (N,) int64, from 0 to C - 1.
        embeddings: (N, D) tensor of the centers' dtype.
        alpha: the share of the way, without unit.
        sharded: whether labels outside 0 to C - 1 are other processes', and move nothing.
    """
    ordered = labels.sort().values
    counts = torch.searchsorted(ordered, labels, right=True) - torch.searchsorted(ordered, labels)  # (N,)
    rows = labels.clamp(0, len(centers) - 1) if sharded else labels
    deltas = (embeddings - centers.index_select(0, rows)) / (1 + counts).unsqueeze(1)  # (N, D)
    if sharded:
        deltas *= (rows == labels).unsqueeze(1)
    centers.index_add_(0, rows, deltas, alpha=alpha)


def _apply_recording(centers: Tensor, recording: _Recording, alpha: float) -> None:
    labels, embeddings, parts = zip(*recording, strict=True)
    if parts[0] is None:  # sharded: gathered already
        move_centers(centers, torch.cat(labels), torch.cat(embeddings), alpha, sharded=True)
        return
    rows = [sum(of_process) for of_process in zip(*parts, strict=True)]
    all_labels, all_embeddings = (all_gather(torch.cat(own), rows) for own in (labels, embeddings))
    move_centers(centers, all_labels, all_embeddings, alpha)


def check_alpha(alpha: float) -> None:
    """Refuses a share of the way that centers cannot go.

    Raises:
        ValueError: if alpha is not above 0 and up to 1.
    """
    if not 0 < alpha <= 1:
        raise ValueError(f"alpha must be above 0 and up to 1, not {alpha}")


class CenterSGD(torch.optim.Optimizer):
    """Moves the centers of center loss by its own rule, eq. 4 of [1], instead of by a gradient.

    :class:`~facelit.heads.CenterLoss` records each batch on its centers when the loss is backpropagated; a
    step applies all batches since the last one at once (accumulated micro-batches, on all processes), n_j
    counted over all of them, and forgets them. The step therefore depends neither on the weight of the loss
    nor on a learning rate, has no momentum and no weight decay. A step after which nothing was recorded
    leaves the centers as they are.

    Under distributed training the samples of all processes are gathered, and each process applies the same update to
    its own copy of the centers. Every process must have recorded as many samples as the others, or as their parts of an
    uneven :func:`~facelit.distributed.global_batch` have: how many is known without asking.

    Args:
        params: the centers, ``CenterLoss.centers``, as for any torch optimizer.
        alpha: the share of the way that a center goes, above 0 and up to 1, as in the paper; 0.5 there.

    Raises:
        ValueError: if alpha is outside that range, beyond which centers may oscillate ever more.
    """

    def __init__(self, params: Iterable[Tensor] | Iterable[dict[str, Any]], alpha: float = 0.5) -> None:
        super().__init__(params, {"alpha": alpha})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds centers to the optimizer, with their own alpha if the group has one."""
        super().add_param_group(param_group)
        check_alpha(self.param_groups[-1]["alpha"])
        for centers in self.param_groups[-1]["params"]:
            _start_recording(centers)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.zero_grad()  # a copy of the optimizer has copies of the centers, which do not record yet

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drops what was recorded since the last step: a step that must not count ends here."""
        for group in self.param_groups:
            for centers in group["params"]:
                _start_recording(centers)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]  # torch has overloads
        """Applies what was recorded since the last step, once, and forgets it.

        Args:
            closure: computes the loss again and backpropagates it, as for any torch optimizer.

        Returns:
            What the closure returned, or None without one.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for centers in group["params"]:
                recording = _take_recording(centers)
                if recording:
                    _apply_recording(centers, recording, group["alpha"])
        return loss


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


def parameter_groups(parameters: Iterable[Tensor], decay_norms_and_biases: bool) -> list[Tensor] | list[dict[str, Any]]:
    """Parameters as an optimizer takes them, with or without weight decay for those that only shift and scale.

    Biases, the weights of norms and the slopes of PReLU have fewer than two dimensions, and nothing else does: He et al.,
    Bag of Tricks for Image Classification, CVPR 2019, sec. 3.1 ("no bias decay").

    Args:
        parameters: of the network and its head; those without gradient are left out.
        decay_norms_and_biases: whether all parameters get the optimizer's own weight decay.

    Returns:
        All of them, or a group with the optimizer's weight decay and one without; neither is empty.
    """
    wanted = [parameter for parameter in parameters if parameter.requires_grad]
    if decay_norms_and_biases:
        return wanted
    groups: list[dict[str, Any]] = [
        {"params": [parameter for parameter in wanted if parameter.ndim >= 2]},
        {"params": [parameter for parameter in wanted if parameter.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
