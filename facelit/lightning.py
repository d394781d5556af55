"""The one door to Lightning's internals: every private name that facelit relies on, and where in a run the trainer is.

A private name may change in any release. That is why pyproject.toml allows one minor version of Lightning, and why
`tests/test_lightning.py` probes every entry of `PRIVATE_NAMES`: on a release that lacks or changes one, the test of that
name fails. Where Lightning or torch offers a public way, facelit takes that instead.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from math import inf
from typing import Any, NamedTuple

from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import EarlyStopping
from pytorch_lightning.core.mixins.hparams_mixin import _given_hyperparameters
from pytorch_lightning.loops.loop import _Loop
from pytorch_lightning.strategies import Strategy
from pytorch_lightning.strategies.launchers import _MultiProcessingLauncher, subprocess_script
from pytorch_lightning.trainer.connectors.checkpoint_connector import _CheckpointConnector
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from torch import nn
from torch._dynamo.exc import TorchDynamoException as CompilationError
from torch.distributed import is_available, is_initialized
from torch.distributed.distributed_c10d import PrefixStore, Store, _get_default_store
from torch.optim import Optimizer

__all__ = [
    "PRIVATE_NAMES",
    "CommandLineWins",
    "CompilationError",
    "Place",
    "batches_in_epoch",
    "begin_next_epoch",
    "begin_with_validation",
    "default_store",
    "ends_step",
    "exclude_from_ddp",
    "finish_epoch",
    "forbid_fused_unscaling",
    "forget_finished_epoch",
    "forget_validation",
    "is_first_process",
    "log_figures_now",
    "logs_step",
    "looks_after_epochs",
    "made_by_command_line",
    "on_signals",
    "place_in_run",
    "replace_process_observer",
    "replace_sigterm_check",
    "requeue_signal",
    "separate_restarts",
    "set_max_steps",
    "spawns_processes",
    "start_anew_unless_told",
    "stops_after_batch",
    "trainer_of",
    "unscales_in_step",
    "validation_follows",
    "validation_pending",
]

PRIVATE_NAMES = {
    "_given_hyperparameters": "modules made in Python pickle objects into their checkpoints, which weights_only refuses",
    "_MultiProcessingLauncher": "a sharded head trains under ddp_spawn, which brings back the rows of process 0 only",
    "_Loop.restarting": "a run resumed at the end of an epoch under max_steps skips the next epoch",
    "_batches_that_stepped": "loggers count one step too few after a resume at the end of an epoch",
    "_logger_connector": "a run killed right after a save lacks the figures of that step in its curves",
    "_can_stop_early": "a run that max_time ends within an epoch leaves no last.ckpt of its last step",
    "_broadcast_sigterm_tensor": "on several GPUs every step waits for the one before it, and one process stops alone",
    "_signal_connector": "SIGTERM hangs a run of several processes: Lightning broadcasts while it handles the signal",
    "_should_check_val_fx": "a checkpoint does not know that a validation was due, and a resumed run leaves it out",
    "_data_fetcher": "the same",
    "_launch_process_observer": "a run of several processes ends with SIGKILL when one fails, and does not say why",
    "_create_c10d_store": "processes that torchrun has restarted may try to reach those of the start before",
    "_get_default_store": "the others do not know why a process failed",
    "_accelerator_connector": "SLURM's signal before the time limit does not put the job back into the queue",
    "_select_ckpt_path": "a new run takes up another's hpc_ckpt_N.ckpt (under SLURM) or on_exception.ckpt, unasked",
    "_check_on_train_epoch_end": "EarlyStopping that looks after epochs without a validation ends the run in a traceback",
    "_combined_loader": "a run resumed with longer epochs makes up a validation in the middle of one",
    "_parse_ckpt_path": "the hyperparameters in a checkpoint silently override the command line",
    "_ddp_params_and_buffers_to_ignore": "DDP broadcasts and averages the rows of a sharded head, which differ on purpose",
    "_step_supports_amp_scaling": "Lightning refuses to clip the gradients of a fused optimizer",
    "TorchDynamoException": "a machine without a compiler ends model.compile in a traceback",
    "fit_loop.epoch_progress.current": "schedules and samplers do not know which epoch a resumed run is in",
    "fit_loop.epoch_loop.batch_progress.current": "a checkpoint does not know how far its epoch had come",
    "fit_loop.reset_restart_stage": "a checkpoint from the first epoch after a resume says that this epoch is over",
}
"""What breaks without each name: those of Lightning, then torch's, then attributes that Lightning does not document."""


class Place(NamedTuple):
    """Where in a run a trainer is.

    Attributes:
        epochs_finished: Epochs whose batches have all been trained on.
        epoch_begun: Whether another epoch has begun.
        batches_begun: Batches of that epoch that have been handed to the network (workers may have read further ahead).
    """

    epochs_finished: int
    epoch_begun: bool
    batches_begun: int


def place_in_run(trainer: Trainer) -> Place:
    """Where in the run the trainer is; in a resumed run right from the start."""
    epoch = trainer.fit_loop.epoch_progress.current
    batches = trainer.fit_loop.epoch_loop.batch_progress.current.ready
    return Place(epoch.processed, epoch.ready > epoch.processed, batches)


def ends_step(trainer: Trainer, batch_idx: int) -> bool:
    """Whether an optimizer step follows this batch: enough batches are accumulated, or the epoch ends."""
    accumulated = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
    return bool(accumulated or trainer.is_last_batch or batch_idx + 1 == trainer.num_training_batches)


def logs_step(trainer: Trainer, step: int) -> bool:
    """Whether `trainer.log_every_n_steps` asks for the figures of optimizer step number `step`, counted from 1."""
    return bool(step % max(1, trainer.log_every_n_steps) == 0)


def looks_after_epochs(callback: EarlyStopping) -> bool:
    """Whether it was told to look after each epoch, rather than after each validation."""
    return callback._check_on_train_epoch_end is True


def log_figures_now(trainer: Trainer) -> None:
    """Hands the figures of the batch just trained on to the loggers: call it at the end of a batch, before a checkpoint is written.

    Lightning does so after all callbacks: a run killed in between would go on after a step whose figures nobody wrote down. It then
    hands on only what has been logged, or has changed, since.
    """
    connector: Any = trainer._logger_connector
    update, log = connector.update_train_step_metrics, connector.log_metrics
    logged = dict(connector.metrics["log"])
    update()

    def log_rest(figures: Mapping[str, Any]) -> None:
        log({name: value for name, value in figures.items() if name not in logged or bool(value != logged[name])})

    def update_rest() -> None:
        del connector.update_train_step_metrics
        connector.log_metrics = log_rest
        try:
            update()
        finally:
            del connector.log_metrics

    connector.update_train_step_metrics = update_rest


def stops_after_batch(trainer: Trainer) -> bool:
    """Whether the run ends with the batch just trained on, maybe within an epoch (`max_steps`, `max_time`)."""
    stopped = trainer.should_stop and trainer.fit_loop._can_stop_early
    return bool(stopped or trainer.global_step == trainer.max_steps)


def begin_next_epoch(trainer: Trainer) -> None:
    """Counts the epoch after a finished one as begun; call it when a resumed run starts to train.

    Lightning leaves it uncounted, and a checkpoint written in the middle of that epoch would say that it is over.
    """
    if not place_in_run(trainer).epoch_begun:
        trainer.fit_loop.reset_restart_stage()


def forget_finished_epoch(trainer: Trainer) -> None:
    """Lets the epoch after a finished one begin as any other does.

    Under `max_steps` Lightning takes a finished epoch for an interrupted one, and would skip the next.
    """
    epoch = trainer.fit_loop.epoch_progress.current
    if trainer.fit_loop.restarting and epoch.ready == epoch.started == epoch.processed:
        _stop_restarting(trainer)


def finish_epoch(trainer: Trainer) -> None:
    """Closes the epoch that a checkpoint was written at the end of, so that the run goes on with the next.

    If this run's epochs are longer than the checkpoint's, Lightning would train on the batches it thinks are missing.
    """
    trainer.fit_loop.epoch_progress.increment_processed()
    # Lightning counts the last batch after the validation that wrote the checkpoint.
    trainer.fit_loop.epoch_loop._batches_that_stepped += 1
    _stop_restarting(trainer)


def _stop_restarting(trainer: Trainer) -> None:
    # The fit loop overrides the setter, and would not let go.
    _Loop.restarting.fset(trainer.fit_loop, False)  # type: ignore[attr-defined]  # a property


def batches_in_epoch(trainer: Trainer) -> float:
    """Batches of this run's epochs, known when the loader is given its state back."""
    loader = trainer.fit_loop._combined_loader
    limits = loader.limits if loader is not None else None
    return limits[0] if limits and limits[0] is not None else inf


def validation_follows(trainer: Trainer) -> bool:
    """Whether a validation comes right after the batch that the trainer is at."""
    loop, fetcher = trainer.fit_loop.epoch_loop, trainer.fit_loop._data_fetcher
    return fetcher is not None and not loop.val_loop.skip and loop._should_check_val_fx(fetcher)


def begin_with_validation(loops: dict[str, Any]) -> None:
    """Changes the `loops` of a checkpoint so that a run resumed from it validates before it trains.

    Lightning does so of itself only where the checkpoint was written in the middle of the validation.
    """
    fit = loops["fit_loop"]
    batches, validated = fit["epoch_loop.batch_progress"], fit["epoch_loop.val_loop.batch_progress"]
    for part in ("total", "current"):
        batches[part]["completed"] = batches[part]["processed"]
    validated["total"] = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
    validated["current"] = dict.fromkeys(validated["total"], 0)
    validated["is_last_batch"] = False


def validation_pending(trainer: Trainer) -> bool:
    """Whether `begin_with_validation` has changed what the trainer was resumed from, and the validation is still to come."""
    if not trainer.fit_loop.restarting:
        return False
    batches = trainer.fit_loop.epoch_loop.val_loop.batch_progress.total
    return bool(batches.started > batches.processed)


def forget_validation(trainer: Trainer) -> None:
    """Undoes `begin_with_validation`: when the validation has begun, or does not fit this run any more."""
    trainer.fit_loop.epoch_loop.val_loop.batch_progress.total.reset()


def set_max_steps(trainer: Trainer, steps: int) -> None:
    """Changes `trainer.max_steps`: at the last step Lightning would end a resumed run before the pending validation."""
    trainer.fit_loop.epoch_loop.max_steps = steps


def replace_sigterm_check(trainer: Trainer, check: Callable[[], None]) -> None:
    """Has a run of several processes call `check` before every training batch.

    Lightning would broadcast whether process 0 received SIGTERM, and wait until the device answers.
    """
    loop: Any = trainer.fit_loop.epoch_loop
    loop._broadcast_sigterm_tensor = check


def on_signals(trainer: Trainer, before: Callable[[], None], install: Callable[[], None]) -> None:
    """Calls `install` once Lightning has set its signal handlers, which it takes down, with ours, when the run ends.

    Lightning then restores those that it found: `before` is called right before it looks.
    """
    connector: Any = trainer._signal_connector
    connector.__dict__.pop("register_signal_handlers", None)
    register = connector.register_signal_handlers

    def register_both() -> None:
        before()
        register()
        install()

    connector.register_signal_handlers = register_both


def replace_process_observer(observe: Callable[[list[subprocess.Popen[bytes]]], None]) -> None:
    """Hands the processes that Lightning's launcher has started to `observe`, instead of to a thread of its own."""
    subprocess_script._launch_process_observer = observe  # type: ignore[assignment]  # replaced on purpose


def default_store() -> Store | None:
    """What the processes of a run found each other by: keys and values; None without several."""
    return _get_default_store() if is_available() and is_initialized() else None


def requeue_signal(trainer: Trainer) -> int | None:
    """The signal by which SLURM says that the job's time is nearly over; None outside of SLURM, or if it is not to be requeued."""
    environment = trainer._accelerator_connector.cluster_environment
    if not isinstance(environment, SLURMEnvironment) or not environment.auto_requeue:
        return None
    return environment.requeue_signal


def separate_restarts(number: str) -> None:
    """Keeps what processes tell each other in a restart by torchrun apart from what they told each other before.

    torchrun keeps its store: a process that is quicker than another finds that one's old address in it. The number must be
    the same on all processes, and is on one machine only; over several, `TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1` does it.
    """
    rendezvous: Any = import_module("torch.distributed.rendezvous")  # torch.distributed has a function of this name
    create = rendezvous._create_c10d_store

    def create_apart(*args: Any, **options: Any) -> Store:
        return PrefixStore(f"restart-{number}", create(*args, **options))

    rendezvous._create_c10d_store = create_apart


class _NamedCheckpointsOnly(_CheckpointConnector):  # type: ignore[misc]  # untyped there
    def _select_ckpt_path(self, state_fn: Any, ckpt_path: Any, *args: Any, **kwargs: Any) -> Any:
        return None if ckpt_path is None else super()._select_ckpt_path(state_fn, ckpt_path, *args, **kwargs)


def start_anew_unless_told(trainer: Trainer) -> None:
    """Keeps a trainer that is given no checkpoint from looking for one itself.

    Lightning would go on, without any check, from a `hpc_ckpt_N.ckpt` in the current folder (under SLURM), or from what
    `OnExceptionCheckpoint` finds in its folder, whosever it is.
    """
    trainer._checkpoint_connector.__class__ = _NamedCheckpointsOnly


class CommandLineWins:
    """Mixin for a `LightningCLI`: a checkpoint's hyperparameters do not override the configuration."""

    def _parse_ckpt_path(self) -> None:
        """Does nothing, where Lightning would merge the checkpoint's hyperparameters into the configuration."""


def is_first_process() -> bool:
    """Whether this is process 0 of the run, also before the processes know each other."""
    return bool(getattr(rank_zero_only, "rank", 0) == 0)


def made_by_command_line() -> bool:
    """Whether the LightningModule under construction is being made by a `LightningCLI`, from plain values."""
    return _given_hyperparameters.get() is not None


def trainer_of(module: LightningModule) -> Trainer | None:
    """The trainer that a module is attached to; None outside of one, as in `load_from_checkpoint`."""
    try:
        return module.trainer
    except RuntimeError:  # Lightning's answer where there is none
        return None


def spawns_processes(strategy: Strategy) -> bool:
    """Whether the strategy runs the training in child processes, from which only process 0's weights come back."""
    return isinstance(strategy.launcher, _MultiProcessingLauncher)


def exclude_from_ddp(module: nn.Module, names: Iterable[str]) -> None:
    """Keeps DistributedDataParallel from broadcasting and averaging parameters, by their names in the state dict."""
    module._ddp_params_and_buffers_to_ignore = list(names)  # type: ignore[assignment]  # no tensor


def unscales_in_step(optimizer: Optimizer) -> bool:
    """Whether the optimizer unscales fp16 gradients inside its step, so that there are none to clip before it."""
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


def forbid_fused_unscaling(optimizer: Optimizer) -> None:
    """Declares that the optimizer's step unscales nothing: else Lightning refuses to clip, under bf16-mixed too."""
    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]  # torch sets it
