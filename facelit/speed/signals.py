"""Lightning asks all processes before each step whether one was told to end; that need not be each step."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

from pytorch_lightning import Trainer

_ASKS = "_broadcast_sigterm_tensor"


def ask_rarely(trainer: Trainer, every: int) -> None:
    """Lets a run of several processes ask whether the first one got SIGTERM only before every so many batches.

    Lightning 2.6 broadcasts a tensor before each batch and reads it: the host then waits each time until the GPU has
    finished the step before, and cannot prepare the next one meanwhile. Who is told to end still ends after the batch
    that it is at; Lightning's launcher tells all processes of a machine. On other machines it may take until the next question.

    Args:
        trainer: At the start of the training; nothing is changed in a run of one process.
        every: Batches between two questions.
    """
    loop: Any = trainer.fit_loop.epoch_loop
    if trainer.world_size > 1 and hasattr(loop, _ASKS):
        loop.__dict__.pop(_ASKS, None)  # of a fit before this one
        setattr(loop, _ASKS, _every(max(1, every), getattr(loop, _ASKS)))


def _every(times: int, ask: Callable[[], None]) -> Callable[[], None]:
    calls = count()

    def asked() -> None:
        if next(calls) % times == 0:
            ask()

    return asked
