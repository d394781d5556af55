"""Runs the real command line with a benchmark's configuration."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from facelit.cli import main as facelit_main
from harness.training_setup import (
    EMBEDDING_DIM,
    GRADIENT_CLIP,
    IMAGES_PER_IDENTITY,
    PRECISIONS,
    Setting,
    silence_lightning,
)

_HEADS = {"softmax": "SoftmaxHead", "center": "CenterLossHead", "triplet": "TripletHead"}


def run_config(
    setting: Setting, folder: Path, train: dict[str, Any], steps: int, recorder: dict[str, Any]
) -> dict[str, Any]:
    """The settings of `configs/center.yaml` for another network and training set, with a `StepRecorder`.

    Args:
        setting: The network, head and sizes.
        folder: The folder for runs.
        train: The training set, as in `data.train`.
        steps: The number of optimizer steps.
        recorder: The arguments of the `StepRecorder`.
    """
    backbone: dict[str, Any] = {
        "class_path": "facelit.backbones.VGG16",
        "init_args": {
            "embedding_dim": EMBEDDING_DIM,
            "batch_norm": setting.backbone == "vgg16_bn",
            "width": setting.width,
        },
    }
    if setting.backbone == "resnet50":
        arguments = {"name": "resnet50", "embedding_dim": EMBEDDING_DIM}
        backbone = {"class_path": "facelit.backbones.TorchvisionBackbone", "init_args": arguments}
    data: dict[str, Any] = {"train": train, "batch_size": setting.batch, "num_workers": setting.workers}
    if setting.head == "triplet":
        counts = {
            "identities_per_batch": setting.batch // IMAGES_PER_IDENTITY,
            "images_per_identity": IMAGES_PER_IDENTITY,
        }
        data["sampler"] = {"class_path": "facelit.data.IdentityBalancedSampler", "init_args": counts}
    optimizer: dict[str, Any] = {"lr": 1e-3, "momentum": 0.9, "weight_decay": 5e-4}
    logger = {
        "class_path": "pytorch_lightning.loggers.TensorBoardLogger",
        "init_args": {"save_dir": str(folder / "runs"), "name": "benchmark"},
    }
    return {
        "model": {
            "backbone": backbone,
            "head": {"class_path": f"facelit.heads.{_HEADS[setting.head]}"},
            "compile": setting.compiled,
            "optimizer": {"class_path": "torch.optim.SGD", "init_args": optimizer},
        },
        "data": data,
        "trainer": {
            "accelerator": setting.device,
            "devices": 1,
            "precision": PRECISIONS[setting.precision],
            "max_steps": steps,
            "gradient_clip_val": GRADIENT_CLIP,
            "log_every_n_steps": 50,
            "logger": logger,
            "callbacks": [{"class_path": "harness.step_recorder.StepRecorder", "init_args": recorder}],
        },
        "last_checkpoint": {"every_n_train_steps": 1000},
    }


def fit(config: dict[str, Any], folder: Path, *options: str) -> None:
    """Runs `python main.py fit --config FILE` in this process; its output is shown only if it fails.

    Raises:
        SystemExit: The program ended with a user error.
    """
    path = folder / "benchmark.yaml"
    path.write_text(yaml.safe_dump(config))
    printed = io.StringIO()
    silence_lightning()
    try:
        with _like_a_terminal(), contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            facelit_main(["fit", "--config", str(path), *options])
    except BaseException:
        print(printed.getvalue(), file=sys.stderr)
        raise


@contextlib.contextmanager
def _like_a_terminal() -> Iterator[None]:
    """Makes the progress bar draw as on a terminal, whatever the output."""
    before = {name: os.environ.get(name) for name in ("FORCE_COLOR", "TERM")}
    os.environ |= {"FORCE_COLOR": "1", "TERM": "xterm-256color"}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
