"""Lightning's command line as facelit has it: its options, their defaults, and what a checkpoint or the machine settles."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any, ClassVar

from jsonargparse import Namespace
from pytorch_lightning import Callback
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.strategies import Strategy
from pytorch_lightning.utilities.rank_zero import rank_zero_info

from facelit import backbones, heads
from facelit.callbacks import (
    EmbeddingWriter,
    LastCheckpoint,
    ModelTable,
    ProgressLog,
    QuickProgressBar,
    RunReport,
    VerificationCallback,
)
from facelit.callbacks.checkpoint_files import CheckpointFiles
from facelit.checkpoints import CHECKPOINT_KEY, check_fits, find_checkpoint, num_identities, read_checkpoint
from facelit.cli.config_files import expand_paths, with_our_config_file
from facelit.cli.errors import explain
from facelit.cli.program import program
from facelit.cli.resume import adopt_init_backbone, adopt_model, refuse_other_model
from facelit.cli.run_folders import checkpoint_folders, continue_in_same_folder, first_logger, folder_of_runs
from facelit.cli.run_name import (
    AUTO,
    keep_other_run,
    newest_complete,
    newest_run_only,
    refuse_other_run,
    use_run,
)
from facelit.data.datamodule import NO_TRAINING_SET
from facelit.errors import FacelitError
from facelit.lightning import CommandLineWins, start_anew_unless_told
from facelit.speed.hardware import allow_tf32, best_precision, default_cudnn_benchmark, faster_precision
from facelit.storage.progress import draws_bars
from facelit.training.distillation import without_teacher

__all__ = [
    "BEST_NAME",
    "MONITOR",
    "FacelitCLI",
    "FacelitParser",
    "backbones",
    "heads",
]  # importing the rooms lets short class names resolve

MONITOR = "val/accuracy"
BEST_NAME = "epoch{epoch:03d}-step{step:07d}-accuracy{val/accuracy:.4f}"


class FacelitParser(LightningArgumentParser):
    """Says what is wrong in a line or two, with the closest match, instead of a page of usage."""

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Ends the program with status 2."""
        raise FacelitError(explain(message, self))

    def add_argument(self, *args: Any, **kwargs: Any) -> Any:
        """Puts our own kind of `--config` in the place of Lightning's."""
        return super().add_argument(*args, **with_our_config_file(kwargs))

    def add_method_arguments(self, *args: Any, **kwargs: Any) -> list[str]:
        """Turns off Lightning's table of the figures, which cuts what facelit's own lines say in full."""
        added: list[str] = super().add_method_arguments(*args, **kwargs)
        if "verbose" in added:
            self.set_defaults({"verbose": False})
        return added


class FacelitCLI(CommandLineWins, LightningCLI):
    """Joins data, model and trainer; the head is sized by the data, or by the checkpoint."""

    checkpoint: dict[str, Any] | None = None
    goes_on: ClassVar[bool] = False
    """Whether the same command goes on with the run of this process: `--ckpt_path auto`, maybe from a file."""
    typed: ClassVar[str | None] = None
    """The command, where it is the first argument."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The typed command alone, as each command's parser takes a tenth of a second to build; all, if options come first."""
        commands = LightningCLI.subcommands()
        return {name: skipped for name, skipped in commands.items() if FacelitCLI.typed in (name, None)}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The callbacks that every run has, and the values that nobody should have to type."""
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.add_lightning_class_args(LastCheckpoint, "last_checkpoint")
        parser.add_lightning_class_args(VerificationCallback, "verification")
        parser.add_lightning_class_args(EmbeddingWriter, "embeddings")
        parser.add_argument(
            "--run_name",  # not --run, which torchrun takes for a part of its own --run-path
            type=str | None,
            default=None,
            help="Name of the run, which restarts share: the folder of its logs and checkpoints. With --ckpt_path auto the same"
            " command starts it, and goes on with it from then on.",
        )
        parser.set_defaults(
            {
                "checkpoint.monitor": MONITOR,
                "checkpoint.mode": "max",
                "checkpoint.filename": BEST_NAME,
                "checkpoint.auto_insert_metric_name": False,
            }
        )
        parser.link_arguments("seed_everything", "data.seed", compute_fn=int)
        parser.link_arguments("model.backbone.init_args.embedding_dim", "model.head.init_args.embedding_dim")
        parser.link_arguments(
            "data.num_identities",
            "model.head.init_args.num_identities",
            compute_fn=self._count_identities,
            apply_on="instantiate",
        )

    def before_instantiate_classes(self) -> None:
        """Leaves out what the subcommand does not need, and settles who wins: checkpoint or configuration."""
        config = expand_paths(self.config)[self.subcommand]
        if self.subcommand == "fit" and config.data.train is None:
            raise FacelitError(NO_TRAINING_SET)
        if self.subcommand == "fit" and config.model.init_backbone is not None:
            adopt_init_backbone(config.model)
        FacelitCLI.goes_on = config.ckpt_path == AUTO
        use_run(config, str(self.subcommand))
        own_folder = not config.checkpoint.dirpath and first_logger(config) is not False
        if self.subcommand == "fit" and config.ckpt_path is None and not own_folder and not config.trainer.fast_dev_run:
            keep_other_run(checkpoint_folders(config))
        CheckpointFiles.logs = folder_of_runs(config) / (config.run_name or "")
        if self.subcommand != "fit":
            config.data.train = None
            if config.ckpt_path is None:
                raise FacelitError(f"{self.subcommand} needs a trained network: --ckpt_path FILE (or last, or best)")
        if self.subcommand == "predict":
            config.data.verification = None
        sets = (config.data.verification or {}).values()
        if all(options is None for options in sets):
            config.data.verification = None
            if config.checkpoint.monitor == MONITOR:
                config.checkpoint.monitor = None
            if config.checkpoint.filename == BEST_NAME:
                config.checkpoint.filename = "epoch{epoch:03d}-step{step:07d}"
        # Best is chosen where it is measured. (After a resume an epoch may end without a validation of its own.)
        if config.checkpoint.save_on_train_epoch_end is None:
            config.checkpoint.save_on_train_epoch_end = not config.data.verification
        if config.checkpoint.dirpath is None and config.checkpoint.filename == BEST_NAME:
            # In a run's own folder this name is taken where a validation is made up after which a run was killed.
            config.checkpoint.enable_version_counter = False
        self._suit_hardware(config.trainer)
        self._choose_output(config.trainer)
        config.trainer.strategy = _strategy(config.trainer.strategy)
        if config.ckpt_path is not None:
            self._use_checkpoint(config)
        if "init_args" not in config.model.head:
            # Where a head has no options, Lightning's link has no place for num_identities.
            config.model.head.init_args = Namespace()  # type: ignore[no-untyped-call]  # jsonargparse's own

    def instantiate_classes(self) -> None:
        """Builds everything, then makes sure that the checkpoint fits before anything starts."""
        try:
            super().instantiate_classes()
            start_anew_unless_told(self.trainer)
        except ValueError as error:
            raise FacelitError(str(_root_cause(error))) from error
        if self.checkpoint is not None:
            path = self.config[self.subcommand].ckpt_path
            what = "the network of this configuration"
            check_fits(self.model.state_dict(), without_teacher(self.checkpoint["state_dict"]), path, what)
            self.checkpoint = None
        if self.subcommand == "fit":
            rank_zero_info(_what_chooses(self.config[self.subcommand]))

    def _suit_hardware(self, options: Namespace) -> None:
        """Fills in what the user left open, by what the machine has."""
        if options.precision is None:
            options.precision = best_precision(options.accelerator)
            if self.subcommand == "fit" and (hint := faster_precision(options.accelerator)):
                rank_zero_info(hint)
        if options.benchmark is None:
            options.benchmark = default_cudnn_benchmark(options.accelerator, options.deterministic)
        allow_tf32(options.accelerator, options.precision)

    def _choose_output(self, options: Namespace) -> None:
        """What is shown in the terminal, except for what the user has chosen or does not want."""
        callbacks = options.callbacks or []  # one alone need not be a list
        listed = callbacks if isinstance(callbacks, list) else [callbacks]
        chosen = [str(getattr(callback, "class_path", "")) for callback in listed]
        shown: list[Callback] = []
        if options.enable_progress_bar is not False and not any(path.endswith("ProgressBar") for path in chosen):
            shown.append(QuickProgressBar() if draws_bars(sys.stdout) else ProgressLog())
        if options.enable_model_summary is not False and not any(path.endswith("ModelSummary") for path in chosen):
            shown.append(ModelTable())
        self.trainer_defaults["callbacks"] = [*shown, RunReport(program())]

    def _use_checkpoint(self, config: Namespace) -> None:
        if config.ckpt_path in ("last", "best"):
            folders = checkpoint_folders(config)
            newest_run_only(config.ckpt_path, folders)
            config.ckpt_path = str(find_checkpoint(config.ckpt_path, folders))
            rank_zero_info(f"Using {config.ckpt_path}")
        if FacelitCLI.goes_on:
            config.ckpt_path, self.checkpoint = newest_complete(config.ckpt_path)
            refuse_other_run(config, self.checkpoint)
        else:
            self.checkpoint = read_checkpoint(config.ckpt_path)
        if self.subcommand == "fit":
            LastCheckpoint.newest = Path(config.ckpt_path)
            refuse_other_model(config.model, self.checkpoint, config.ckpt_path)
            if config.run_name is None:
                continue_in_same_folder(config)
        else:
            adopt_model(config.model, self.checkpoint)

    def _count_identities(self, from_data: int | None) -> int | None:
        """Of the training set; without one, of the checkpoint's head."""
        if from_data is not None:
            return from_data
        checkpoint = self.checkpoint or {}
        if CHECKPOINT_KEY not in checkpoint:
            raise FacelitError(
                "the checkpoint does not say how many identities its head has: it is not one of facelit's."
            )
        return num_identities(checkpoint)  # None for a head that takes no such argument


def _what_chooses(config: Namespace) -> str:
    """Which verification sets count in a run, and by what its best checkpoint is chosen."""
    sets, monitor = config.data.verification or {}, config.checkpoint.monitor
    names = [name for name, options in sets.items() if options is not None]
    if not names:
        return "No verification sets (data.verification): no figures, and no best checkpoint."
    if reason := _why_never_validated(config.trainer):
        return f"No validation in this run ({reason}): no figures, and no best checkpoint."
    by = f"the accuracy on {names[0]}" if monitor == MONITOR else monitor or "nothing (checkpoint.monitor is null)"
    return f"Verification sets: {', '.join(names)}. The best checkpoint is chosen by {by}."


def _why_never_validated(trainer: Namespace) -> str:
    """The options that keep a run from validating; empty where it does."""
    every, epochs = trainer.check_val_every_n_epoch, trainer.max_epochs
    if trainer.limit_val_batches == 0:
        return "trainer.limit_val_batches 0"
    if every and epochs and 0 < epochs < every:
        return f"trainer.check_val_every_n_epoch {every}, trainer.max_epochs {epochs}"
    return ""


def _root_cause(error: BaseException) -> BaseException:
    """What a class said when it was built, below what jsonargparse made of it."""
    while (cause := error.__cause__ or error.__context__) is not None and not isinstance(error, FacelitError):
        error = cause
    return error


def _strategy(option: Any) -> Any:
    """A class's import path, typed without options of its own, passes the parser as one of Lightning's names."""
    if not isinstance(option, str) or "." not in option:
        return option
    module, _, name = option.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise FacelitError(f"trainer.strategy: there is no class {option} ({error}).") from None
    if not (isinstance(found, type) and issubclass(found, Strategy)):
        raise FacelitError(f"trainer.strategy: {option} is not a Lightning strategy.")
    return Namespace(class_path=option, init_args=Namespace())  # type: ignore[no-untyped-call]  # jsonargparse's own
