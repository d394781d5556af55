"""A trained checkpoint, the same for all test files."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from trained_run import TrainedRun, trained_run


@pytest.fixture(scope="session")
def trained() -> TrainedRun:
    return trained_run()
