"""Choosing the decision threshold, and explaining it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from facelit.errors import FacelitError

NAMES = {"best_accuracy": "best accuracy"} | {f"far_1e-{digit}": f"FAR <= 1e-{digit}" for digit in range(2, 7)}
"""The thresholds that a checkpoint may hold, and their names in a sentence."""

Calibration = Mapping[str, Mapping[str, Any]]
"""A checkpoint's thresholds and figures: see `facelit.verification.calibration`."""


class Threshold(NamedTuple):
    """A threshold on cosine similarity: a pair is accepted if `score >= value`.

    For a threshold set by the user only `value` is given. Otherwise `at` is its name, `measured_on` the verification set,
    `far` and `tar` the shares of impostor and genuine pairs that it accepted there, `pairs` the number of pairs, and `step` the
    training step of the weights with which it was measured.
    """

    value: float
    at: str | None = None
    measured_on: str | None = None
    far: float | None = None
    tar: float | None = None
    pairs: int | None = None
    step: int | None = None

    def explanation(self) -> str:
        """Explains the threshold, as the end of a sentence that has just named its value."""
        if self.at is None or self.far is None or self.tar is None:
            return "the threshold set by the user"
        return (
            f"the threshold for {NAMES.get(self.at, self.at)} on {self.measured_on}, where it accepts {percent(self.far)} of"
            f" impostor pairs (FAR) and {percent(self.tar)} of genuine ones (TAR), {self.pairs:,} pairs"
        )


def choose_threshold(
    calibration: Calibration, threshold: float | None, at: str, on: str | None, checkpoint: object
) -> Threshold:
    """Returns the user's threshold, or one of the checkpoint's.

    Args:
        calibration: The checkpoint's calibration.
        threshold: The user's threshold, which takes precedence.
        at: The name of one of the checkpoint's thresholds.
        on: The verification set it was measured on; by default the first.
        checkpoint: The checkpoint's name in messages.

    Raises:
        FacelitError: There is no such threshold.
    """
    if threshold is not None:
        try:
            value = float(threshold)
        except (TypeError, ValueError):
            value = math.nan
        if not -1 <= value <= 1:  # NaN too
            raise FacelitError(f"option threshold: must be between -1 and 1 (cosine similarity), not {threshold}.")
        return Threshold(value)
    if not calibration:
        raise FacelitError(
            f"{checkpoint} holds no thresholds: it was trained without verification. Set one (--threshold 0.4, say), or have"
            " them measured: validate ... --verification.calibrate true"
        )
    name = next(iter(calibration)) if on is None else on
    if name not in calibration:
        raise FacelitError(
            f"{checkpoint} has no thresholds measured on {name} (option on). It has them for: {', '.join(calibration)}."
        )
    known = calibration[name]["thresholds"]
    if at not in known:
        why = ""
        if at in NAMES:
            few = (
                "its accuracy is best"
                if at == "best_accuracy"
                else f"{calibration[name]['pairs']:,} pairs are too few, or it is met only"
            )
            why = f": {few} where no pair is accepted"
        raise FacelitError(
            f"{checkpoint} has no threshold {at} for {name} (option at){why}. It has: {', '.join(known) or 'none'}; or set"
            " your own: --threshold."
        )
    point, entry = known[at], calibration[name]
    return Threshold(point["threshold"], at, name, point["far"], point["tar"], entry["pairs"], entry["step"])


def averages_mirror_images(calibration: Calibration, on: str | None = None) -> bool:
    """Whether the thresholds were measured with embeddings averaged with the mirror image's."""
    if not calibration:
        return False
    entry = calibration.get(next(iter(calibration)) if on is None else on, {})
    return bool(entry.get("flip_average", False))


def percent(share: float) -> str:
    """Formats 0.012 as 1.2 %."""
    return f"{100 * share:.3g} %"
