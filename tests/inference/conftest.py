"""A trained checkpoint, the same for all test files."""

import pytest

from trained_run import TrainedRun, trained_run


@pytest.fixture(scope="session")
def trained() -> TrainedRun:
    return trained_run()
