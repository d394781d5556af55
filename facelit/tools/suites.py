"""`facelit suites`: checkpoints on the standard verification sets, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from facelit.errors import FacelitError
from facelit.inference.console import remark

if TYPE_CHECKING:
    from facelit.suites.measuring import Measurement


def suites(
    checkpoints: list[str],
    sets: dict[str, Any] | None = None,
    only: list[str] | None = None,
    allow_missing: bool = False,
    out: str | None = None,
    groups: str | None = None,
    threshold: float | None = None,
    far: float | None = None,
    flip_average: bool = False,
    batch_size: int = 64,
    device: str | None = None,
) -> int:
    """Measures checkpoints on LFW, CFP, AgeDB-30, CALFW and CPLFW, or on other sets, and compares them.

    Prints accuracy, AUC and TAR at FAR for each set, and the average over the sets. For every two checkpoints, McNemar's test
    says on each set whether the better one is better by more than chance. What is already in --out is not measured again.

    Args:
        checkpoints: The checkpoints; of a run's folder, the best one.
        sets: The sets, by name, as in configs/suites.yaml (which --config reads).
        only: Measure only these sets of the configuration.
        allow_missing: Leave out sets whose files are absent, and say which.
        out: Write the scores of all pairs, the figures (suites.tsv and suites.json) and the rates by group into this folder.
        groups: A table (.tsv or .csv) with a column image or identity, and columns of groups, such as sex or age_band; FAR and FRR
            are then shown for each group, at one threshold.
        threshold: The threshold for --groups; by default the one with the best accuracy on the whole set.
        far: For --groups, choose the threshold at which the whole set has this false accept rate.
        flip_average: Average each embedding with the mirror image's, as InsightFace's figures do.
        batch_size: The number of crops that go through the network at once.
        device: The device for the network, such as cpu or cuda; by default a GPU if there is one.

    Raises:
        FacelitError: A set is absent, or something cannot be read or written.
    """
    if not sets:
        raise FacelitError("no sets are named. Use --config configs/suites.yaml, or a copy of it with your own paths.")
    if batch_size < 1:
        raise FacelitError(f"--batch_size must be at least 1, not {batch_size}.")
    if far is not None and not 0 < far < 1:
        raise FacelitError(f"--far {far:g}: a false accept rate is between 0 and 1, such as 1e-3.")
    if threshold is not None and not -1 <= threshold <= 1:
        raise FacelitError(f"--threshold {threshold:g}: a cosine similarity is between -1 and 1.")
    if groups is None and (threshold is not None or far is not None):
        raise FacelitError("--threshold and --far are for the rates by group. Name the groups with --groups FILE.")
    if threshold is not None and far is not None:
        raise FacelitError("--threshold and --far exclude each other.")
    from facelit.suites.breakdowns import ThresholdRule
    from facelit.suites.measuring import measure

    measurement = measure(
        checkpoints,
        sets,
        only=only,
        allow_missing=allow_missing,
        out=None if out is None else Path(out),
        groups=None if groups is None else Path(groups),
        rule=ThresholdRule(threshold, far),
        flip_average=flip_average,
        batch_size=batch_size,
        device=device,
    )
    _show(measurement)
    if out is not None:
        measurement.write(Path(out))
        remark(f"Scores and figures: {out}")
    return 0


suites.examples = [  # type: ignore[attr-defined]  # read by facelit.cli.parser
    "a.ckpt b.ckpt --config configs/suites.yaml --allow_missing --out measured",
    "a.ckpt --config configs/suites.yaml --only lfw --groups people.tsv --far 1e-2",
]


def _show(measurement: Measurement) -> None:
    from facelit.suites.breakdowns import breakdown_lines
    from facelit.suites.table import comparison_lines, table_lines

    print("\n".join(table_lines(measurement.results)))
    if measurement.comparisons:
        print("\n".join(["", *comparison_lines(measurement.comparisons)]))
    for checkpoint, sets in measurement.breakdowns.items():
        for name, found in sets.items():
            print("\n".join(["", *breakdown_lines(f"{name}, {checkpoint}", found)]).rstrip())
    for name, what in measurement.absent.items():
        remark(f"{name} is left out: {what} is absent.")
