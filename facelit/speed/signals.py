"""Lightning asks all processes before every batch whether one received SIGTERM; it need not ask that often."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

from pytorch_lightning import Trainer

from facelit.lightning import wrap_sigterm_check


def space_out_sigterm_checks(trainer: Trainer, every: int) -> None:
    """Makes a run of several processes check only every so many batches whether process 0 received SIGTERM.

    Lightning 2.6 broadcasts a tensor before each batch and reads it: the host then waits until the GPU has finished the
    previous step, and cannot prepare the next one meanwhile. A process that receives SIGTERM still ends after its current
    batch, and Lightning's launcher notifies all processes of a machine. Other machines may run on until the next check.

    Args:
        trainer: At the start of the training; a run of one process is left alone.
        every: Batches between two checks.
    """
    if trainer.world_size > 1:
        wrap_sigterm_check(trainer, lambda check: _every(max(1, every), check))


def _every(times: int, check: Callable[[], None]) -> Callable[[], None]:
    calls = count()

    def occasionally() -> None:
        if next(calls) % times == 0:
            check()

    return occasionally
