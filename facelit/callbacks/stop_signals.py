"""Ends a run in good order when the machine, the user or the clock asks for it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from types import FrameType
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import Timer

from facelit.lightning import ends_step, on_signals, replace_sigterm_check, requeue_signal
from facelit.storage.system import ASKING_TO_STOP

SECONDS_BETWEEN_QUESTIONS = 2.0
_OUT_OF_TIME = 1000  # among signal numbers


class RunStopped(SystemExit):
    """A run was asked to stop, and has.

    Attributes:
        cause: "SIGTERM", "SIGINT", "SIGUSR1", ... or "trainer.max_time".
        code: The exit status: 128 and the signal's number; 0 where the time was up.
        step: Optimizer steps made; None outside of training.
        signum: The signal; None where the time was up.
        requeue: Whether it is the signal by which SLURM says that the job's time is nearly over.
    """

    code: int

    def __init__(self, cause: int, step: int | None = None, requeue: bool = False) -> None:
        self.signum = None if cause == _OUT_OF_TIME else cause
        self.cause = "trainer.max_time" if self.signum is None else signal.Signals(cause).name
        self.step = step
        self.requeue = requeue
        super().__init__(0 if self.signum is None else 128 + cause)


class StopSignals(Callback):
    """Saves `last.ckpt` and ends the run at SIGTERM, Ctrl-C, and other signals that ask for it, and when `trainer.max_time` is over.

    Those are a closed terminal's (SIGHUP, unless `nohup` has it ignored), and schedulers': SIGUSR1, SIGUSR2 and SIGXCPU.

    The handler only sets a flag: Lightning's own broadcasts inside the signal, and hangs while another process waits in a
    collective. While a run is set up there is nothing to save, and it ends at once. The processes of a run agree between batches, of training and validation, about every two seconds and at least
    every `log_every_n_steps` batches: asking costs an all-reduce of two numbers. The run then ends at its next optimizer step,
    which `LastCheckpoint` saves; in a validation, at once: a resumed run makes it up. All processes raise `RunStopped`.
    A second Ctrl-C ends the process on the spot.

    `max_time` is a budget of each start of a run, not of the run's life. `FaceRecognizer` brings this callback.

    Args:
        command_line: Whether the run is all that the program does: Ctrl-C and `max_time` are handled, too. By default Ctrl-C is left
            to Python, as notebooks expect, and `max_time` to Lightning, whose `fit` then returns.
    """

    stopping: ClassVar[bool] = False
    """Whether the run of this process has agreed to stop: other processes then end, too, and that is not a failure."""

    def __init__(self, command_line: bool = False) -> None:
        self._command_line = command_line
        self._signals = [signum for signum in ASKING_TO_STOP if command_line or signum != signal.SIGINT]
        self._requeue_signal: int | None = None
        self._found: dict[int, Any] = {}
        self._received = self._agreed = 0
        self._seconds: float | None = None
        self._deadline: float | None = None
        self._batches_left = self._batches_since = 0
        self._asked_at = 0.0
        self._speaks = False
        self.ready = False
        """Whether the run stops here: what is saved now is what it goes on from."""

    @staticmethod
    def of(trainer: Trainer) -> StopSignals | None:
        """The one of a trainer."""
        return next((callback for callback in trainer.callbacks if isinstance(callback, StopSignals)), None)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Replaces Lightning's handlers and, as it counts the seconds of earlier starts too, its timer."""
        self._received = self._agreed = 0
        self.ready = StopSignals.stopping = False
        fits = stage == "fit"
        self._requeue_signal = requeue_signal(trainer)
        if self._requeue_signal is not None:
            self._signals = [*{*self._signals, self._requeue_signal}]
        on_signals(trainer, self._restore, lambda: self._install(self._note if fits else self._stop_now, trainer))
        self._restore()
        self._found = {signum: handler for signum in self._signals if (handler := signal.getsignal(signum)) is not None}
        self._install(self._stop_now, trainer)
        timers = [callback for callback in trainer.callbacks if type(callback) is Timer]
        if fits and timers and self._command_line:
            budgets = [left for timer in timers if (left := timer.time_remaining()) is not None]
            self._seconds = min(budgets, default=None)
            # A new list: Lightning is going through the old one.
            trainer.callbacks = [callback for callback in trainer.callbacks if callback not in timers]

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Lets go of the signals, where the run was not set up to its end."""
        self._restore()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock."""
        self._deadline = None if self._seconds is None else monotonic() + self._seconds
        self._batches_left = self._batches_since = 0
        self._asked_at = monotonic()
        replace_sigterm_check(trainer, lambda: self._agree(trainer))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends the run, if the last step was its last."""
        self._stop_if_ready(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Ends the run, if the last step was its last; its figures have been logged."""
        self._stop_if_ready(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Settles whether this step is the last."""
        self.ready = self._wanted(trainer) and ends_step(trainer, batch_idx)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends the run before a validation: it is made up when the run goes on."""
        self._stop_if_ready(trainer)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Ends the run in the middle of a validation."""
        self._stop_if_ready(trainer)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Settles whether the validation is broken off here."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            if trainer.world_size > 1:
                self._agree(trainer)
            self.ready = self._wanted(trainer)

    def _install(self, handler: Callable[[int, FrameType | None], None], trainer: Trainer) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        self._speaks = trainer.is_global_zero
        for signum in self._signals:
            if signum != getattr(signal, "SIGHUP", None) or signal.getsignal(signum) != signal.SIG_IGN:  # nohup
                signal.signal(signum, handler)

    def _restore(self) -> None:
        """The handlers that were there before a run was set up."""
        if threading.current_thread() is threading.main_thread():
            for signum, handler in self._found.items():
                signal.signal(signum, handler)
        self._found = {}

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self._received = self._received or signum
        if signum == signal.SIGINT:
            signal.signal(signum, signal.SIG_DFL)
            if self._speaks:
                with suppress(OSError):  # Ctrl-C ends `| tee log`, too
                    os.write(2, b"\nStopping after this step, which is saved first; Ctrl-C again stops at once.\n")

    def _stop_now(self, signum: int, frame: FrameType | None) -> None:
        """Outside of training there is nothing to save."""
        StopSignals.stopping = True
        raise RunStopped(signum)

    def _own_wish(self) -> int:
        if not self._received and self._deadline is not None and monotonic() >= self._deadline:
            return _OUT_OF_TIME
        return self._received

    def _wanted(self, trainer: Trainer) -> bool:
        if trainer.world_size == 1:
            self._agreed = self._own_wish()
        return bool(self._agreed)

    def _agree(self, trainer: Trainer) -> None:
        """Every process calls this at every batch: now and then they ask each other."""
        self._batches_since += 1
        self._batches_left -= 1
        if self._batches_left > 0 or self._agreed:
            return
        now = monotonic()
        batches = SECONDS_BETWEEN_QUESTIONS * self._batches_since / max(now - self._asked_at, 1e-6)
        batches = max(1, min(int(batches), trainer.log_every_n_steps))
        message = torch.tensor([self._own_wish(), batches], device=trainer.strategy.root_device)
        dist.all_reduce(message, op=dist.ReduceOp.MAX)
        self._agreed, self._batches_left = (int(number) for number in message.tolist())
        self._batches_since, self._asked_at = 0, now

    def _stop_if_ready(self, trainer: Trainer) -> None:
        if not self.ready or trainer.state.fn != "fit":
            return
        StopSignals.stopping = True
        raise RunStopped(self._agreed, trainer.global_step, self._agreed == self._requeue_signal)
