"""The cost of LFW's protocol: 6,000 pairs in ten folds, on one core.

Nothing here uses BLAS, so everything runs on one thread. `evaluate_pairs` is timed as a whole (folds, ROC, AUC,
EER, TAR at FAR); the baselines, in the same run, only choose the ten thresholds and compute the fold accuracies:

- grid: thresholds from -1 to 1 in steps of 0.01 in a Python loop for each fold, as many repositories do;
- every score: a Python loop over every distinct score of the other folds, each compared with all their pairs.

    python benchmarks/verification_protocol.py [--json FILE]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt

from facelit.verification import evaluate_pairs
from harness.reporting import machine, print_header, print_table, time_in_turns, write_json

NUM_PAIRS, FOLDS = 6_000, 10
FACELIT, GRID, EVERY_SCORE = "facelit", "grid, step 0.01", "every score, looped"

Floats = npt.NDArray[np.float64]
Booleans = npt.NDArray[np.bool_]


def make_pairs() -> tuple[Floats, Booleans]:
    """Synthetic cosines in LFW's order: per fold 300 genuine pairs, then 300 impostor pairs."""
    is_same = np.tile(np.repeat([True, False], NUM_PAIRS // FOLDS // 2), FOLDS)
    noise = np.random.default_rng(0).normal(0, 0.18, NUM_PAIRS)
    return np.tanh(noise + 0.5 * is_same), is_same


def grid_folds(scores: Floats, is_same: Booleans) -> Floats:
    """Fold accuracies with thresholds from a grid."""
    return looped_folds(scores, is_same, np.arange(1, -1.005, -0.01))


def every_score_folds(scores: Floats, is_same: Booleans) -> Floats:
    """Fold accuracies with every distinct score of the other folds as a candidate."""
    return looped_folds(scores, is_same, None)


def looped_folds(scores: Floats, is_same: Booleans, grid: Floats | None) -> Floats:
    """Fold accuracies; one comparison with all pairs of the other folds for each candidate threshold."""
    fold_of = np.repeat(np.arange(FOLDS), NUM_PAIRS // FOLDS)
    accuracies = []
    for fold in range(FOLDS):
        held_out = fold_of == fold
        others, labels = scores[~held_out], is_same[~held_out]
        candidates = np.append(np.inf, np.unique(others)[::-1]) if grid is None else grid
        correct = [np.count_nonzero((others >= threshold) == labels) for threshold in candidates]
        threshold = candidates[int(np.argmax(correct))]
        accuracies.append(np.mean((scores[held_out] >= threshold) == is_same[held_out]))
    return np.array(accuracies)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20, help="calls of facelit and of the grid")
    parser.add_argument("--slow-repeats", type=int, default=5, help="calls of the loop over every score")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    if min(arguments.repeats, arguments.slow_repeats) < 2:
        parser.error("a spread needs at least 2 repeats")
    facts = machine(["numpy"])
    print_header(f"{NUM_PAIRS:,} pairs, {FOLDS} folds, float64", facts)
    scores, is_same = make_pairs()
    accuracies = {
        FACELIT: evaluate_pairs(scores, is_same, FOLDS).fold_accuracies,
        GRID: grid_folds(scores, is_same),
        EVERY_SCORE: every_score_folds(scores, is_same),
    }
    if not np.array_equal(accuracies[FACELIT], accuracies[EVERY_SCORE]):
        raise SystemExit("facelit and the loop over every score disagree: not comparable")
    timings = time_in_turns(
        {
            FACELIT: lambda: evaluate_pairs(scores, is_same, FOLDS),
            GRID: lambda: grid_folds(scores, is_same),
            EVERY_SCORE: lambda: every_score_folds(scores, is_same),
        },
        {FACELIT: arguments.repeats, GRID: arguments.repeats, EVERY_SCORE: arguments.slow_repeats},
    )
    ratios = {name: timing.median / timings[FACELIT].median for name, timing in timings.items()}
    columns = ["method", "median (quartiles)", "calls", "time / facelit's", "accuracy"]
    print_table(
        columns,
        [
            [
                name,
                timing.milliseconds(),
                str(timing.repeats),
                f"{ratios[name]:.1f}",
                f"{accuracies[name].mean():.5f}",
            ]
            for name, timing in timings.items()
        ],
    )
    methods = {
        name: timing._asdict() | {"ratio": ratios[name], "accuracy": float(accuracies[name].mean())}
        for name, timing in timings.items()
    }
    write_json(arguments.json, {"machine": facts, "methods": methods})


if __name__ == "__main__":
    main()
