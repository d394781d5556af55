"""Simulated scores, and a run's log, as `facelit suites` and `fit` leave them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from facelit.verification.scored_pairs import ScoredPairs

PAIRS = 400


def simulated(name: str, seed: int, root: Path | None = None, pairs: int = PAIRS) -> ScoredPairs:
    """Scores of ten folds that overlap a little; `seed` changes the scores, and not the pairs."""
    rng = np.random.default_rng(seed)
    genuine = np.tile(np.arange(pairs // 10) % 2 == 0, 10)
    scores = np.where(genuine, 0.45, 0.1) + 0.12 * rng.standard_normal(pairs)
    files = [f"p{number % 20}/p{number % 20}_{number % 3}.png" for number in range(pairs + 7)]
    return ScoredPairs(
        name,
        scores.clip(-1, 1).astype(np.float32),
        genuine,
        np.repeat(np.arange(10), pairs // 10),
        files[:pairs],
        files[7:],
        None if root is None else str(root),
    )


def write_scores(folder: Path, pairs: ScoredPairs, checkpoint: Path | str = "x.ckpt") -> Path:
    """A checkpoint's folder as `facelit suites` writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    pairs.save(folder / f"{pairs.name}.npz")
    about = {"checkpoint": str(checkpoint), "flip_average": False, "sets": {pairs.name: {"missing_pairs": 3}}}
    (folder / "about.json").write_text(json.dumps(about))
    return folder


def write_log(folder: Path, rows: str) -> Path:
    """A run's folder with what CSVLogger wrote."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.csv").write_text(rows)
    return folder
