"""A trained network in small: a checkpoint as `fit` writes it, and drawn faces to try it on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from facelit import backbones
from facelit.inference import FaceModel, load
from facelit.pictures.drawn_faces import draw_face

CALIBRATION = {
    "drawn": {
        "pairs": 1200,
        "images": 1061,
        "accuracy": 0.69,
        "accuracy_se": 0.0109,
        "auc": 0.7713,
        "eer": 0.3033,
        "step": 7,
        "flip_average": False,
        "thresholds": {"best_accuracy": {"threshold": 0.875, "far": 0.25, "tar": 0.75}},
    }
}

MakeModel = Callable[..., FaceModel]


@pytest.fixture(scope="session")
def crops() -> npt.NDArray[np.uint8]:
    """100 drawn faces of 50 people."""
    return np.stack([draw_face(0, number // 2, number % 2) for number in range(100)])


@pytest.fixture(scope="session")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> MakeModel:
    """Writes a checkpoint of a small VGG16 with batch normalisation (or another backbone), and loads it."""

    def make(kind: str = "VGG16", backbone: nn.Module | None = None, **arguments: Any) -> FaceModel:
        torch.manual_seed(0)
        network = backbone or getattr(backbones, kind)(**arguments)
        with torch.no_grad():  # batch normalisation's running statistics are no longer 0 and 1
            network.train()(torch.rand(8, 3, 112, 112) * 2 - 1)
        checkpoint: dict[str, Any] = {
            "state_dict": {f"backbone.{name}": value for name, value in network.state_dict().items()},
            "global_step": 7,
            "facelit": {"num_identities": 3, "calibration": CALIBRATION},
        }
        if backbone is None:
            configured = {"class_path": f"facelit.backbones.{kind}", "init_args": arguments}
            checkpoint["hyper_parameters"] = {"backbone": configured}
        path = tmp_path_factory.mktemp("run") / "tiny.ckpt"
        torch.save(checkpoint, path)
        return load(path, device="cpu", backbone=backbone)

    return make


@pytest.fixture(scope="session")
def model(make_model: MakeModel) -> FaceModel:
    """VGG16 with batch normalisation, dropout, and 8 channels."""
    return make_model(width=0.01, embedding_dim=16, batch_norm=True, dropout=0.5)


@pytest.fixture(scope="session")
def expected(model: FaceModel, crops: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """Unit embeddings of `crops`, one at a time, by the formulas written out."""
    rows = []
    for crop in crops:
        image = ((crop.astype(np.float32) - 127.5) / 127.5).transpose(2, 0, 1)
        with torch.no_grad():
            embedding = model.backbone.eval()(torch.from_numpy(image.copy())[None])[0].double().numpy()
        rows.append(embedding / np.sqrt((embedding**2).sum()))
    return np.stack(rows)
