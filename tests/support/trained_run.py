"""A checkpoint that the real command line has trained, once for all test files, and its embeddings computed by hand."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from facelit.backbones import VGG16
from facelit.cli import main
from tiny_run import TINY_VGG, make_run


@dataclass(frozen=True)
class TrainedRun:
    """A run of one epoch on `crops`, verified on `pairs.txt`."""

    folder: Path

    @property
    def version(self) -> Path:
        return self.folder / "runs" / "tiny" / "version_0"

    @property
    def checkpoint(self) -> Path:
        return self.version / "checkpoints" / "last.ckpt"

    @property
    def crops(self) -> Path:
        return self.folder / "crops"

    def crop(self, person: int, number: int) -> Path:
        return self.crops / f"person_{person:02d}" / f"person_{person:02d}_{number:04d}.png"

    def embed(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
        """What the trained backbone makes of crops (N, 112, 112, 3), not normalised, with torch alone."""
        state = torch.load(self.checkpoint, weights_only=True)["state_dict"]
        backbone = VGG16(embedding_dim=16, batch_norm=True, width=0.01)
        backbone.load_state_dict({k.removeprefix("backbone."): v for k, v in state.items() if "backbone." in k})
        images = torch.tensor(pixels, dtype=torch.float32).permute(0, 3, 1, 2) / 127.5 - 1
        with torch.no_grad():
            return backbone.eval()(images).double().numpy()

    def changed(self, path: Path, **changes: Any) -> Path:
        """A copy of the checkpoint with other values; a key with `__` reaches into its dicts, `...` deletes."""
        content = copy.deepcopy(torch.load(self.checkpoint, weights_only=True))
        for key, value in changes.items():
            *parents, last = key.split("__")
            target = content
            for parent in parents:
                target = target[parent]
            if value is ...:
                del target[last]
            else:
                target[last] = value
        torch.save(content, path)
        return path


@cache
def trained_run() -> TrainedRun:
    folder = Path(mkdtemp(prefix="facelit-trained-"))
    config = make_run(folder, model__backbone=TINY_VGG)
    options = ["--trainer.max_epochs", "1", "--verification.save_scores", "true"]
    main(["fit", "--config", str(config), *options])
    return TrainedRun(folder)


def read(*paths: Path) -> npt.NDArray[np.uint8]:
    """Pixels of crops, (N, 112, 112, 3), by PIL."""
    return np.stack([np.array(Image.open(path).convert("RGB")) for path in paths])


def unit(rows: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Each row divided by its length."""
    return np.stack([row / np.sqrt((row.astype(np.float64) ** 2).sum()) for row in rows])


def calibration(**thresholds: float) -> dict[str, Any]:
    """Thresholds of a set called `made_up`, as a checkpoint holds them; FAR 0.25 and TAR 0.75 each."""
    points = {
        name.replace("_1e", "_1e-"): {"threshold": value, "far": 0.25, "tar": 0.75}
        for name, value in thresholds.items()
    }
    entry = {"pairs": 6000, "images": 7701, "accuracy": 0.9, "accuracy_se": 0.01, "auc": 0.95, "eer": 0.1, "step": 6}
    return {"made_up": {**entry, "flip_average": False, "thresholds": points}}
