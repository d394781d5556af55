"""Figures that callbacks and schedules watch: names that no run of ours logs are refused before they cost an epoch."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint

from facelit.data.sources import VerificationSource
from facelit.errors import FacelitError
from facelit.lightning import looks_after_epochs

_FIGURES = ("accuracy", "accuracy_se", "auc", "eer", "threshold", "missing_pairs")


def verification_sets(trainer: Trainer) -> Mapping[str, VerificationSource]:
    """The data module's verification sets, in the order of its loaders."""
    sources: Mapping[str, VerificationSource] = getattr(trainer.datamodule, "verification", {})
    return sources


def check_monitors(trainer: Trainer, module: LightningModule) -> None:
    """Refuses callbacks that watch a figure of validation which there will not be, as far as can be told before training.

    Raises:
        FacelitError: A name is misspelt, or `EarlyStopping` watches validation where there is none, or looks where there was none yet.
    """
    has_validation = bool(verification_sets(trainer) and trainer.limit_val_batches)
    for callback, monitor in _watchers(trainer):
        option = f"monitor of {type(callback).__name__}"
        check_monitor(monitor, option, trainer, module)
        if not (isinstance(callback, EarlyStopping) and _is_of_validation(monitor, trainer, module)):
            continue
        if not has_validation:
            raise FacelitError(
                f"{option}: {monitor} is a figure of validation, and this run has none (data.verification, trainer.limit_val_batches)."
            )
        if looks_after_epochs(callback) and trainer.check_val_every_n_epoch != 1:
            raise FacelitError(
                f"{option}: check_on_train_epoch_end true looks at {monitor}, a figure of validation, after epochs without one, too. Leave"
                " it out, and EarlyStopping looks after each validation."
            )


def check_trained_monitors(trainer: Trainer, module: LightningModule) -> None:
    """Refuses callbacks that watch a figure of training which training has not logged. Called after the first batch that is.

    Raises:
        FacelitError: There is no such figure.
    """
    if not _all_ours(trainer, module):
        return
    watched = [(f"monitor of {type(callback).__name__}", monitor) for callback, monitor in _watchers(trainer)]
    watched += [
        ("monitor of model.lr_scheduler", each.monitor) for each in trainer.lr_scheduler_configs if each.monitor
    ]
    figures = [*trainer.callback_metrics, "epoch", "step"]
    for option, monitor in watched:
        if not _is_of_validation(monitor, trainer, module) and monitor not in figures:
            close = difflib.get_close_matches(monitor, [*figures, "val/accuracy"], 1)
            raise FacelitError(
                f"{option}: neither training nor validation gives the figure {monitor!r}.{f' Is {close[0]!r} meant?' if close else ''} Training"
                f" gives {', '.join(trainer.callback_metrics)}."
            )


def check_monitor(monitor: str, option: str, trainer: Trainer, module: LightningModule) -> None:
    """Refuses the name of a figure that a run's verification sets do not have.

    Names that do not look like one of theirs pass, and all where a class of the user's own may log figures.

    Args:
        monitor: The figure's name.
        option: What asks for it, for messages.
        trainer: Of the run.
        module: Of the run.

    Raises:
        FacelitError: There is no such set, or no such figure.
    """
    sets = list(verification_sets(trainer))
    name, _, figure = monitor.rpartition("/")
    if not sets or not _is_of_validation(monitor, trainer, module):
        return
    known = ["val/accuracy"] if name == "val" else [f"{name}/{figure}" for figure in _FIGURES]
    if name not in (*sets, "val") or (monitor not in known and not figure.startswith("tar_at_far_")):
        close = difflib.get_close_matches(
            monitor, ["val/accuracy", *(f"{one}/{some}" for one in sets for some in _FIGURES)], 1
        )
        raise FacelitError(
            f"{option}: no validation gives the figure {monitor!r}.{f' Is {close[0]!r} meant?' if close else ''} The sets are"
            f" {', '.join(sets)}, their figures {', '.join(_FIGURES)} and tar_at_far_1e-2, ..., as in {sets[0]}/auc; val/accuracy is"
            " the first set's."
        )


def _watchers(trainer: Trainer) -> Iterator[tuple[EarlyStopping | ModelCheckpoint, str]]:
    for callback in trainer.callbacks:
        if isinstance(callback, EarlyStopping) and not callback.strict:
            continue  # told not to mind
        if isinstance(callback, (EarlyStopping, ModelCheckpoint)) and callback.monitor:
            yield callback, callback.monitor


def _is_of_validation(monitor: str, trainer: Trainer, module: LightningModule) -> bool:
    """Whether it is called as figures of verification sets are, and is nobody else's."""
    name, slash, _ = monitor.rpartition("/")
    return bool(slash) and name != "train" and _all_ours(trainer, module)


def _all_ours(trainer: Trainer, module: LightningModule) -> bool:
    """Whether no class of the user's own may log figures."""
    classes = map(type, (module, *trainer.callbacks))
    return all(one.__module__.startswith(("facelit.", "pytorch_lightning.")) for one in classes)
