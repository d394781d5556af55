"""Backbones, heads and recipes on LFW's own people: trained on the people of nine folds of View 2, tested on the tenth's pairs.

--lfw has `aligned_112/<name>/<photo>.jpg`, `pairs.txt` and `lists/` (people.txt, peopleDevTest.txt, pairsDevTest.txt). For each
row and fold the real command line is run: `fit`, which sees nothing of the tested fold, then `validate` with the weights of the
last epoch. The aligner that made the crops was trained on photos other than LFW's.

Thresholds. A fold's threshold is the one with the most correct decisions on the pairs of the other requested folds, each scored by
its own model: View 2's rule, with a model for each fold. (The other folds' models were trained on the fold's people, but contribute
only that one number.) If only one fold is requested, it is split in half, the first half of its genuine pairs with the first half
of its impostor pairs, and each half is tested at the threshold of the other. The standard error is View 2's over ten folds, sample
deviation / sqrt(10), and sqrt(p (1 - p) / pairs) over fewer. AUC, EER and TAR are computed over the scores of all tested folds
together. Each model is tested twice: on embeddings of the crops, and (flip average) on the means of a crop's embedding and its
mirror image's.

--view1 trains on everybody except the people in peopleDevTest.txt (that is, on those in peopleDevTrain.txt) and tests on
pairsDevTest.txt: recipes are chosen there, never on View 2.

Each fold's result is saved below --out, by the row's exact settings; repeating the command completes what is missing, and resumes
a half-trained fold from its last epoch.

    python -m experiments.lfw.ten_folds --lfw datasets/lfw --rows raw-pixels vgg16bn-softmax vgg16bn-center --folds 9 10
    python -m experiments.lfw.ten_folds --list [--rows vgg16bn-center--no-flip]
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from experiments.lfw.jobs import OWN_OPTIONS, LfwJob, Scores, Split
from experiments.lfw.recipes import (
    BACKBONES,
    HEADS,
    RAW_PIXELS,
    Options,
    parse_overrides,
    row_names,
    row_options,
    with_changes,
)
from experiments.runner import Runner, check_json, guarded, stop_at_sigterm
from facelit.errors import FacelitError
from facelit.verification import VerificationResult, evaluate_pairs
from harness.reporting import machine, print_header, print_table, write_json

ALL_FOLDS = tuple(range(1, 11))
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
STYLES = ("-", "--", "-.", ":")


class Figures(NamedTuple):
    """A row's accuracy with its standard error (see the module for both), and its other figures."""

    accuracy: float
    standard_error: float
    result: VerificationResult

    def __str__(self) -> str:
        return f"{self.accuracy:.4f} ± {self.standard_error:.4f}"


def summarise(folds: Sequence[Scores]) -> Figures:
    """The figures over the tested folds, each scored by its own model."""
    scores = np.concatenate([fold.scores for fold in folds])
    is_same = np.concatenate([fold.is_same for fold in folds])
    number = np.repeat(np.arange(len(folds)), [len(fold.scores) for fold in folds])
    result = evaluate_pairs(scores, is_same, folds[0].halves if len(folds) == 1 else number)
    accuracy = result.accuracy
    binomial = math.sqrt(accuracy * (1 - accuracy) / len(scores))
    return Figures(accuracy, result.accuracy_se if len(folds) == len(ALL_FOLDS) else binomial, result)


def settings(row: str, arguments: argparse.Namespace) -> Options:
    """A row's options with what the command line changes."""
    options = row_options(row)
    if not options:
        return {}
    changes = {"model.backbone.width": arguments.width, "trainer.max_epochs": arguments.epochs}
    options = with_changes(options, {key: value for key, value in changes.items() if value is not None})
    options |= {"seed_everything": arguments.seed, "trainer.precision": arguments.precision}
    overrides = parse_overrides(arguments.override)
    if own := [key for key in overrides if key.startswith(OWN_OPTIONS)]:
        raise FacelitError(f"--override {own[0]}: the comparison sets this option itself.")
    return with_changes(options, overrides)


def make_jobs(arguments: argparse.Namespace) -> dict[str, list[LfwJob]]:
    """The jobs of each row, fold by fold."""
    folds: Sequence[int | None] = [None] if arguments.view1 else sorted(set(arguments.folds))
    return {
        row: [
            LfwJob(row, settings(row, arguments), Split(arguments.lfw, fold), arguments.out, arguments.threads)
            for fold in folds
        ]
        for row in dict.fromkeys(arguments.rows)
    }


def print_rows(rows: Mapping[str, list[LfwJob]]) -> None:
    """Prints every row's settings, and the command that trains its first fold."""
    for row, jobs in rows.items():
        print(f"{row}")
        if row == RAW_PIXELS:
            print("    cosine of the grey crops, each less its own mean; nothing is trained\n")
            continue
        for option, value in jobs[0].options.items():
            print(f"    {option} {value if isinstance(value, str) else json.dumps(value)}")
        print(f"    $ OMP_NUM_THREADS={jobs[0].threads} python {shlex.join(jobs[0].command('fit'))}\n")


def report(rows: Mapping[str, list[LfwJob]], arguments: argparse.Namespace) -> None:
    """Prints the table, and writes the JSON file and the picture, of everything done so far."""
    done = {row: [job for job in jobs if job.result() is not None] for row, jobs in rows.items()}
    done = {row: jobs for row, jobs in done.items() if jobs}
    if not done:
        print("No result yet.")
        return
    figures = {row: summarise([job.scores() for job in jobs]) for row, jobs in done.items()}
    facts = machine(["torch", "pytorch-lightning"])
    what = "LFW View 1" if arguments.view1 else "LFW View 2, trained on the other nine folds"
    print()
    print_header(f"{what}; seed {arguments.seed}; {' '.join(arguments.override)}".rstrip("; "), facts)
    columns = ["row", "accuracy", "AUC", "EER", "TAR@FAR 1e-2", "flip average", "AUC", "tested on"]
    columns += ["people / crops", "minutes"]
    print_table(columns, [_table_row(row, figures[row], jobs) for row, jobs in done.items()])
    if missing := [job.name for jobs in rows.values() for job in jobs if job.result() is None]:
        print(f"\nNot done yet: {'; '.join(missing)}")
    name = "view-1" if arguments.view1 else "view-2"
    folds = sorted({_tested(jobs) for jobs in done.values()})
    figure = roc_picture(figures, what if arguments.view1 else f"{what}; tested on {' or '.join(folds)}")
    figure.savefig(arguments.out / f"roc-{name}.png", dpi=130)
    contents = {row: _as_json(figures[row], jobs) for row, jobs in done.items()}
    path = arguments.json or arguments.out / f"results-{name}.json"
    write_json(path, {"machine": facts, "command": sys.argv, "thresholds": __doc__.split("\n\n")[2], "rows": contents})
    print(f"\n{path}, {arguments.out / f'roc-{name}.png'}")


def _table_row(row: str, figures: Figures, jobs: Sequence[LfwJob]) -> list[str]:
    found = [job.result() or {} for job in jobs]
    tar = figures.result.tar_at_far.get(1e-2)
    flipped = None if row == RAW_PIXELS else summarise([job.scores(flip_average=True) for job in jobs])
    return [
        row,
        str(figures),
        f"{figures.result.auc:.4f}",
        f"{figures.result.eer:.4f}",
        f"{tar.tar:.3f}" if tar else "-",
        str(flipped) if flipped else "-",
        f"{flipped.result.auc:.4f}" if flipped else "-",
        _tested(jobs),
        "-" if row == RAW_PIXELS else f"{_range(found, 'people')} / {_range(found, 'crops')}",
        f"{sum(one['seconds'] for one in found) / 60:.1f}",
    ]


def _tested(jobs: Sequence[LfwJob]) -> str:
    folds = [job.split.fold for job in jobs]
    if folds == [None]:
        return "View 1"
    return "all ten folds" if folds == list(ALL_FOLDS) else f"fold{'s' * (len(folds) > 1)} {', '.join(map(str, folds))}"


def _range(found: Sequence[Mapping[str, Any]], key: str) -> str:
    low, high = min(one[key] for one in found), max(one[key] for one in found)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _as_json(figures: Figures, jobs: Sequence[LfwJob]) -> dict[str, Any]:
    result = figures.result
    folds: dict[str, dict[str, Any]] = {}
    for job in jobs:
        alone = summarise([job.scores()])
        folds[job.split.name] = {"auc": alone.result.auc, "accuracy_of_halves": alone.accuracy, **(job.result() or {})}
    if len(jobs) > 1:
        for fold, accuracy, threshold in zip(
            folds.values(), result.fold_accuracies, result.fold_thresholds, strict=True
        ):
            fold |= {"accuracy": float(accuracy), "threshold": float(threshold)}
    found = {**result.as_dict(), "accuracy_se": figures.standard_error, "folds": folds}
    if all(True in job.tests for job in jobs):
        flipped = summarise([job.scores(flip_average=True) for job in jobs])
        found["flip_average"] = {**flipped.result.as_dict(), "accuracy_se": flipped.standard_error}
    return found


def roc_picture(figures: Mapping[str, Figures], title: str) -> Figure:
    """Draws a ROC curve for each row, the best first in the legend, over a logarithmic FAR axis."""
    figure = Figure(figsize=(8, 5.2 + 0.22 * len(figures)), layout="constrained")
    axes = figure.add_subplot()
    floor = min(0.5 / one.result.num_impostor for one in figures.values())
    order = sorted(figures, key=lambda row: -figures[row].accuracy)
    for number, row in enumerate(figures):
        one = figures[row]
        colour, style = _line(row, number)
        label = f"{row}: {one.accuracy:.3f} ± {one.standard_error:.3f}, AUC {one.result.auc:.3f}"
        far = np.maximum(one.result.roc.far, floor)
        axes.step(far, one.result.roc.tar, style, where="post", color=colour, linewidth=1.6, label=label)
    diagonal = np.geomspace(floor, 1, 200)
    axes.plot(diagonal, diagonal, color="#999999", linestyle=":", linewidth=1, label="chance")
    axes.set(xscale="log", xlim=(floor, 1), ylim=(0, 1.02), title=title)
    axes.set(xlabel="FAR (false accept rate)", ylabel="TAR (true accept rate)")
    axes.grid(True, which="major", color="#DDDDDD", linewidth=0.7)
    handles, labels = axes.get_legend_handles_labels()
    places = [*(list(figures).index(row) for row in order), len(figures)]
    figure.legend(
        [handles[place] for place in places],
        [labels[place] for place in places],
        loc="outside lower center",
        fontsize=8.5,
        frameon=False,
    )
    return figure


def _line(row: str, number: int) -> tuple[str, str]:
    """A curve's colour shows its head, its style the backbone; if parts are left out, both only distinguish rows."""
    if row == RAW_PIXELS:
        return "#777777", "-"
    base, *removals = row.split("--")
    if removals:
        return COLOURS[number % len(COLOURS)], STYLES[2 + number // len(COLOURS) % 2]
    backbone, head = base.split("-", 1)
    colour, style = list(HEADS).index(head), list(BACKBONES).index(backbone)
    return COLOURS[colour % len(COLOURS)], STYLES[style % len(STYLES)]


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lfw", type=Path, default=Path("datasets/lfw"))
    parser.add_argument("--rows", nargs="+", default=row_names(), metavar="ROW", help="all; see --list")
    split = parser.add_mutually_exclusive_group()
    split.add_argument(
        "--folds",
        nargs="+",
        type=int,
        choices=ALL_FOLDS,
        default=ALL_FOLDS,
        metavar="K",
        help="1 to 10; all by default",
    )
    split.add_argument("--view1", action="store_true", help="View 1 instead of folds of View 2")
    parser.add_argument("--out", type=Path, default=Path("runs/lfw-ten-folds"))
    parser.add_argument("--width", type=float, help="width of the backbones, instead of the rows' own")
    parser.add_argument("--epochs", type=int, help="epochs, instead of the rows' own")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", default="32-true")
    parser.add_argument("--override", nargs="+", default=[], metavar="KEY=VALUE", help="options of `fit`, for all rows")
    parser.add_argument("--threads", type=_positive, default=1, help="CPU threads of each training")
    parser.add_argument("--jobs", type=_positive, default=1, help="trainings at once")
    parser.add_argument("--list", action="store_true", help="print the rows' settings, and train nothing")
    parser.add_argument("--no-train", action="store_true", help="report what is done so far, and train nothing")
    parser.add_argument("--json", type=Path, help="the file for the figures; by default below --out")
    return parser


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def main() -> int:
    arguments = make_parser().parse_args()
    return guarded(lambda: run(arguments))


def run(arguments: argparse.Namespace) -> int:
    """Trains what is missing and reports; returns the exit status."""
    check_json(arguments.json)
    rows = make_jobs(arguments)
    if arguments.list:
        print_rows(rows)
        return 0
    failed = [] if arguments.no_train else Runner(arguments.jobs).run([job for jobs in rows.values() for job in jobs])
    report(rows, arguments)
    return 1 if failed else 0


if __name__ == "__main__":
    stop_at_sigterm()
    sys.exit(main())
