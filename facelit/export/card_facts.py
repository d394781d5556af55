"""Gathers the facts that a model card states, from a checkpoint and its run's folder."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from facelit.checkpoints import CHECKPOINT_KEY, num_identities, read_checkpoint
from facelit.data.sources import IdentitySource, VerificationSource
from facelit.errors import FacelitError
from facelit.inference.checkpoint import restore_backbone
from facelit.inference.run_folder import config_files, parse_config, run_folder_of

Source = TypeVar("Source", IdentitySource, VerificationSource)


class Configured(NamedTuple):
    """A class and its arguments, as in a configuration."""

    class_path: str
    init_args: dict[str, Any]

    @property
    def name(self) -> str:
        """The class name without its module."""
        return self.class_path.rpartition(".")[2]


class Counts(NamedTuple):
    """A verification set's folds and pairs, counted if the set still exists."""

    folds: int
    genuine: int
    impostors: int


class Measured(NamedTuple):
    """A verification set's figures.

    Attributes:
        name: The name under which the run logged it.
        figures: The checkpoint's figures: see `facelit.verification.calibration`.
        source: The set's class and arguments; None if not recorded.
        counts: Its folds and pairs; None if not known.
        picture: The picture of the ROC curve, if there is one.
        picture_step: The training step at which the picture was drawn; None if not known.
    """

    name: str
    figures: Mapping[str, Any]
    source: Configured | None
    counts: Counts | None
    picture: Path | None
    picture_step: int | None


class Facts(NamedTuple):
    """All that a card states; None for anything not recorded.

    Attributes:
        checkpoint: The checkpoint's path.
        run_folder: The folder of its run.
        step: The number of optimizer steps the weights were trained for.
        epoch: The epoch of that step, counted from 1.
        chosen_by: The figure by which the checkpoint was chosen.
        backbone: The backbone's class and arguments.
        parameters: The number of the backbone's parameters.
        embedding_dim: The length of an embedding.
        head: The loss.
        teacher: The options of `model.distillation`; empty if there was no teacher.
        optimizer: The network's optimizer.
        init_backbone: The checkpoint whose backbone the run started from.
        imported: Facts recorded by `facelit import` about the network's origin; empty if `fit` trained it.
        training: The training set.
        identities: The number of people in it.
        images: The number of images in it.
        measured: The figures of each verification set.
        configs: The run's configuration files, in the order of its starts.
        config_text: The text of the last of them.
    """

    checkpoint: Path
    run_folder: Path
    step: int
    epoch: int | None
    chosen_by: str | None
    backbone: Configured | None
    parameters: int
    embedding_dim: int
    head: Configured | None
    teacher: Mapping[str, Any]
    optimizer: Configured | None
    init_backbone: str | None
    imported: Mapping[str, Any]
    training: Configured | None
    identities: int | None
    images: int | None
    measured: list[Measured]
    configs: list[Path]
    config_text: str | None


def gather(path: Path) -> Facts:
    """Gathers the facts about a checkpoint.

    Args:
        path: The checkpoint.

    Raises:
        FacelitError: The checkpoint does not exist, is damaged, or was not written by facelit.
    """
    checkpoint = read_checkpoint(path)
    backbone = restore_backbone(checkpoint, str(path))
    run_folder = run_folder_of(path)
    imported = checkpoint.get(CHECKPOINT_KEY, {}).get("imported", {})
    configs = [] if imported else config_files(run_folder)  # files next to an imported network are not its run's
    config_text = configs[-1].read_text(encoding="utf-8") if configs else None
    config = parse_config(config_text)
    trained = checkpoint.get("hyper_parameters", {})
    training = _configured(config.get("data", {}).get("train"))
    identities, images = _count_training_set(training, num_identities(checkpoint))
    return Facts(
        checkpoint=path,
        run_folder=run_folder,
        step=int(checkpoint.get("global_step", 0)),
        epoch=int(checkpoint["epoch"]) + 1 if "epoch" in checkpoint and not imported else None,
        chosen_by=_chosen_by(checkpoint, path),
        backbone=_configured(trained.get("backbone")),
        parameters=sum(parameter.numel() for parameter in backbone.parameters()),
        embedding_dim=int(getattr(backbone, "embedding_dim")),  # noqa: B009 - every backbone has it, nn.Module does not
        head=_configured(trained.get("head")),
        teacher=trained.get("distillation") or {},
        optimizer=_configured(trained.get("optimizer")),
        init_backbone=trained.get("init_backbone"),
        imported=imported,
        training=training,
        identities=identities,
        images=images,
        measured=_measured(checkpoint, config, run_folder),
        configs=configs,
        config_text=config_text,
    )


def _measured(checkpoint: Mapping[str, Any], config: Mapping[str, Any], run_folder: Path) -> list[Measured]:
    last = run_folder / "checkpoints" / "last.ckpt"
    drawn = _calibration(read_checkpoint(last)) if last.is_file() else {}
    found = []
    for name, figures in _calibration(checkpoint).items():
        source = _configured((config.get("data", {}).get("verification") or {}).get(name))
        picture = run_folder / f"{name}-roc.png"
        found.append(
            Measured(
                name=name,
                figures=figures,
                source=source,
                counts=_count_pairs(source, figures["pairs"]),
                picture=picture if picture.is_file() else None,
                picture_step=drawn.get(name, {}).get("step"),
            )
        )
    return found


def _calibration(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    calibration: dict[str, Any] = checkpoint.get(CHECKPOINT_KEY, {}).get("calibration", {})
    return calibration


def _chosen_by(checkpoint: Mapping[str, Any], path: Path) -> str | None:
    """The figure by which ModelCheckpoint chose this file; None for a `last.ckpt`, which was not chosen."""
    for state in checkpoint.get("callbacks", {}).values():
        if isinstance(state, Mapping) and state.get("monitor") and path.name != "last.ckpt":
            return str(state["monitor"])
    return None


def _configured(value: Any) -> Configured | None:
    if not isinstance(value, Mapping) or not isinstance(value.get("class_path"), str):
        return None
    return Configured(value["class_path"], dict(value.get("init_args") or {}))


def _count_training_set(training: Configured | None, known: int | None) -> tuple[int | None, int | None]:
    """Counts identities and images; the images only if the set still has as many identities as in training."""
    source = _open(training, IdentitySource)  # type: ignore[type-abstract]  # its subclasses are not
    if source is None or (known is not None and source.num_identities != known):
        return known, None
    return source.num_identities, len(source)


def _count_pairs(source: Configured | None, num_pairs: int) -> Counts | None:
    """Counts a set's pairs; None if it no longer exists, or the number of pairs differs from the one measured."""
    pairs = _open(source, VerificationSource)  # type: ignore[type-abstract]  # its subclasses are not
    if pairs is None or len(pairs.is_same) != num_pairs:
        return None
    genuine = int(pairs.is_same.sum())
    return Counts(len(set(pairs.folds.tolist())), genuine, num_pairs - genuine)


def _open(configured: Configured | None, kind: type[Source]) -> Source | None:
    """Opens one of facelit's own sources as the run did, without reading its images; None if that fails."""
    if configured is None or not configured.class_path.startswith("facelit.data."):
        return None
    module, _, name = configured.class_path.rpartition(".")
    try:
        found = getattr(import_module(module), name, None)
        source = found(**configured.init_args) if isinstance(found, type) and issubclass(found, kind) else None
    except (FacelitError, ImportError, OSError, TypeError, ValueError):
        return None
    return source
