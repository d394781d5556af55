"""Two checkpoints' simulated scores on one set, with drawn images."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from simulated_scores import simulated, write_scores


@pytest.fixture(scope="session")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("faces")
    for number in range(20):
        (root / f"p{number}").mkdir()
        for image in range(3):
            colour = (12 * number, 80 * image, 255 - 12 * number)
            Image.new("RGB", (112, 112), colour).save(root / f"p{number}" / f"p{number}_{image}.png")
    return root


@pytest.fixture
def suites(tmp_path: Path, faces: Path) -> Path:
    for seed, name in enumerate(("first", "second")):
        write_scores(tmp_path / "suites" / name, simulated("lfw", seed, faces))
    return tmp_path / "suites"
