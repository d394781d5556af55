"""What a CPU's cores are worth to `fit`: one process with a thread for each core, or a process for each core under DDP.

The real command line trains VGG16-BN under softmax + center loss on random crops in memory, with the same number of images a step; the
ways take turns. A process for each core takes its share of the batch, in one thread.

    python benchmarks/cores.py [--cores 2] [--width 0.25] [--precision bf16] [--batch 64] [--json FILE]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import yaml

from facelit.errors import FacelitError
from harness.reporting import Timing, machine, print_header, print_table, summarise, write_json
from harness.run_config import run_config
from harness.step_recorder import read_steps
from harness.training_setup import DTYPES, Setting

IDENTITIES = 4_843
WARMUP = 10
_HERE = Path(__file__).resolve().parent


def seconds_per_step(arguments: argparse.Namespace, processes: int, threads: int) -> float:
    """Runs `fit` once.

    Raises:
        FacelitError: It failed.
    """
    setting = Setting(
        "vgg16_bn", "center", IDENTITIES, arguments.batch // processes, arguments.width, arguments.precision, "cpu"
    )
    steps = WARMUP + arguments.steps
    crops = {"batch": arguments.batch, "num_identities": IDENTITIES, "batches": steps}
    train = {"class_path": "harness.training_setup.MemoryCrops", "init_args": crops}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "steps.npz"
        recorder = {"path": str(path), "first": WARMUP, "last": steps, "memory": False}
        config = run_config(setting, Path(folder), train, steps, recorder)
        config["trainer"] |= {"devices": processes, "strategy": "auto" if processes == 1 else "ddp"}
        (Path(folder) / "cores.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        run = subprocess.run(
            [sys.executable, _HERE.parent / "main.py", "fit", "--config", Path(folder) / "cores.yaml"],
            env=os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(_HERE)},
            capture_output=True,
            text=True,
            check=False,
        )
        if run.returncode:
            raise FacelitError(f"fit ended with status {run.returncode}:\n{run.stderr[-2000:]}")
        recorded = read_steps(path)
    return recorded.window / recorded.counted


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--width", type=float, default=0.25, help="of VGG16's channels")
    parser.add_argument("--precision", choices=list(DTYPES), default="32")
    parser.add_argument("--batch", type=int, default=64, help="images a step, of all processes together")
    parser.add_argument("--steps", type=int, default=40, help="timed steps of a run")
    parser.add_argument("--turns", type=int, default=3, help="runs of each")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args(argv)
    if arguments.turns < 2 or arguments.cores < 2 or arguments.batch % arguments.cores:
        parser.error("it takes at least 2 cores and 2 turns, and a batch that the processes can divide")
    facts = machine(["torch", "pytorch-lightning"]) | {"precision": arguments.precision}
    print_header(f"`fit`, VGG16-BN at {arguments.width:g} of its width, {arguments.batch} images a step", facts)
    ways = {
        "1 process, 1 thread": (1, 1),
        f"1 process, {arguments.cores} threads": (1, arguments.cores),
        f"{arguments.cores} processes, 1 thread each": (arguments.cores, 1),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(arguments.turns):
        for name, (processes, threads) in ways.items():
            seconds[name].append(seconds_per_step(arguments, processes, threads))
    found: dict[str, Timing] = {name: summarise(values) for name, values in seconds.items()}
    first = found["1 process, 1 thread"].median
    print_table(
        ["way", "images/s", "a step", "against one thread"],
        [
            [name, f"{arguments.batch / each.median:,.0f}", each.milliseconds(), f"{first / each.median:.2f} x"]
            for name, each in found.items()
        ],
    )
    figures = [{"way": name} | each._asdict() for name, each in found.items()]
    write_json(arguments.json, {"machine": facts, "width": arguments.width, "figures": figures})


if __name__ == "__main__":
    main()
