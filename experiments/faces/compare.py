"""Backbones, heads and levers trained on outside people, with or without a teacher, tested on all of LFW, CFP-FF and CFP-FP.

--data has `faces/train/<person>/<crop>`, `lfw/` (`aligned_112/<name>/<photo>.jpg`, `pairs.txt`, `lists/`) and `cfp/` (`aligned_112`,
`pairs_FF.txt`, `pairs_FP.txt`). Nobody of LFW or CFP may be among the outside people. For each row and seed the real command line is run:
`fit`, which sees no tested pair, then `validate` with the weights of the last epoch, on embeddings of the crops and on the means
of a crop's and its mirror image's (flip average). Accuracies are means over ten folds, each at the threshold of the other nine, with
the sample deviation / sqrt(folds) as standard error; over several seeds their mean, and the sample deviation over the seeds.

--choose holds a tenth of the training families out and tests on pairs of them and on LFW's View 1: recipes are chosen there,
never on what is reported. --lfw_folds K ... is LFW's View 2 with outside data: the people of the other nine folds are
trained on too, the fold's pairs are tested; with --folds_per_network 5 two networks do for all ten, each trained on five folds.
Choose its recipe on --lfw_view_1, which trains on View 1's training people too, and tests on its test pairs.

Each training's result is saved below --out, by the row's exact settings; repeating the command completes what is missing, and
resumes a half-trained one from its last epoch.

    python -m experiments.faces.compare --data datasets --rows vgg16bn-softmax vgg16bn-center --seeds 0 1 2
    python -m experiments.faces.compare --data datasets --rows vgg16bn-center --teacher teacher.ckpt
    python -m experiments.faces.compare --choose --rows vgg16bn-center vgg16bn-center--lambda-1e-2
    python -m experiments.faces.compare --list
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.faces.jobs import Choosing, Data, FaceJob, Split, WithLfw
from experiments.faces.rows import LEVERS, row_names, row_options
from experiments.lfw.recipes import Options, parse_overrides, with_changes
from experiments.runner import Runner, check_json, guarded, stop_at_sigterm
from facelit.errors import FacelitError
from facelit.verification import VerificationResult, evaluate_pairs
from harness.reporting import machine, print_header, print_table, write_json

ALL_FOLDS = tuple(range(1, 11))


def evaluate(jobs: Sequence[FaceJob], name: str, flip_average: bool = False) -> VerificationResult:
    """The figures of one seed on one set; of LFW's folds, each scored by its own network, together."""
    parts = [job.scores(name, flip_average) for job in jobs]
    if len(parts) == 1:
        return evaluate_pairs(*parts[0])
    counts = [job.split.num_folds for job in jobs]
    # A network's only fold came in two halves, for a threshold of its own.
    folds = [part.folds if count > 1 else 0 * part.folds for part, count in zip(parts, counts, strict=True)]
    first = np.cumsum([0, *counts[:-1]])
    return evaluate_pairs(
        np.concatenate([part.scores for part in parts]),
        np.concatenate([part.is_same for part in parts]),
        np.concatenate([start + fold for start, fold in zip(first, folds, strict=True)]),
    )


def make_jobs(arguments: argparse.Namespace) -> dict[str, list[list[FaceJob]]]:
    """The jobs of each row: for each seed one, or one for each fold of LFW."""
    data = Data(arguments.data)
    splits: list[Split] = [Split(data)]
    if arguments.choose:
        splits = [Choosing(data)]
    elif arguments.lfw_view_1:
        splits = [WithLfw(data, None)]
    elif arguments.lfw_folds:
        folds, size = sorted(set(arguments.lfw_folds)), arguments.folds_per_network
        splits = [WithLfw(data, folds[start : start + size]) for start in range(0, len(folds), size)]
    return {
        row: [
            [
                FaceJob(_title(row, arguments), settings(row, arguments), seed, split, arguments.out, arguments.threads)
                for split in splits
            ]
            for seed in dict.fromkeys(arguments.seeds)
        ]
        for row in dict.fromkeys(arguments.rows)
    }


def settings(row: str, arguments: argparse.Namespace) -> Options:
    """A row's options with what the command line changes."""
    teacher = None if arguments.teacher is None else str(arguments.teacher.resolve())
    options = row_options(row, teacher)
    if arguments.epochs is not None:
        options = with_changes(options, {"trainer.max_epochs": arguments.epochs})
    return with_changes(options, parse_overrides(arguments.override))


def _title(row: str, arguments: argparse.Namespace) -> str:
    return row if arguments.teacher is None else f"{row} (teacher)"


def report(rows: Mapping[str, list[list[FaceJob]]], arguments: argparse.Namespace) -> None:
    """Prints a table of each set, and writes the JSON file, of everything done so far."""
    done = {row: [jobs for jobs in seeds if all(job.result() for job in jobs)] for row, seeds in rows.items()}
    done = {row: seeds for row, seeds in done.items() if seeds}
    if not done:
        print("No result yet.")
        return
    facts = machine(["torch", "pytorch-lightning"])
    print()
    print_header("Outside people; " + ("with a teacher" if arguments.teacher else "labels alone"), facts)
    contents: dict[str, Any] = {}
    names = sorted({name for seeds in done.values() for name in (seeds[0][0].result() or {})["sets"]})
    for name in names:
        print(f"\n{name}")
        table = []
        for row, seeds in done.items():
            line, found = _row(row, seeds, name)
            table.append(line)
            contents.setdefault(row, {})[name] = found
        print_table(
            ["row", "seeds", "accuracy", "AUC", "TAR@1e-2", "TAR@1e-3", "flip average", "AUC", "minutes"], table
        )
    path = arguments.json or arguments.out / "results.json"
    write_json(path, {"machine": facts, "command": sys.argv, "rows": contents})
    print(f"\n{path}")


def _row(row: str, seeds: list[list[FaceJob]], name: str) -> tuple[list[str], dict[str, Any]]:
    plain = [evaluate(jobs, name) for jobs in seeds]
    flipped = [evaluate(jobs, name, flip_average=True) for jobs in seeds]
    minutes = [sum((job.result() or {})["seconds"] for job in jobs) / 60 for jobs in seeds]
    line = [row, str(len(seeds)), _accuracy(plain), f"{np.mean([one.auc for one in plain]):.4f}"]
    line += [_tar(plain, far) for far in (1e-2, 1e-3)]
    line += [_accuracy(flipped), f"{np.mean([one.auc for one in flipped]):.4f}", f"{np.mean(minutes):.1f}"]
    found = {"plain": [one.as_dict() for one in plain], "flip_average": [one.as_dict() for one in flipped]}
    return line, found | {"minutes": minutes, "jobs": [[job.result() for job in jobs] for jobs in seeds]}


def _accuracy(results: Sequence[VerificationResult]) -> str:
    """One seed's accuracy with its standard error over folds; the mean of several with their deviation."""
    accuracies = [one.accuracy for one in results]
    spread = results[0].accuracy_se if len(results) == 1 else float(np.std(accuracies, ddof=1))
    return f"{np.mean(accuracies):.4f} ± {spread:.4f}"


def _tar(results: Sequence[VerificationResult], far: float) -> str:
    """The mean TAR; a dash where there are too few impostor pairs for this FAR."""
    if any(far not in one.tar_at_far for one in results):
        return "-"
    return f"{np.mean([one.tar_at_far[far].tar for one in results]):.4f}"


def print_rows(rows: Mapping[str, list[list[FaceJob]]]) -> None:
    """Prints every row's settings."""
    for row, seeds in rows.items():
        print(row)
        for option, value in seeds[0][0].options.items():
            print(f"    {option} {value if isinstance(value, str) else json.dumps(value)}")
    print(f"\nLevers: --{', --'.join(LEVERS)}")
    print(f"$ python -m experiments.faces.compare {shlex.join(sys.argv[1:])}")


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("datasets"))
    parser.add_argument("--rows", nargs="+", default=row_names(), metavar="ROW", help="all; see --list")
    parser.add_argument("--teacher", type=Path, help="a checkpoint, weights or an ONNX to learn from")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    split = parser.add_mutually_exclusive_group()
    split.add_argument("--choose", action="store_true", help="test on held-out people and LFW's View 1")
    split.add_argument("--lfw_folds", nargs="+", type=int, choices=ALL_FOLDS, metavar="K", help="View 2, outside data")
    split.add_argument("--lfw_view_1", action="store_true", help="View 1, outside data: to choose a recipe for View 2")
    parser.add_argument("--folds_per_network", type=int, default=1, help="of --lfw_folds: tested by one network")
    parser.add_argument("--out", type=Path, default=Path("runs/faces-compare"))
    parser.add_argument("--epochs", type=int, help="epochs, instead of the rows' own")
    parser.add_argument("--override", nargs="+", default=[], metavar="KEY=VALUE", help="options of `fit`, for all rows")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each training")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at once")
    parser.add_argument("--list", action="store_true", help="print the rows' settings, and train nothing")
    parser.add_argument("--no-train", action="store_true", help="report what is done so far, and train nothing")
    parser.add_argument("--json", type=Path, help="the file for the figures; by default below --out")
    return parser


def main() -> int:
    arguments = make_parser().parse_args()
    return guarded(lambda: run(arguments))


def run(arguments: argparse.Namespace) -> int:
    """Trains what is missing and reports; returns the exit status."""
    check_json(arguments.json)
    for option in ("threads", "jobs", "folds_per_network"):
        if getattr(arguments, option) < 1:
            raise FacelitError(f"--{option} {getattr(arguments, option)}: must be at least 1.")
    if arguments.teacher is not None and not arguments.teacher.is_file():
        raise FacelitError(f"--teacher {arguments.teacher}: there is no such file.")
    rows = make_jobs(arguments)
    if arguments.list:
        print_rows(rows)
        return 0
    everything = [job for seeds in rows.values() for jobs in seeds for job in jobs]
    failed = [] if arguments.no_train else Runner(arguments.jobs).run(everything)
    report(rows, arguments)
    return 1 if failed else 0


if __name__ == "__main__":
    stop_at_sigterm()
    sys.exit(main())
