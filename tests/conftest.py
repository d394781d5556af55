"""What several test files share: where LFW is, if it is at hand; and one thread, so that figures repeat exactly."""

from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def lfw() -> Path:
    """The folder with aligned LFW beside the checkout; skips, saying so, where it is absent."""
    root = Path(__file__).resolve().parents[2] / "shared" / "lfw"
    if not (root / "pairs.txt").is_file():
        pytest.skip(f"LFW is not at hand: {root} is absent")
    return root
