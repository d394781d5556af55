"""The recipes of `ten_folds.py`: every row of its table as a complete set of options for `python main.py fit`.

A row's name is `<backbone>-<head>`, followed by `--no-<part>` for each part of the recipe that is left out:
`vgg16bn-center`, `iresnet18-arcface--no-flip`. `raw-pixels` trains nothing. To add a backbone, a head or a part, add an entry
to the dictionary of that name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from facelit.errors import FacelitError

Options = dict[str, Any]
"""Dotted options of `fit` and their plain values; a class precedes its arguments."""

RAW_PIXELS = "raw-pixels"

# Like configs/lfw.yaml on top of configs/center.yaml (a test compares), except for the epochs and the random crops that suit more
# of them: see docs/lfw.md. A backbone or a head may override these options.
RECIPE: Options = {
    "model.optimizer": "torch.optim.SGD",
    "model.optimizer.lr": 0.02,
    "model.optimizer.momentum": 0.9,
    "model.optimizer.weight_decay": 5e-4,
    "model.lr_scheduler": "facelit.optim.WarmupCosine",
    "model.lr_scheduler.warmup": 0.1,
    "model.lr_interval": "step",
    "data.train.min_images_per_identity": 2,
    "data.batch_size": 32,
    "data.augmentation": "facelit.data.Augmentation",
    "data.augmentation.flip": 0.5,
    "trainer.gradient_clip_val": 5.0,
}

BACKBONES: dict[str, Options] = {
    "vgg16bn": {
        "model.backbone": "facelit.backbones.VGG16",
        "model.backbone.batch_norm": True,
        "model.backbone.width": 0.125,
        "model.backbone.neck": "standard",
        "model.backbone.dropout": 0.0,
        "model.backbone.embedding_dim": 512,
        "trainer.max_epochs": 8,
    },
    "iresnet18": {
        "model.backbone": "facelit.backbones.IResNet",
        "model.backbone.depth": 18,
        "model.backbone.width": 0.25,
        "model.backbone.dropout": 0.0,
        "model.backbone.embedding_dim": 512,
        # 1.6 times as fast on a CPU; nothing else changes.
        "model.compile": True,
        # Takes twice as long per image as vgg16bn.
        "trainer.max_epochs": 6,
    },
}

HEADS: dict[str, Options] = {
    "softmax": {"model.head": "facelit.heads.SoftmaxHead"},
    "center": {"model.head": "facelit.heads.CenterLossHead", "model.head.weight": 0.001, "model.head.alpha": 0.5},
    "triplet": {
        "model.head": "facelit.heads.TripletHead",
        "model.head.margin": 0.2,
        "model.head.mining": "semihard",
        "data.sampler": "facelit.data.IdentityBalancedSampler",
        "data.sampler.identities_per_batch": 32,
        "data.sampler.images_per_identity": 2,
    },
    "arcface": {
        "model.head": "facelit.heads.ArcFaceHead",
        "model.head.scale": 32.0,
        "model.head.margin": 0.3,
        "model.head.margin_ramp": 0,
        "model.optimizer.lr": 0.05,
    },
}
HEADS["arcface-center"] = HEADS["arcface"] | {"model.head.center.weight": 0.001, "model.head.center.alpha": 0.5}

REMOVALS: dict[str, Options] = {
    "no-flip": {"data.augmentation.flip": 0.0},
    "no-warmup": {"model.lr_scheduler.warmup": 0.0},
    "no-schedule": {"model.lr_scheduler": None},
    "no-clipping": {"trainer.gradient_clip_val": None},
    "no-weight-decay": {"model.optimizer.weight_decay": 0.0},
    "no-momentum": {"model.optimizer.momentum": 0.0},
    "no-batch-norm": {"model.backbone.batch_norm": False},
    "no-neck": {"model.backbone.neck": None},
    "no-minimum": {"data.train.min_images_per_identity": 1},
}
"""The options that replace a part of the recipe that is left out."""


def row_names() -> list[str]:
    """All rows, without those that leave parts out."""
    return [RAW_PIXELS, *(f"{backbone}-{head}" for backbone in BACKBONES for head in HEADS)]


def row_options(name: str) -> Options:
    """The options of a row; empty for raw pixels.

    Raises:
        FacelitError: There is no such row, or it does not have the part to leave out.
    """
    base, *removals = name.split("--")
    if base not in row_names():
        raise FacelitError(f"--rows: there is no row {base}. There are: {', '.join(row_names())}.")
    if base == RAW_PIXELS:
        if removals:
            raise FacelitError(f"--rows: {RAW_PIXELS} has no parts to leave out.")
        return {}
    backbone, head = base.split("-", 1)
    options = RECIPE | BACKBONES[backbone] | HEADS[head]
    for removal in removals:
        if removal not in REMOVALS:
            raise FacelitError(f"--rows: {name}: --{removal} is none of --{', --'.join(REMOVALS)}.")
        if strange := REMOVALS[removal].keys() - options.keys():
            raise FacelitError(f"--rows: {base} has no {strange.pop()}, so --{removal} would change nothing.")
        options = with_changes(options, REMOVALS[removal])
    return options


def with_changes(options: Options, changes: Mapping[str, Any]) -> Options:
    """Options with some replaced or added; replacing a class also removes the arguments of the old one."""
    for key, value in changes.items():
        if key in options and options[key] != value:
            options = {name: old for name, old in options.items() if not name.startswith(f"{key}.")}
        options = options | {key: value}
    return options


def parse_overrides(texts: list[str]) -> Options:
    """Parses `["model.optimizer.lr=0.1"]` into options; values that are JSON are read as such.

    Raises:
        FacelitError: One has no `=`.
    """
    options: Options = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise FacelitError(f"--override {text}: expected KEY=VALUE, such as model.optimizer.lr=0.1")
        try:
            options[key.removeprefix("--")] = json.loads(value)
        except json.JSONDecodeError:
            options[key.removeprefix("--")] = value
    return options


def as_arguments(options: Options) -> list[str]:
    """Options as command-line arguments."""
    return [
        word
        for key, value in options.items()
        for word in (f"--{key}", value if isinstance(value, str) else json.dumps(value))
    ]


def key_of(options: Options) -> str:
    """A ten-letter key for options and their values, in any order."""
    return hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()[:10]
