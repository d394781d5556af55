"""What several test files share: where LFW is, if it is at hand; and one thread, so that figures repeat exactly."""

import logging
import os
import sys
from pathlib import Path

import numpy as np
import pytest

# With `-n` this process starts the workers and runs no test: they begin seconds earlier if it imports nothing for them.
if "PYTEST_XDIST_WORKER" in os.environ or not any(word.startswith(("-n", "--numprocesses")) for word in sys.argv):
    # Before any test file imports something else: typing keeps one object for `int | float` and `float | int`, and where another
    # package has just made the second when Lightning is imported, `--trainer.limit_val_batches 1` comes to mean all batches.
    import pytorch_lightning  # noqa: F401
    import torch

    torch.set_num_threads(1)
    # Lightning's messages reach `caplog` whether or not logging was set up before Lightning was imported.
    logging.getLogger("pytorch_lightning").propagate = True


class _Blank:
    """Has a figure's pixels without drawing them, which takes as long as a few training steps do."""

    def __init__(self, figure: object) -> None:
        pass

    def draw(self) -> None:
        pass

    def buffer_rgba(self) -> np.ndarray:
        return np.zeros((8, 8, 4), np.uint8)


@pytest.fixture(autouse=True)
def _blank_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Validations in this process write blank pictures, but where a test is marked `pictures`."""
    if request.node.get_closest_marker("pictures") is None:
        monkeypatch.setattr("facelit.callbacks.verification.FigureCanvasAgg", _Blank)


@pytest.fixture(scope="session")
def lfw() -> Path:
    """The folder with aligned LFW beside the checkout; skips, saying so, where it is absent."""
    root = Path(__file__).resolve().parents[2] / "shared" / "lfw"
    if not (root / "pairs.txt").is_file():
        pytest.skip(f"LFW is not at hand: {root} is absent")
    return root
