"""LFW's View 2 protocol: accuracy, ROC, EER and TAR at a given FAR from pair scores. Plain numpy inside."""

from __future__ import annotations

import math
import operator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
Booleans = npt.NDArray[np.bool_]

FAR_TARGETS = (1e-2, 1e-3)
MIN_IMPOSTORS = 3
"""A target FAR that allows fewer accepted impostor pairs than this is not reported: the figure would be noise."""


class Roc(NamedTuple):
    """ROC curve over all pairs, one point per distinct score, from (0, 0) to (1, 1).

    `far` and `tar` float64 in [0, 1], `thresholds` float64 falling from infinity; all of shape
    (num_distinct + 1,). A pair is accepted where `score >= threshold`.
    """

    far: Floats
    tar: Floats
    thresholds: Floats


class TarAtFar(NamedTuple):
    """The largest TAR at a FAR of at most the target.

    `num_impostors` is the number of impostor pairs that the target allows to be accepted,
    `floor(target * impostor pairs)`: the sample that the figure rests on.
    """

    tar: float
    far: float
    threshold: float
    num_impostors: int


class VerificationResult(NamedTuple):  # not a frozen dataclass, which torchmetrics does not let a metric return
    """The figures of `evaluate_pairs` and `PairVerification`.

    Attributes:
        accuracy: Mean of the fold accuracies.
        accuracy_se: Its standard error: sample standard deviation of the fold accuracies / sqrt(folds).
        fold_accuracies: Accuracy on each fold at its threshold, float64 (folds,).
        fold_thresholds: Threshold of each fold, chosen on the other folds, float64 (folds,).
        roc: ROC curve over all pairs.
        auc: Area under it.
        eer: Error rate where FAR and 1 - TAR are equal on the piecewise linear ROC.
        eer_threshold: Threshold of the first ROC point where FAR >= 1 - TAR.
        tar_at_far: By target FAR (1e-2, 1e-3); targets with too few impostor pairs behind them are left out.
        best_threshold: Threshold of the highest accuracy over all pairs: what to use with the network later.
            The highest of equally good ones; infinity where nothing beats rejecting every pair.
        best_accuracy: That accuracy. It is optimistic, as the threshold was chosen on the same pairs.
        num_genuine: Number of genuine pairs.
        num_impostor: Number of impostor pairs.
        scores: Score of each pair, float64 (pairs,).
    """

    accuracy: float
    accuracy_se: float
    fold_accuracies: Floats
    fold_thresholds: Floats
    roc: Roc
    auc: float
    eer: float
    eer_threshold: float
    tar_at_far: dict[float, TarAtFar]
    best_threshold: float
    best_accuracy: float
    num_genuine: int
    num_impostor: int
    scores: Floats

    @property
    def num_folds(self) -> int:
        """Number of folds that the accuracy is averaged over."""
        return len(self.fold_accuracies)

    def summary(self) -> str:
        """The figures in one line."""
        tars = [
            f"TAR@FAR={_far_name(target)} {point.tar:.4f} ({point.num_impostors} impostors)"
            for target, point in self.tar_at_far.items()
        ]
        accuracy = f"accuracy {self.accuracy:.4f} ± {self.accuracy_se:.4f}"
        areas = [f"AUC {self.auc:.4f}", f"EER {self.eer:.4f}"]
        return "  ".join([accuracy, *areas, *tars, f"threshold {self.best_threshold:.4f}"])

    def as_dict(self) -> dict[str, float]:
        """The figures by the name they are logged under."""
        figures = {
            "accuracy": self.accuracy,
            "accuracy_se": self.accuracy_se,
            "auc": self.auc,
            "eer": self.eer,
            "threshold": self.best_threshold,
        }
        tars = {f"tar_at_far_{_far_name(target)}": point.tar for target, point in self.tar_at_far.items()}
        return figures | tars


def evaluate_pairs(scores: Any, is_same: Any, folds: Any = 10) -> VerificationResult:
    """Evaluates verification scores by LFW's protocol (View 2).

    Each fold is classified with the threshold that maximises accuracy on the *other* folds. Candidate thresholds are all
    distinct scores of those folds (a pair is accepted where `score >= threshold`) and infinity (accept none); ties go to
    the highest.

    Huang et al., Labeled Faces in the Wild, UMass Amherst TR 07-49, 2007 (the protocol); Huang &
    Learned-Miller, TR UM-CS-2014-003 (standard error).

    Args:
        scores: Higher means more alike; array or tensor, shape (N,), converted to float64.
        is_same: True for genuine pairs, shape (N,).
        folds: A number of equal blocks in the order of the pairs, or each pair's fold, integer, shape (N,).

    Returns:
        Accuracy, ROC and what is derived from it.

    Raises:
        ValueError: Shapes differ, a score is NaN or infinite, all pairs are of one kind, or the folds do not
            match the pairs.
    """
    scores = np.asarray(off_torch(scores), dtype=np.float64)
    is_same = np.asarray(off_torch(is_same), dtype=np.bool_)
    _check(scores, is_same)
    fold_of = _fold_numbers(off_torch(folds), len(scores))
    curves = _CumulativeCounts(scores, is_same, fold_of)
    fold_accuracies, fold_thresholds = curves.fold_accuracies()
    roc = curves.roc()
    best = curves.most_correct(curves.all_genuine, curves.all_impostor)
    eer, eer_threshold = curves.equal_error_rate()
    num_folds = len(fold_accuracies)
    return VerificationResult(
        accuracy=float(fold_accuracies.mean()),
        accuracy_se=float(fold_accuracies.std(ddof=1) / math.sqrt(num_folds)),
        fold_accuracies=fold_accuracies,
        fold_thresholds=fold_thresholds,
        roc=roc,
        auc=curves.auc(),
        eer=eer,
        eer_threshold=eer_threshold,
        tar_at_far=_tar_at_far(roc, int((~is_same).sum())),
        best_threshold=float(curves.thresholds[best]),
        best_accuracy=float(((scores >= curves.thresholds[best]) == is_same).mean()),
        num_genuine=int(is_same.sum()),
        num_impostor=int((~is_same).sum()),
        scores=scores,
    )


class _CumulativeCounts:
    """The number of accepted genuine and impostor pairs, for each fold and each threshold.

    Thresholds fall from infinity through every distinct score, so everything below is a lookup in two tables
    of shape (folds, thresholds): no loop over thresholds.
    """

    def __init__(self, scores: Floats, is_same: Booleans, fold_of: Counts) -> None:
        distinct, place = np.unique(-scores, return_inverse=True)
        self.thresholds: Floats = np.concatenate([[np.inf], -distinct])
        self.genuine = self._accepted(place[is_same], fold_of[is_same], fold_of.max() + 1)
        self.impostor = self._accepted(place[~is_same], fold_of[~is_same], fold_of.max() + 1)
        self.all_genuine: Counts = self.genuine.sum(axis=0)
        self.all_impostor: Counts = self.impostor.sum(axis=0)

    def _accepted(self, place: Counts, fold_of: Counts, num_folds: int) -> Counts:
        width = len(self.thresholds)
        counts = np.bincount(fold_of * width + place + 1, minlength=num_folds * width)
        return np.cumsum(counts.reshape(num_folds, width), axis=1)

    def most_correct(self, genuine: Counts, impostor: Counts) -> int:
        """Index of the highest threshold with the most correct decisions, given the accepted pairs per threshold.

        A score of a pair that was not counted can tie with the candidate above it but never beat it, and ties go to the
        higher one. So the scores of all folds can stay in the table.
        """
        return int(np.argmax(genuine - impostor))

    def fold_accuracies(self) -> tuple[Floats, Floats]:
        """Accuracy of each fold at the threshold chosen on the others, and these thresholds."""
        accuracies, places = [], []
        for genuine, impostor in zip(self.genuine, self.impostor, strict=True):
            place = self.most_correct(self.all_genuine - genuine, self.all_impostor - impostor)
            correct = genuine[place] + impostor[-1] - impostor[place]
            accuracies.append(correct / (genuine[-1] + impostor[-1]))
            places.append(place)
        return np.array(accuracies), self.thresholds[places]

    def roc(self) -> Roc:
        """ROC curve over the pairs of all folds."""
        far, tar = self.all_impostor / self.all_impostor[-1], self.all_genuine / self.all_genuine[-1]
        return Roc(far, tar, self.thresholds)

    def auc(self) -> float:
        """Trapezoidal rule in integers with a single division: exact up to its rounding."""
        genuine, impostor = self.all_genuine, self.all_impostor
        doubled = int((np.diff(impostor) * (genuine[1:] + genuine[:-1])).sum())
        return doubled / (2 * int(genuine[-1]) * int(impostor[-1]))

    def equal_error_rate(self) -> tuple[float, float]:
        """Where the piecewise linear ROC meets FAR = 1 - TAR; the threshold of the first point at or past it."""
        genuine, impostor = self.all_genuine, self.all_impostor
        # FAR - (1 - TAR) in counts, non-decreasing: rounding in 1 - TAR could miss a point where they are equal.
        gap = impostor * genuine[-1] - (genuine[-1] - genuine) * impostor[-1]
        after = int(np.argmax(gap >= 0))
        share = -gap[after - 1] / (gap[after] - gap[after - 1])
        eer = (impostor[after - 1] + share * (impostor[after] - impostor[after - 1])) / impostor[-1]
        return float(eer), float(self.thresholds[after])


def _tar_at_far(roc: Roc, num_impostor: int) -> dict[float, TarAtFar]:
    points = {target: tar_at_far(roc, num_impostor, target) for target in FAR_TARGETS}
    return {target: point for target, point in points.items() if point is not None}


def tar_at_far(roc: Roc, num_impostor: int, target: float) -> TarAtFar | None:
    """The point of a ROC curve with the largest TAR at a FAR of at most the target.

    Args:
        roc: The curve.
        num_impostor: Impostor pairs behind it.
        target: The FAR, between 0 and 1.

    Returns:
        None where the target allows fewer than `MIN_IMPOSTORS` accepted impostor pairs.
    """
    allowed = math.floor(target * num_impostor + 1e-9)
    if allowed < MIN_IMPOSTORS:
        return None
    # Compare FARs as counts of impostor pairs, so that rounding never decides.
    place = int(np.searchsorted(np.rint(roc.far * num_impostor), allowed, side="right")) - 1
    return TarAtFar(float(roc.tar[place]), float(roc.far[place]), float(roc.thresholds[place]), allowed)


def off_torch(values: Any) -> Any:
    """Converts a tensor of any device and dtype, with or without gradient, to an array; returns anything else as it is."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        return (values.double() if values.is_floating_point() else values).numpy()
    return values


def _check(scores: Floats, is_same: Booleans) -> None:
    if scores.ndim != 1 or scores.shape != is_same.shape:
        raise ValueError(f"scores {scores.shape} and is_same {is_same.shape} must have the same shape (N,)")
    broken = int((~np.isfinite(scores)).sum())
    if broken:
        raise ValueError(f"{broken} of {len(scores)} scores are NaN or infinite")
    if is_same.all() or not is_same.any():
        raise ValueError("evaluation needs genuine and impostor pairs, but all pairs are of one kind")


def _fold_numbers(folds: Any, num_pairs: int) -> Counts:
    """Each pair's fold, numbered from 0."""
    if np.ndim(folds) == 0:
        count = operator.index(folds)
        if count < 2 or num_pairs % count:
            raise ValueError(f"{num_pairs} pairs cannot be divided into {count} equal folds (at least 2)")
        return np.repeat(np.arange(count), num_pairs // count)
    names, numbers = np.unique(np.asarray(folds), return_inverse=True)
    if numbers.shape != (num_pairs,) or len(names) < 2:
        raise ValueError(f"folds must assign each of {num_pairs} pairs to one of at least two folds")
    return numbers.astype(np.int64)


def _far_name(target: float) -> str:
    """Formats 0.01 as 1e-2."""
    return f"1e{round(math.log10(target))}"
