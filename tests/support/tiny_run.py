"""A training run small enough for a test: crops on disk, a configuration of one-layer size, the real command line."""

from __future__ import annotations

import copy
import os
import subprocess
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

import warm_processes

ROOT = Path(__file__).resolve().parents[2]
NUM_IDENTITIES, IMAGES_EACH = 8, 6


def write_crops(root: Path, num_identities: int = NUM_IDENTITIES, images_each: int = IMAGES_EACH) -> Path:
    """Identities are colours, images are noise around them: learnable in a few steps."""
    for name, png in _crops(num_identities, images_each).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png)
    return root


@cache
def _crops(num_identities: int, images_each: int) -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    found: dict[str, bytes] = {}
    for identity in range(num_identities):
        colour = rng.integers(40, 216, size=3)
        for number in range(1, images_each + 1):
            pixels = np.clip(colour + rng.normal(0, 30, size=(112, 112, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(file := BytesIO(), "PNG")
            found[f"person_{identity:02d}/person_{identity:02d}_{number:04d}.png"] = file.getvalue()
    return found


def write_pairs(path: Path, folds: int = 2, per_kind: int = 4) -> Path:
    """Pairs over `write_crops`, in LFW's format: genuine rows, then impostor rows, fold by fold."""
    rows = [f"{folds}\t{per_kind}"]
    for fold in range(folds):
        people = [f"person_{number:02d}" for number in range(fold * per_kind, (fold + 1) * per_kind)]
        rows += [f"{person}\t1\t2" for person in people]
        rows += [f"{person}\t3\t{other}\t4" for person, other in zip(people, people[1:] + people[:1], strict=True)]
    path.write_text("\n".join(rows) + "\n")
    return path


TINY_NET = {"class_path": "tiny_net.TinyNet", "init_args": {"embedding_dim": 16}}
TINY_VGG = {
    "class_path": "facelit.backbones.VGG16",
    "init_args": {"width": 0.01, "embedding_dim": 16, "batch_norm": True, "dropout": 0.3},
}
"""Of 8 channels: for checkpoints that other commands read, which build none but facelit's own networks. A step of it takes 30 of `TINY_NET`'s."""


def tiny_config(folder: Path, head: str = "CenterLossHead", **overrides: Any) -> dict[str, Any]:
    """Trains `TINY_NET` on `folder/crops`; keys in `overrides` with `__` for dots replace values."""
    config: dict[str, Any] = {
        "seed_everything": 7,
        "model": {
            "backbone": copy.deepcopy(TINY_NET),
            "head": {"class_path": f"facelit.heads.{head}"},
            "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.02, "momentum": 0.9}},
            "lr_scheduler": {
                "class_path": "torch.optim.lr_scheduler.StepLR",
                "init_args": {"step_size": 1, "gamma": 0.7},
            },
            "lr_interval": "epoch",
        },
        "data": {
            "train": {
                "class_path": "facelit.data.IdentityFolder",
                "init_args": {"root": str(folder / "crops")},
            },
            "verification": {
                "tiny": {
                    "class_path": "facelit.data.PairsFolder",
                    "init_args": {"root": str(folder / "crops"), "pairs": str(folder / "pairs.txt")},
                }
            },
            "batch_size": 8,
            "eval_batch_size": 5,
            "num_workers": 0,
        },
        "verification": {"hardest_pairs": 0},  # drawing them takes as long as an epoch
        "trainer": {
            "accelerator": "cpu",
            "max_epochs": 3,
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "logger": {
                "class_path": "pytorch_lightning.loggers.CSVLogger",
                "init_args": {
                    "save_dir": str(folder / "runs"),
                    "name": "tiny",
                    "flush_logs_every_n_steps": 1,
                },
            },
        },
    }
    for key, value in overrides.items():
        *parents, last = key.split("__")
        target = config
        for parent in parents:
            target = target.setdefault(parent, {})
        target[last] = value
    return config


def write_config(folder: Path, config: dict[str, Any], name: str = "tiny.yaml") -> Path:
    """Writes a configuration file."""
    path = folder / name
    path.write_text(yaml.safe_dump(config))
    return path


def make_run(folder: Path, **options: Any) -> Path:
    """Crops, pairs and a configuration in `folder`; returns the configuration's path."""
    write_crops(folder / "crops")
    write_pairs(folder / "pairs.txt")
    return write_config(folder, tiny_config(folder, **options))


def facelit(*args: object, timeout: float = 600, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs the real command line in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return warm_processes.run(ROOT / "main.py", *args, timeout=timeout, env=environment, **options)
