"""Channel counts of narrower and wider variants of a network."""

from __future__ import annotations


def scale_channels(channels: int, width: float) -> int:
    """A channel count times a factor, rounded to a multiple of 8, and at least 8."""
    return max(8, round(channels * width / 8) * 8)


def check_sizes(**sizes: float) -> None:
    """Rejects sizes, such as `width` or `embedding_dim`, from which no network can be built.

    Raises:
        ValueError: if one is not positive.
    """
    wrong = [f"{name}={value}" for name, value in sizes.items() if not value > 0]
    if wrong:
        raise ValueError(f"{' and '.join(wrong)}: must be positive")
