"""What several test files share: where LFW is, if it is at hand; and one thread, so that figures repeat exactly."""

from pathlib import Path

import pytest

# Before any test file imports something else: typing keeps one object for `int | float` and `float | int`, and where another package
# has just made the second when Lightning is imported, `--trainer.limit_val_batches 1` comes to mean all batches.
import pytorch_lightning  # noqa: F401
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def lfw() -> Path:
    """The folder with aligned LFW beside the checkout; skips, saying so, where it is absent."""
    root = Path(__file__).resolve().parents[2] / "shared" / "lfw"
    if not (root / "pairs.txt").is_file():
        pytest.skip(f"LFW is not at hand: {root} is absent")
    return root
