"""What every head does: embeddings and labels in, a loss and metrics out."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_SMALLEST_ENTRY = 1e-6

_metrics_wanted: ContextVar[bool] = ContextVar("_metrics_wanted", default=True)


@contextmanager
def metrics_wanted(wanted: bool) -> Iterator[None]:
    """Tells heads whether their metrics will be read: between two logging steps they need not be computed."""
    token = _metrics_wanted.set(wanted)
    try:
        yield
    finally:
        _metrics_wanted.reset(token)


def wants_metrics() -> bool:
    """Whether the caller will read the metrics; True unless :func:`metrics_wanted` says otherwise."""
    return _metrics_wanted.get()


class HeadOutput(NamedTuple):
    """What a head computes from a batch.

    Attributes:
        loss: scalar to backpropagate, float32 or wider.
        metrics: detached scalars to log, by name; may be empty inside ``metrics_wanted(False)``.
    """

    loss: Tensor
    metrics: dict[str, Tensor]


class Head(nn.Module, ABC):
    """Turns embeddings and labels into a loss.

    Under distributed training each process calls its head with its own part of the global batch, and
    DistributedDataParallel averages the gradients. All parts have the same size except in the last batches of an epoch,
    which the caller announces with :func:`facelit.distributed.global_batch`. A loss that is a mean over this process's
    part therefore goes through :func:`facelit.distributed.weigh_part`; one that every process computes from the
    gathered batch needs nothing, as ``all_gather`` and ``all_gather_with_grad`` know the parts.

    Attributes:
        num_identities: the number of identities that the head has parameters for; None if it takes any label.
        sharded: whether the processes divide the identities among themselves: each holds the parameters of its own, whose
            gradients are complete there and must not be averaged over the processes.
    """

    num_identities: int | None = None
    sharded: bool = False

    def identity_parameters(self) -> dict[str, nn.Parameter]:
        """Parameters with one row per identity, by their names in the head's state dict."""
        return {}

    def shard(self) -> None:
        """Allocates the parameters of a sharded head, for this process's identities; does nothing for any other head."""

    @abstractmethod
    def forward(self, embeddings: Tensor, labels: Tensor) -> HeadOutput:
        """Computes the loss of a batch.

        Args:
            embeddings: (N, D) floating-point, not normalised.
            labels: (N,) int64 identities, from 0.

        Returns:
            The loss, whose gradients averaged over the processes are those of the global batch, and the metrics, of
            this process's part (or of the global batch where that is gathered anyway).
        """

    def make_optimizer(self) -> torch.optim.Optimizer | None:
        """An optimizer for parameters that do not follow the network's gradient; None if there are none."""
        return None

    def diagnose(self, metrics: Mapping[str, float]) -> str | None:
        """Looks for signs that training is going wrong.

        Args:
            metrics: the head's own metrics, by the names that ``forward`` gave them.

        Returns:
            A warning that says what to try, or None if all is well.
        """
        return None


def directions(embeddings: Tensor) -> Tensor:
    """Scales rows to length 1, including those whose squares overflow.

    A row without an entry above 1e-6 has no direction: it becomes 0 and gets no gradient, which would be unbounded.

    Args:
        embeddings: (N, D) floating-point.

    Returns:
        (N, D) of the same dtype.
    """
    largest = embeddings.detach().abs().amax(dim=1, keepdim=True)
    scaled = (embeddings / largest.clamp_min(_SMALLEST_ENTRY)).masked_fill(largest <= _SMALLEST_ENTRY, 0)
    return F.normalize(scaled, dim=1)


def check_labels(labels: Tensor, num_identities: int) -> None:
    """Checks that labels are integers from 0 to num_identities - 1.

    Values are checked on the CPU only: on a GPU the check would wait for the device.

    Args:
        labels: (N,) of any integer dtype.
        num_identities: the number of identities that the head has parameters for.

    Raises:
        ValueError: if a label is out of range, or not an integer.
    """
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(f"labels must be integers, not {labels.dtype}")
    if labels.device.type != "cpu" or not labels.numel():
        return
    labels = labels.long()  # torch has no minimum for wide unsigned integers
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_identities:
        wrong = low if low < 0 else high
        raise ValueError(f"label {wrong} is out of range: the head has num_identities={num_identities}")
