"""One trained run that the callbacks' tests look at, and the embeddings of its checkpoint computed by hand."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor

from facelit.cli import main
from tiny_net import TinyNet
from tiny_run import tiny_config, write_crops, write_pairs


@dataclass(frozen=True)
class FinishedRun:
    """A run of two epochs with two verification sets, `tiny` before `also`."""

    folder: Path

    @property
    def version(self) -> Path:
        return self.folder / "runs" / "tiny" / "version_0"

    @property
    def checkpoints(self) -> Path:
        return self.version / "checkpoints"

    @property
    def config(self) -> str:
        return str(self.folder / "tiny.yaml")

    def embed(self, paths: Sequence[Path], checkpoint: str = "last.ckpt", mirrored: bool = False) -> Tensor:
        """What the backbone of a checkpoint makes of image files, without facelit's data module or Lightning."""
        state = torch.load(self.checkpoints / checkpoint, weights_only=True)["state_dict"]
        backbone = TinyNet()
        backbone.load_state_dict({k.removeprefix("backbone."): v for k, v in state.items() if "backbone." in k})
        pixels = np.stack([np.array(Image.open(path).convert("RGB")) for path in paths])
        if mirrored:
            pixels = pixels[:, :, ::-1].copy()
        images = torch.tensor(pixels, dtype=torch.float32).permute(0, 3, 1, 2) / 127.5 - 1
        with torch.no_grad():
            embeddings: Tensor = backbone.eval()(images)
        return embeddings


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    folder = tmp_path_factory.mktemp("finished")
    write_crops(folder / "crops")
    write_pairs(folder / "pairs.txt")
    write_pairs(folder / "more_pairs.txt", folds=4, per_kind=2)
    config = tiny_config(folder, trainer__max_epochs=2, verification={"save_scores": True})
    config["data"]["verification"]["also"] = {
        "class_path": "facelit.data.PairsFolder",
        "init_args": {"root": str(folder / "crops"), "pairs": str(folder / "more_pairs.txt")},
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    main(["fit", "--config", str(folder / "tiny.yaml")])
    return FinishedRun(folder)
