"""The training commands: `fit`, `validate`, `test` and `predict`, from YAML files and dotted overrides."""

from __future__ import annotations

import logging
import sys
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path

from pytorch_lightning.cli import ArgsType, LightningCLI
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from facelit.callbacks import (
    EmbeddingWriter,
    LastCheckpoint,
    RunStopped,
    StopSignals,
)
from facelit.callbacks.checkpoint_files import CheckpointFiles, explain_disk
from facelit.cli.errors import explain_memory, name_broken_config
from facelit.cli.lasting_output import outlive_readers
from facelit.cli.lightning_cli import FacelitCLI, FacelitParser
from facelit.cli.processes import Processes
from facelit.cli.requeue import requeue_first
from facelit.cli.saved_config import SaveRunConfig
from facelit.cli.way_on import way_on
from facelit.data import FaceDataModule
from facelit.data.workers import explain_lost_worker
from facelit.distributed import world_size
from facelit.errors import FacelitError
from facelit.lightning import is_first_process
from facelit.storage.text import one_line
from facelit.training.recognizer import FaceRecognizer


def main(args: ArgsType = None) -> None:
    """Runs the program; a user error ends it with a short message and status 2.

    Args:
        args: Arguments instead of the command line's, for calling it from Python.
    """
    quieten()
    # The user's own classes, named by import path, are found where the program is started; last, so that they shadow nothing.
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    typed = [str(argument) for argument in args] if isinstance(args, list) else sys.argv[1:]
    processes = Processes(typed)
    processes.watch()
    LastCheckpoint.newest = None
    FacelitCLI.goes_on = False
    first = typed[0] if typed and (args is None or isinstance(args, list)) else None
    if first in LightningCLI.subcommands():
        outlive_readers()
    FacelitCLI.typed = first if first in LightningCLI.subcommands() else None
    CheckpointFiles.folder = CheckpointFiles.logs = None
    try:
        cli = FacelitCLI(
            FaceRecognizer,
            FaceDataModule,
            save_config_callback=SaveRunConfig,
            parser_class=FacelitParser,
            parser_kwargs={"allow_abbrev": False},
            trainer_defaults={"use_distributed_sampler": False, "num_sanity_val_steps": 0},
            seed_everything_default=42,
            auto_configure_optimizers=False,
            args=args,
        )
    except RunStopped as stop:
        # Outside of training the others may not know, and have nothing to save.
        processes.wait(30.0 if stop.step is not None else 1.0)
        _say_stopped(stop, typed)
        if stop.requeue:
            requeue_first(FacelitCLI.goes_on)
        if stop.code:
            sys.exit(stop.code)
        return
    except (KeyboardInterrupt, SystemExit) as end:
        # While a run is set up Lightning makes status 1 of Ctrl-C, and kills the processes that it started.
        if not isinstance(end, KeyboardInterrupt) and not isinstance(end.__context__, KeyboardInterrupt):
            raise
        StopSignals.stopping = True
        if is_first_process():
            print("facelit: stopped.", file=sys.stderr)
        sys.exit(130)
    except (FacelitError, MisconfigurationException) as error:
        message = name_broken_config(str(error), typed)
        if world_size() > 1:
            processes.fail(FacelitError(message), message)
        print(f"facelit: error: {one_line(message)}", file=sys.stderr)
        sys.exit(2)
    except Exception as error:
        told: FacelitError | None = explain_memory(error)
        if told is None:
            told = explain_lost_worker(error)
        if told is None and isinstance(error, OSError):
            told = explain_disk(error)
        if world_size() > 1:
            what = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
            processes.fail(told or error, str(told or what))
        if told is None:
            raise
        print(f"facelit: error: {one_line(str(told))}", file=sys.stderr)
        sys.exit(2)
    writers = [one for one in cli.trainer.callbacks if isinstance(one, EmbeddingWriter)]
    if cli.subcommand == "predict" and is_first_process() and any(writer.skipped for writer in writers):
        # As embed does where photos were left out. The others end before the first has written the file, which would be killed
        # if they failed.
        sys.exit(1)


def _say_stopped(stop: RunStopped, arguments: Sequence[str]) -> None:
    """The last line of a run that was told to stop; of its first process only."""
    if is_first_process():
        what = "stopped by" if stop.step is None else f"stopped by {stop.cause} after step {stop.step}."
        rest = f" {stop.cause}." if stop.step is None else f" {way_on(arguments, LastCheckpoint.newest)}"
        print(f"facelit: {what}{rest}", file=sys.stderr)


def quieten() -> None:
    """Silences remarks that no user of facelit can do anything about."""
    if threading.excepthook is threading.__excepthook__:
        threading.excepthook = _thread_failed
    # Lightning walks batches with torch's pytree and calls what torch renames.
    warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\)")
    # `facelit.cli` looks at the arguments first, and hands them on.
    warnings.filterwarnings("ignore", message=r"LightningCLI's args parameter is intended")
    # Training without verification is a choice.
    warnings.filterwarnings("ignore", message=r"Total length of `list` across ranks is zero")
    # A resumed run goes on in its own folder, and may choose its checkpoints by another figure than before.
    warnings.filterwarnings("ignore", message=r"Checkpoint directory .* exists and is not empty")
    warnings.filterwarnings("ignore", message=r"Experiment logs directory .* exists and is not empty")
    warnings.filterwarnings("ignore", message=r"The dirpath has changed from")
    warnings.filterwarnings("ignore", message=r"Be aware that when using `ckpt_path`, callbacks used")
    logging.getLogger("pytorch_lightning.utilities.rank_zero").addFilter(
        lambda record: (
            not any(said in record.getMessage() for said in ("litlogger", "already configured with model summary"))
        )
    )


def _thread_failed(failed: threading.ExceptHookArgs) -> None:
    """Where the disk is full, TensorBoard's writing thread hands its error to the main thread, which says so."""
    if not (isinstance(failed.exc_value, OSError) and explain_disk(failed.exc_value)):
        threading.__excepthook__(failed)
