"""The thresholds that a checkpoint carries, with the FAR and TAR they were measured at."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from facelit.verification.protocol import VerificationResult

BEST_ACCURACY = "best_accuracy"


def calibration_entry(result: VerificationResult, images: int, step: int, flip_average: bool) -> dict[str, Any]:
    """What a checkpoint stores about a verification set: plain values, which load under `weights_only`.

    Args:
        result: Of cosine similarities in [-1, 1].
        images: Distinct images of the set.
        step: Training step of the weights.
        flip_average: Whether embeddings were averaged with those of the mirror images.

    Returns:
        `pairs`, `images`, `accuracy`, `accuracy_se`, `auc`, `eer`, `step`, `flip_average` and `thresholds`.
    """
    return {
        "pairs": result.num_genuine + result.num_impostor,
        "images": images,
        "accuracy": result.accuracy,
        "accuracy_se": result.accuracy_se,
        "auc": result.auc,
        "eer": result.eer,
        "step": step,
        "flip_average": flip_average,
        "thresholds": operating_points(result),
    }


def operating_points(result: VerificationResult) -> dict[str, dict[str, float]]:
    """Thresholds over all pairs, by name, each with its FAR and TAR on them. A pair is accepted where `score >= threshold`.

    `best_accuracy` makes the most correct decisions, ties going to the highest threshold; `far_1e-2` and `far_1e-3` have the
    largest TAR at a FAR of at most that. FARs based on too few impostor pairs (`MIN_IMPOSTORS`) are omitted, as are infinite
    thresholds, where nothing beats rejecting every pair.

    Returns:
        `threshold`, `far` and `tar` by name, floats.
    """
    best = int(np.argmax(result.roc.thresholds <= result.best_threshold))
    points = {BEST_ACCURACY: (result.best_threshold, float(result.roc.far[best]), float(result.roc.tar[best]))}
    for target, point in result.tar_at_far.items():
        points[f"far_1e{round(math.log10(target))}"] = (point.threshold, point.far, point.tar)
    return {
        name: {"threshold": threshold, "far": far, "tar": tar}
        for name, (threshold, far, tar) in points.items()
        if math.isfinite(threshold)
    }
