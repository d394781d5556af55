"""The rows of `compare.py`: every one a complete set of options for `python main.py fit`.

A row's name is `<backbone>-<head>`, followed by `--<lever>` for each change to the recipe: `vgg16bn-center--wide`. Backbones, heads and
recipe are those of `experiments.lfw`, with the epochs and the random crops of configs/faces.yaml. To try another lever, add it to
LEVERS.
"""

from __future__ import annotations

from experiments.lfw.recipes import BACKBONES, HEADS, RECIPE, Options, with_changes
from facelit.errors import FacelitError

# Like configs/faces.yaml on top of configs/center.yaml (a test compares).
FACES: Options = RECIPE | {"data.train.min_images_per_identity": 1, "data.augmentation.crop": 0.1}
EPOCHS = {"vgg16bn": 16, "iresnet18": 12}

LEVERS: dict[str, Options] = {
    # The network
    "wide": {"model.backbone.width": 0.25},
    "narrow-embedding": {"model.backbone.embedding_dim": 128},
    "dropout": {"model.backbone.dropout": 0.4},
    # Augmentation
    "no-crop": {"data.augmentation.crop": 0.0},
    "more-crop": {"data.augmentation.crop": 0.2},
    "rotate-scale": {"data.augmentation.rotate": 10.0, "data.augmentation.scale": 0.1},
    "low-resolution": {"data.augmentation.low_resolution": 0.2},
    "grey": {"data.augmentation.grayscale": 0.2},
    "erase": {"data.augmentation.erase": 0.3},
    "brightness": {"data.augmentation.brightness": 0.2, "data.augmentation.contrast": 0.2},
    # Small images first
    "progressive": {"model.resizing.sizes": [64, 80], "model.resizing.share": 0.7},
    # Optimisation
    "rate-0.05": {"model.optimizer.lr": 0.05},
    "rate-0.1": {"model.optimizer.lr": 0.1},
    "decay-1e-3": {"model.optimizer.weight_decay": 1e-3},
    "ema": {"model.ema_decay": 0.999},
    "smoothing": {"model.head.label_smoothing": 0.1},
    "batch-64": {"data.batch_size": 64},
    # Center loss
    **{f"lambda-{value}": {"model.head.weight": float(value)} for value in ("1e-4", "3e-4", "3e-3", "1e-2", "3e-2")},
    **{
        f"lambda-{value}-normalised": {"model.head.weight": float(value), "model.head.normalized": True}
        for value in ("1e-2", "1e-1", "1")
    },
    "alpha-0.1": {"model.head.alpha": 0.1},
    # People: few with many photos against many with few
    "five-photos": {"data.train.min_images_per_identity": 5},
}

LEVERS["all-changes"] = {
    option: value
    for lever in ("rotate-scale", "low-resolution", "grey", "erase", "brightness")
    for option, value in LEVERS[lever].items()
}


def teacher_options(teacher: str) -> Options:
    """What `--teacher FILE` adds: configs/teacher.yaml."""
    return {
        "model.backbone.embedding_dim": 128,
        "model.distillation.teacher": teacher,
        "model.distillation.weight": 20.0,
        "model.distillation.view": "stored",
        "model.optimizer.lr": 0.1,
    }


def row_names() -> list[str]:
    """All rows, without levers."""
    return [f"{backbone}-{head}" for backbone in BACKBONES for head in HEADS]


def row_options(name: str, teacher: str | None = None) -> Options:
    """The options of a row.

    Args:
        name: The row's name.
        teacher: A network to learn from; None for labels alone.

    Raises:
        FacelitError: There is no such row or lever, or the row has not what the lever changes.
    """
    base, *levers = name.split("--")
    if base not in row_names():
        raise FacelitError(f"--rows: there is no row {base}. There are: {', '.join(row_names())}.")
    backbone, head = base.split("-", 1)
    options = FACES | BACKBONES[backbone] | {"trainer.max_epochs": EPOCHS[backbone]} | HEADS[head]
    if teacher is not None:
        options = options | teacher_options(teacher)
    for lever in levers:
        if lever not in LEVERS:
            raise FacelitError(f"--rows: {name}: --{lever} is none of --{', --'.join(LEVERS)}.")
        if lever.startswith(("lambda-", "alpha-")) and "model.head.weight" not in options:
            raise FacelitError(f"--rows: {base} has no center loss, so --{lever} would change nothing.")
        options = with_changes(options, LEVERS[lever])
    return options
