"""What a checkpoint and its run's folder know: the facts that a model card states."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import yaml

from facelit.checkpoints import CHECKPOINT_KEY, num_identities, read_checkpoint
from facelit.data.sources import IdentitySource, VerificationSource
from facelit.errors import FacelitError
from facelit.inference.checkpoint import restore_backbone

Source = TypeVar("Source", IdentitySource, VerificationSource)


class Configured(NamedTuple):
    """A class and its arguments, as a configuration names them."""

    class_path: str
    init_args: dict[str, Any]

    @property
    def name(self) -> str:
        """The class without its module."""
        return self.class_path.rpartition(".")[2]


class Counts(NamedTuple):
    """What a verification set consists of, where it is still there to be counted."""

    folds: int
    genuine: int
    impostors: int


class Measured(NamedTuple):
    """A verification set's figures.

    Attributes:
        name: Under which the run logged it.
        figures: What the checkpoint holds: see `facelit.verification.calibration`.
        source: What the set is; None where not recorded.
        counts: None where not known.
        picture: The ROC curve; None where there is none.
        picture_step: The training step that the picture was drawn at; None where not known.
    """

    name: str
    figures: Mapping[str, Any]
    source: Configured | None
    counts: Counts | None
    picture: Path | None
    picture_step: int | None


class Facts(NamedTuple):
    """All that a card states; None for what is not recorded.

    Attributes:
        checkpoint: The file.
        run_folder: Where its run wrote.
        step: Optimizer steps behind the weights.
        epoch: The epoch that they were in, counted from 1.
        chosen_by: The figure that the checkpoint was chosen by.
        backbone: Its class.
        parameters: How many the backbone has.
        embedding_dim: Length of an embedding.
        head: The loss.
        optimizer: The network's.
        init_backbone: The checkpoint whose backbone the run started from.
        imported: What `facelit import` recorded of the file that the network comes from; empty where `fit` trained it.
        training: The training set.
        identities: People in it.
        images: Images in it.
        measured: By verification set.
        configs: The run's configuration files, in the order of its starts.
        config_text: The last of them.
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
    """Reads them.

    Args:
        path: A checkpoint.

    Raises:
        FacelitError: It is absent, damaged, or none of facelit's.
    """
    checkpoint = read_checkpoint(path)
    backbone = restore_backbone(checkpoint, str(path))
    run_folder = path.parent.parent if path.parent.name == "checkpoints" else path.parent
    imported = checkpoint.get(CHECKPOINT_KEY, {}).get("imported", {})
    configs = [] if imported else _config_files(run_folder)  # what lies beside an imported network is not its run's
    config_text = configs[-1].read_text(encoding="utf-8") if configs else None
    config = _parse(config_text)
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
    """The figure whose best value made this file, where it is a checkpoint that ModelCheckpoint kept as one of the best."""
    for state in checkpoint.get("callbacks", {}).values():
        if isinstance(state, Mapping) and state.get("monitor") and path.name != "last.ckpt":
            return str(state["monitor"])
    return None


def _config_files(run_folder: Path) -> list[Path]:
    """`config.yaml`, then `config-resumed-1.yaml`, ..."""

    def place(path: Path) -> int:
        number = re.search(r"config-resumed-(\d+)$", path.stem)
        return int(number.group(1)) if number else 0

    names = [path for path in run_folder.glob("config*.yaml") if re.fullmatch(r"config(-resumed-\d+)?", path.stem)]
    return sorted(names, key=place)


def _parse(text: str | None) -> dict[str, Any]:
    """A configuration that is no valid YAML tells nothing; it is shown all the same."""
    try:
        config = yaml.safe_load(text or "")
    except yaml.YAMLError:
        return {}
    return config if isinstance(config, dict) else {}


def _configured(value: Any) -> Configured | None:
    if not isinstance(value, Mapping) or not isinstance(value.get("class_path"), str):
        return None
    return Configured(value["class_path"], dict(value.get("init_args") or {}))


def _count_training_set(training: Configured | None, known: int | None) -> tuple[int | None, int | None]:
    """Identities and images; the images only of a set that has as many identities as the checkpoint was trained with."""
    source = _open(training, IdentitySource)  # type: ignore[type-abstract]  # its subclasses are not
    if source is None or (known is not None and source.num_identities != known):
        return known, None
    return source.num_identities, len(source)


def _count_pairs(source: Configured | None, num_pairs: int) -> Counts | None:
    """None where the set is no longer there, or has other pairs than were measured."""
    pairs = _open(source, VerificationSource)  # type: ignore[type-abstract]  # its subclasses are not
    if pairs is None or len(pairs.is_same) != num_pairs:
        return None
    genuine = int(pairs.is_same.sum())
    return Counts(len(set(pairs.folds.tolist())), genuine, num_pairs - genuine)


def _open(configured: Configured | None, kind: type[Source]) -> Source | None:
    """One of facelit's own sources as the run used it, without reading its images; None where it cannot be had."""
    if configured is None or not configured.class_path.startswith("facelit.data."):
        return None
    module, _, name = configured.class_path.rpartition(".")
    try:
        found = getattr(import_module(module), name, None)
        source = found(**configured.init_args) if isinstance(found, type) and issubclass(found, kind) else None
    except (FacelitError, ImportError, OSError, TypeError, ValueError):
        return None
    return source
