"""CenterSGD: the update rule of center loss as a torch optimizer; and a learning-rate schedule.

Wen, Zhang, Li, Qiao: A Discriminative Feature Learning Approach for Deep Face Recognition, ECCV 2016 [1].
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from facelit.distributed import all_gather, world_size

_RECORDING = "_center_recording"


class _Recording(list[tuple[Tensor, Tensor, tuple[int, ...]]]):
    """The batches (labels, embeddings, rows of each process) that wait for the next step; pickles as None."""

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()


def record_batch(centers: Tensor, labels: Tensor, embeddings: Tensor, parts: tuple[int, ...] = ()) -> None:
    """Keeps a batch for the next step of the CenterSGD that owns these centers; without one does nothing.

    Args:
        centers: (C, D) the parameter that the optimizer was made with.
        labels: (N,) int64, from 0 to C - 1.
        embeddings: (N, D) embeddings of any floating-point dtype; kept detached, in the centers' dtype.
        parts: the samples that each process holds of this batch, in rank order; without it, N each.
    """
    recording = getattr(centers, _RECORDING, None)
    if recording is not None:  # without an optimizer to empty it, the recording would grow for ever
        # A copy: under CUDA graphs the next forward overwrites the buffer that the embeddings stand in.
        parts = parts or (len(labels),) * world_size()
        recording.append((labels.detach(), embeddings.detach().to(centers.dtype, copy=True), parts))


def _start_recording(centers: Tensor) -> None:
    setattr(centers, _RECORDING, _Recording())


def _take_recording(centers: Tensor) -> _Recording:
    """What was recorded since the last call; a new recording starts."""
    recording: _Recording | None = getattr(centers, _RECORDING, None)
    _start_recording(centers)
    return recording or _Recording()


def move_centers(centers: Tensor, labels: Tensor, embeddings: Tensor, alpha: float) -> None:
    """Moves centers towards the embeddings of their identities, in place: eq. 4 of [1].

    ``c_j <- c_j - alpha * sum_{i: y_i = j} (c_j - x_i) / (1 + n_j)``, n_j being the number of samples of
    identity j. Only the rows named in ``labels`` are read or written, and nothing waits for the device.

    Args:
        centers: (C, D) tensor.
        labels: (N,) int64, from 0 to C - 1.
        embeddings: (N, D) tensor of the centers' dtype.
        alpha: the share of the way, without unit.
    """
    ordered = labels.sort().values
    counts = torch.searchsorted(ordered, labels, right=True) - torch.searchsorted(ordered, labels)  # (N,)
    deltas = (embeddings - centers.index_select(0, labels)) / (1 + counts).unsqueeze(1)  # (N, D)
    centers.index_add_(0, labels, deltas, alpha=alpha)


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
        alpha: the share of the way that a center goes, > 0; 0.5 in the paper.

    Raises:
        ValueError: if alpha is not positive.
    """

    def __init__(self, params: Iterable[Tensor] | Iterable[dict[str, Any]], alpha: float = 0.5) -> None:
        if not alpha > 0:
            raise ValueError(f"alpha must be positive, not {alpha}")
        super().__init__(params, {"alpha": alpha})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds centers to the optimizer, with their own alpha if the group has one."""
        super().add_param_group(param_group)
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
                    labels, embeddings, parts = zip(*recording, strict=True)
                    rows = [sum(of_process) for of_process in zip(*parts, strict=True)]
                    all_labels, all_embeddings = (all_gather(torch.cat(own), rows) for own in (labels, embeddings))
                    move_centers(centers, all_labels, all_embeddings, group["alpha"])
        return loss


class WarmupCosine(torch.optim.lr_scheduler.LRScheduler):
    """Linear warm-up, then a half cosine down to a final rate; step it after each optimizer step.

    Goyal et al., arXiv 1706.02677, 2017, sec. 2.2 (warm-up); Loshchilov & Hutter, ICLR 2017, eq. 5 (cosine).

    Args:
        optimizer: whose rates are scheduled; its rates are the highest ones.
        warmup: the share of the steps that the rate rises in, from 0 to 1.
        final: the last rate, as a share of the highest one.
        total_steps: steps of the whole run; :class:`~facelit.FaceRecognizer` fills it in. Steps past it keep the
            final rate.

    Raises:
        ValueError: if warmup is outside [0, 1).
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        warmup: float = 0.1,
        final: float = 0.0,
        total_steps: int | None = None,
    ) -> None:
        if not 0 <= warmup < 1:
            raise ValueError(f"warmup must be a share from 0 to below 1, not {warmup}")
        self.warmup = warmup
        self.final = final
        self.total_steps = total_steps
        super().__init__(optimizer)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the place in the schedule; its length stays this run's, so that a run may be prolonged."""
        own = self.total_steps
        super().load_state_dict(state_dict)
        self.total_steps = self.total_steps if own is None else own

    def factor(self, step: int) -> float:
        """The share of the highest rate that optimizer step number ``step`` is made with, counted from 0."""
        if self.total_steps is None:
            return 0.0 if step == 0 and self.warmup else 1.0
        rising = self.warmup * self.total_steps
        if step < rising:
            return (step + 1) / (rising + 1)
        progress = min(1.0, (step - rising) / max(1.0, self.total_steps - rising))
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * progress)) / 2

    def get_lr(self) -> list[float | Tensor]:
        """The rate of each parameter group for the next step."""
        return [base * self.factor(self.last_epoch) for base in self.base_lrs]
