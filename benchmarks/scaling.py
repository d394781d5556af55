"""How training scales from 1 to 64 GPUs, according to the model in cost_model/: tables for four data sets; see docs/scaling.md.

python benchmarks/scaling.py [--machine h200 h200-ethernet 24gb] [--head center] [--backbone vgg16] [--batch 256]
python benchmarks/scaling.py --check [--device cuda]    predicts steps and memory of this machine, and measures them
python benchmarks/scaling.py --update docs/scaling.md   writes the tables into the page
python benchmarks/scaling.py --out epochs.png           draws minutes per epoch over the number of GPUs
"""

from __future__ import annotations

import argparse
import io
import re
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import get_args

from cost_model.inputs import BACKBONES, DATASETS, GPUS, MACHINES, Dataset, input_rows
from cost_model.model import Head, Job, Machine, Memory, head_rows, images_per_second, memory, step
from cost_model.plan import Plan, plan
from harness.reporting import print_table, write_json

COLUMNS = [
    "data set", "GPUs", "images/s", "epoch", "GB a GPU", "breaks first", "turn on", "images/s then", "epoch then", "GB then", "left",
]  # fmt: skip
_MARK = "<!-- scaling: {name} -->"


def epoch_minutes(dataset: Dataset, job: Job, machine: Machine, gpus: int) -> float:
    """Minutes of one pass over the images."""
    return dataset.images / images_per_second(job, machine, gpus) / 60


def duration(minutes: float) -> str:
    """Seconds, minutes or hours."""
    if minutes < 1:
        return f"{60 * minutes:.0f} s"
    return f"{minutes:.1f} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def scaling_rows(job: Job, machine: Machine) -> list[list[str]]:
    """One row for each data set and number of GPUs."""
    rows = []
    for dataset in DATASETS:
        own = Job(**{**vars(job), "identities": dataset.identities})
        rows += [[dataset.name, str(gpus), *_cells(dataset, own, machine, gpus)] for gpus in GPUS]
    return rows


def _cells(dataset: Dataset, job: Job, machine: Machine, gpus: int) -> list[str]:
    found = plan(job, machine, gpus)
    before = _speed(dataset, job, machine, gpus)
    if not found.first:
        return [*before, "", "", "", "", "", ""]
    after = _speed(dataset, found.job, found.machine, gpus) if found.options else ["", "", ""]
    return [*before, found.first, ", ".join(found.options), *after, _left(found, gpus)]


def _speed(dataset: Dataset, job: Job, machine: Machine, gpus: int) -> list[str]:
    """Images/s and minutes per epoch (empty if the job does not fit), and GB on each GPU."""
    used = memory(job, machine, gpus).total
    gigabytes = f"{used / 1e9:.1f}"
    if used > machine.memory:
        return ["does not fit", "", gigabytes]
    return [
        f"{images_per_second(job, machine, gpus):,.0f}",
        duration(epoch_minutes(dataset, job, machine, gpus)),
        gigabytes,
    ]


def _left(found: Plan, gpus: int) -> str:
    """The remaining bottleneck, with its share of the step."""
    if found.left not in ("network", "head"):
        return found.left
    seconds = step(found.job, found.machine, gpus)
    part = seconds.head if found.left == "head" else seconds.exposed + seconds.gather
    return f"{found.left} {part / seconds.total:.0%}"


def memory_rows(job: Job, machine: Machine, gpus: int) -> list[list[str]]:
    """GB by part for each data set: with plain logits and a copy of the head on each GPU, with facelit's heads, and sharded."""
    rows = []
    for dataset in DATASETS:
        for name, options in {
            "plain": {"chunked": False},
            "in groups": {},
            "sharded": {"sharded": True},
        }.items():
            own = Job(**{**vars(job), "identities": dataset.identities, **options})
            used = memory(own, machine, gpus)
            rows.append([dataset.name, name, *(f"{size / 1e9:.2f}" for size in (*asdict(used).values(), used.total))])
    return rows


def time_rows(job: Job, machine: Machine, gpus: int) -> list[list[str]]:
    """The milliseconds of a step by part, for each data set, with a copy of the head on each GPU and sharded."""
    rows = []
    for dataset in DATASETS:
        for name, sharded in {"as it is": False, "sharded": True}.items():
            own = Job(**{**vars(job), "identities": dataset.identities, "sharded": sharded})
            seconds = step(own, machine, gpus)
            cells = [f"{1e3 * part:.1f}" for part in (*asdict(seconds).values(), seconds.total)]
            rows.append([dataset.name, name, f"{head_rows(own, gpus):,.0f}", *cells])
    return rows


MEMORY_COLUMNS = ["data set", "head", *Memory.__dataclass_fields__, "total"]
TIME_COLUMNS = [
    "data set", "head", "identities a GPU", "backbone", "head", "optimizer", "gather", "all-reduce", "not hidden", "loader", "step",
]  # fmt: skip


def tables(job: Job, machines: Sequence[str]) -> dict[str, str]:
    """All tables in Markdown, by the name of their marker in the page."""
    made = {}
    for name in machines:
        machine = MACHINES[name]
        made[f"inputs {name}"] = markdown(["figure", "value", "", "measure it with"], input_rows(machine))
        made[f"scaling {name}"] = markdown(COLUMNS, scaling_rows(job, machine))
    made["memory"] = markdown(MEMORY_COLUMNS, memory_rows(job, MACHINES["h200"], 8))
    made["time"] = markdown(TIME_COLUMNS, time_rows(job, MACHINES["h200"], 8))
    counted = [
        [b.name, f"{b.flops / 1e9:.2f}", f"{b.params / 1e6:.1f}", *(f"{size / 1e6:.1f}" for size in b.saved)]
        for b in BACKBONES.values()
    ]
    columns = ["backbone", "GFLOP forward", "million parameters", "MB saved an image, bf16", "float32"]
    made["backbones"] = markdown(columns, counted)
    return made


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The table as text."""
    with redirect_stdout(io.StringIO()) as text:
        print_table(columns, rows)
    return text.getvalue()


def update(page: str, made: dict[str, str]) -> str:
    """The page with each marked table replaced.

    Raises:
        ValueError: The page has no marker for a table.
    """
    for name, table in made.items():
        mark = re.escape(_MARK.format(name=name))
        page, found = re.subn(rf"({mark}\n)(?:\|.*\n)*", lambda match, table=table: match[1] + table, page)  # type: ignore[misc]  # a default binds it
        if not found:
            raise ValueError(f"the page has no line {_MARK.format(name=name)}")
    return page


def draw(path: Path, job: Job, machine: Machine) -> None:
    """Draws minutes per epoch over the number of GPUs, with and without the options, on logarithmic axes."""
    from matplotlib.figure import Figure  # only here: the tables need no picture

    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.add_subplot(xscale="log", yscale="log", xlabel="GPUs", ylabel="minutes an epoch", title=machine.name)
    for number, dataset in enumerate(DATASETS):
        own = Job(**{**vars(job), "identities": dataset.identities})
        plans = [plan(own, machine, gpus) for gpus in GPUS]
        after = [epoch_minutes(dataset, p.job, p.machine, gpus) for p, gpus in zip(plans, GPUS, strict=True)]
        fits = [gpus for gpus in GPUS if memory(own, machine, gpus).total <= machine.memory]
        axes.plot(GPUS, after, f"C{number}o-", label=dataset.name)
        axes.plot(fits, [epoch_minutes(dataset, own, machine, gpus) for gpus in fits], f"C{number}:")
    axes.set_xticks(GPUS, [str(gpus) for gpus in GPUS], minor=False)
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(title="solid: options turned on; dotted: without", fontsize="small")
    figure.savefig(path, dpi=120)


def _check(arguments: argparse.Namespace) -> None:
    from scaling_check import Setting, check  # only here: torch takes seconds to import

    width, batch = (1.0, 256) if arguments.device == "cuda" else (0.125, 32)
    few, many = arguments.identities
    width, batch = arguments.width or width, arguments.check_batch or batch
    check(Setting(arguments.device, width, batch, (few, many), arguments.repeats), arguments.json)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--machine", nargs="+", choices=list(MACHINES), default=list(MACHINES))
    parser.add_argument("--head", choices=get_args(Head), default="center")
    parser.add_argument("--backbone", choices=list(BACKBONES), default="vgg16")
    parser.add_argument("--batch", type=int, default=256, help="images per GPU and step")
    parser.add_argument("--update", type=Path, metavar="PAGE", help="write the tables into this page, in place")
    parser.add_argument("--out", type=Path, help="draw epoch minutes over GPUs for the first machine into this PNG")
    parser.add_argument("--check", action="store_true", help="predict and measure this machine's steps and memory")
    checking = parser.add_argument_group("for --check")
    checking.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    checking.add_argument("--width", type=float, help="of VGG16; 0.125 on a CPU, 1 on a GPU")
    checking.add_argument("--check-batch", type=int, help="images per process and step; 32 on a CPU, 256 on a GPU")
    checking.add_argument("--identities", type=int, nargs=2, default=[8_631, 85_742], metavar=("FEW", "MANY"))
    checking.add_argument("--repeats", type=int, default=7, help="steps of each setting")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    if arguments.check:
        if arguments.repeats < 2:
            parser.error("a spread needs at least 2 repeats")
        _check(arguments)
        return
    job = Job(BACKBONES[arguments.backbone], arguments.head, 0, batch=arguments.batch)
    made = tables(job, arguments.machine)
    if arguments.update:
        arguments.update.write_text(update(arguments.update.read_text(), made))
    else:
        for name, table in made.items():
            print(f"{name}\n\n{table}")
    if arguments.out:
        draw(arguments.out, job, MACHINES[arguments.machine[0]])
    write_json(arguments.json, made)


if __name__ == "__main__":
    main()
