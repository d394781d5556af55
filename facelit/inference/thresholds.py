"""Choosing the decision threshold, and explaining it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from facelit.errors import FacelitError

NAMES = {"best_accuracy": "best accuracy"} | {f"far_1e-{digit}": f"FAR <= 1e-{digit}" for digit in range(2, 7)}
"""The thresholds that a checkpoint may hold, and how they are called in a sentence."""

Calibration = Mapping[str, Mapping[str, Any]]
"""What a checkpoint holds: see `facelit.verification.calibration`."""


class Threshold(NamedTuple):
    """A limit on cosine similarity: a pair is accepted where `score >= value`.

    For a threshold given by the user only `value` is set. Otherwise `at` is its name, `measured_on` the verification set,
    `far` and `tar` the shares of impostor and genuine pairs that it accepted there, `pairs` how many pairs there were, and
    `step` the training step of the weights that it was measured on.
    """

    value: float
    at: str | None = None
    measured_on: str | None = None
    far: float | None = None
    tar: float | None = None
    pairs: int | None = None
    step: int | None = None

    def explanation(self) -> str:
        """Explains it, as the end of a sentence that has just named the value."""
        if self.at is None or self.far is None or self.tar is None:
            return "the threshold that was given"
        return (
            f"the threshold of {NAMES.get(self.at, self.at)} on {self.measured_on}; at it {percent(self.far)} of impostor pairs"
            f" are accepted (FAR) and {percent(self.tar)} of genuine ones (TAR), {self.pairs:,} pairs"
        )


def choose_threshold(
    calibration: Calibration, threshold: float | None, at: str, on: str | None, checkpoint: object
) -> Threshold:
    """Returns the user's own threshold, or one of the checkpoint's.

    Args:
        calibration: The checkpoint's.
        threshold: The user's, which wins.
        at: Name of one of the checkpoint's.
        on: Verification set that it was measured on; the first one where not given.
        checkpoint: For messages.

    Raises:
        FacelitError: There is no such threshold.
    """
    if threshold is not None:
        if not -1 <= threshold <= 1:  # NaN too
            raise FacelitError(f"option threshold: must be between -1 and 1 (cosine similarity), not {threshold}.")
        return Threshold(float(threshold))
    if not calibration:
        raise FacelitError(
            f"{checkpoint} holds no thresholds: it was trained without verification. Give one (--threshold 0.4, say), or have"
            " them measured: validate ... --verification.calibrate true"
        )
    name = next(iter(calibration)) if on is None else on
    if name not in calibration:
        raise FacelitError(f"{checkpoint} has no thresholds of a set {name} (option on): {', '.join(calibration)}.")
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
            f"{checkpoint} has no threshold {at} of {name} (option at){why}. It has: {', '.join(known) or 'none'}; or give"
            " one: --threshold."
        )
    point, entry = known[at], calibration[name]
    return Threshold(point["threshold"], at, name, point["far"], point["tar"], entry["pairs"], entry["step"])


def averages_mirror_images(calibration: Calibration, on: str | None = None) -> bool:
    """Whether the scores that thresholds were measured on were of embeddings averaged with the mirror image's."""
    if not calibration:
        return False
    entry = calibration.get(next(iter(calibration)) if on is None else on, {})
    return bool(entry.get("flip_average", False))


def percent(share: float) -> str:
    """Formats 0.012 as 1.2 %."""
    return f"{100 * share:.3g} %"
