"""CenterSGD: the update rule of center loss as a torch optimizer.

Wen, Zhang, Li, Qiao: A Discriminative Feature Learning Approach for Deep Face Recognition, ECCV 2016 [1].
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from facelit.distributed import all_gather, world_size

_RECORDING = "_center_recording"


class _Recording(list[tuple[Tensor, Tensor, tuple[int, ...] | None]]):
    """Batches (labels, embeddings, rows of each process) waiting for the next step; pickles as None."""

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()


def record_batch(centers: Tensor, labels: Tensor, embeddings: Tensor, parts: tuple[int, ...] | None = ()) -> None:
    """Records a batch for the next step of the CenterSGD that owns these centers; does nothing without one.

    Args:
        centers: (C, D) the parameter that the optimizer was created with.
        labels: (N,) int64, from 0 to C - 1.
        embeddings: (N, D) embeddings of any floating-point dtype; kept detached, in the centers' dtype.
        parts: How many samples of this batch each process holds, in rank order; by default N each. None for sharded
            centers: The batch is already the global one, and labels are row numbers of this process (those outside 0 to
            C - 1 belong to other processes).
    """
    recording = getattr(centers, _RECORDING, None)
    if recording is not None:  # without an optimizer to empty it, the recording would grow forever
        # A copy: under CUDA graphs the next forward pass overwrites the embeddings' buffer.
        parts = (len(labels),) * world_size() if parts == () else parts
        recording.append((labels.detach(), embeddings.detach().to(centers.dtype, copy=True), parts))


def _start_recording(centers: Tensor) -> None:
    setattr(centers, _RECORDING, _Recording())


def _take_recording(centers: Tensor) -> _Recording:
    """Returns the recording since the last call, and starts a new one."""
    recording: _Recording | None = getattr(centers, _RECORDING, None)
    _start_recording(centers)
    return recording or _Recording()


def move_centers(centers: Tensor, labels: Tensor, embeddings: Tensor, alpha: float, sharded: bool = False) -> None:
    """Moves centers towards the embeddings of their identities, in place: eq. 4 of [1].

    `c_j <- c_j - alpha * sum_{i: y_i = j} (c_j - x_i) / (1 + n_j)`, where n_j is the number of samples of
    identity j. Only the rows in `labels` are read or written, and nothing waits for the device.

    Args:
        centers: (C, D) tensor.
        labels: (N,) int64, from 0 to C - 1.
        embeddings: (N, D) tensor of the centers' dtype.
        alpha: The step size of eq. 4, in (0, 1].
        sharded: Whether labels outside 0 to C - 1 belong to other processes, and are ignored here.
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
    """Rejects an alpha outside (0, 1].

    Raises:
        ValueError: If it is.
    """
    if not 0 < alpha <= 1:
        raise ValueError(f"alpha must be in (0, 1], not {alpha}")


class CenterSGD(torch.optim.Optimizer):
    """Moves the centers of center loss by eq. 4 of [1] instead of a gradient.

    `CenterLoss` records each batch on its centers when the loss is backpropagated; a step applies all batches since the
    previous one at once (accumulated micro-batches, from all processes), with n_j counted over all of them, and discards
    them. A step therefore depends neither on the weight of the loss nor on a learning rate, and has no momentum or weight
    decay. If nothing was recorded, the centers stay unchanged.

    In distributed training the samples of all processes are gathered, and each process applies the same update to its
    copy of the centers. All processes must have recorded the same number of samples, or their parts of an uneven
    `facelit.distributed.global_batch`: the numbers are not exchanged.

    Args:
        params: The centers, `CenterLoss.centers`, as for any torch optimizer.
        alpha: The step size of eq. 4, in (0, 1]; 0.5 in the paper.

    Raises:
        ValueError: If alpha is out of range; above 1, centers may oscillate more and more.
    """

    def __init__(self, params: Iterable[Tensor] | Iterable[dict[str, Any]], alpha: float = 0.5) -> None:
        super().__init__(params, {"alpha": alpha})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds centers to the optimizer, with their own alpha if the group contains one."""
        super().add_param_group(param_group)
        check_alpha(self.param_groups[-1]["alpha"])
        for centers in self.param_groups[-1]["params"]:
            _start_recording(centers)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.zero_grad()  # a copy of the optimizer has copies of the centers, which do not record yet

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Discards the batches recorded since the last step."""
        for group in self.param_groups:
            for centers in group["params"]:
                _start_recording(centers)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]  # torch has overloads
        """Applies the batches recorded since the last step, once, and discards them.

        Args:
            closure: Recomputes the loss and backpropagates it, as for any torch optimizer.

        Returns:
            The closure's result; None without one.
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
