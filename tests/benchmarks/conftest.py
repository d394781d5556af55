"""Benchmarks silence Lightning; the tests that run after theirs, in the same process, read its messages."""

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _lightning_speaks_again() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning_fabric")]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)
