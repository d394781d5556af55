"""Flips one bit of a file at a time, over the whole file."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np


def flip_bits(path: Path, count: int) -> Iterator[int]:
    """Yields byte positions, evenly spread; while each is with the caller, one bit of that byte is another.

    Which bit is drawn at random, always the same; afterwards the file is as it was.
    """
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    try:
        for position in np.linspace(0, len(whole) - 1, min(count, len(whole)), dtype=int).tolist():
            flipped = bytearray(whole)
            flipped[position] ^= 1 << int(rng.integers(8))
            path.write_bytes(flipped)
            yield position
    finally:
        path.write_bytes(whole)
