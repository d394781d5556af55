"""What it costs that a run can be stopped at any moment: checksums, whole files, and processes that ask each other.

Ratios in one run, timed in turns: a checkpoint read with and without comparing its checksums, and written with and without computing
them; written in one move against `torch.save` in place; and a training step of two processes with the question whether to stop,
asked at every step and as seldom as a run asks it, against the bare step and Lightning's own broadcast.

    python benchmarks/long_runs.py [--megabytes 200] [--repeats 11] [--steps 200] [--json FILE]
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from time import perf_counter
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch.nn.parallel import DistributedDataParallel

from facelit.backbones import VGG16
from facelit.callbacks import StopSignals
from facelit.callbacks.checkpoint_files import WholeFiles
from facelit.checkpoints import SKIP_CHECKSUMS, read_checkpoint
from harness.reporting import Timing, machine, print_header, print_table, summarise, time_in_turns, write_json

LOG_EVERY_N_STEPS = 50
READ, READ_UNCHECKED = "read_checkpoint", "the same, checksums left out"
SAVE, SAVE_UNCHECKED = "torch.save", "the same, checksums left out"
SYNCED, MOVED, LIGHTNING = (
    "torch.save, to the disk",
    "facelit: to the disk, in one move",
    "Lightning: copied into place",
)
BARE, SELDOM, ALWAYS, BROADCAST = (
    "a bare step",
    "facelit's question",
    "the question at every step",
    "Lightning's broadcast",
)


def checkpoint_of(megabytes: int) -> dict[str, Any]:
    """Weights and a momentum, each half of it, in tensors of 4 MB."""
    count = max(1, megabytes // 8)
    tensors = {kind: {str(n): torch.randn(1_000_000) for n in range(count)} for kind in ("weights", "momentum")}
    return {"state_dict": tensors["weights"], "optimizer_states": [tensors["momentum"]], "global_step": 1}


@contextmanager
def unchecked() -> Iterator[None]:
    """No checksums, neither read nor written."""
    os.environ[SKIP_CHECKSUMS] = "1"
    torch.serialization.set_crc32_options(False)
    try:
        yield
    finally:
        del os.environ[SKIP_CHECKSUMS]
        torch.serialization.set_crc32_options(True)


def without_checksums(call: Callable[[], object]) -> None:
    """Calls it."""
    with unchecked():
        call()


def to_disk(checkpoint: dict[str, Any], path: Path) -> None:
    """As torch.save, and waits for the disk."""
    with path.open("wb") as file:
        torch.save(checkpoint, file)
        file.flush()
        os.fsync(file.fileno())


def measure_files(megabytes: int, repeats: int) -> tuple[dict[str, Timing], dict[str, Timing]]:
    """Seconds of reading and of writing, by what is timed."""
    checkpoint = checkpoint_of(megabytes)
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        path = Path(folder, "last.ckpt")
        torch.save(checkpoint, path)
        read = partial(read_checkpoint, str(path))
        calls: dict[str, Callable[[], object]] = {READ: read, READ_UNCHECKED: partial(without_checksums, read)}
        reading = time_in_turns(calls, dict.fromkeys(calls, repeats))
        save = partial(torch.save, checkpoint, path)
        calls = {
            SAVE: save,
            SAVE_UNCHECKED: partial(without_checksums, save),
            SYNCED: partial(to_disk, checkpoint, path),
            MOVED: partial(WholeFiles().save_checkpoint, checkpoint, path),
            LIGHTNING: partial(TorchCheckpointIO().save_checkpoint, checkpoint, path),
        }
        return reading, time_in_turns(calls, dict.fromkeys(calls, repeats))


def work(arguments: argparse.Namespace) -> None:
    """One of two processes: steps of each kind in turns; the first prints their seconds."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{arguments.port}", rank=arguments.rank, world_size=2)
    model = DistributedDataParallel(VGG16(64, batch_norm=True, width=0.125))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    images = torch.randn(8, 3, 112, 112)

    def step() -> None:
        optimizer.zero_grad()
        model(images).square().mean().backward()
        optimizer.step()

    trainer: Any = SimpleNamespace(
        strategy=SimpleNamespace(root_device=torch.device("cpu")), log_every_n_steps=LOG_EVERY_N_STEPS
    )
    asks_always: Any = SimpleNamespace(strategy=trainer.strategy, log_every_n_steps=1)
    seldom, always = StopSignals(), StopSignals()

    def broadcast() -> bool:
        flag = torch.tensor(0)
        dist.broadcast(flag, 0)
        return bool(flag.item())

    before: dict[str, Callable[[], object]] = {
        BARE: lambda: None,
        SELDOM: lambda: seldom._agree(trainer),
        ALWAYS: lambda: always._agree(asks_always),
        BROADCAST: broadcast,
    }
    seconds: dict[str, list[float]] = {name: [] for name in before}
    for number in range(arguments.steps + 3):
        for name, ask in before.items():
            start = perf_counter()
            ask()
            step()
            if number >= 3:
                seconds[name].append(perf_counter() - start)
    if arguments.rank == 0:
        print(*(value for times in seconds.values() for value in times))
    dist.barrier()
    dist.destroy_process_group()


def measure_steps(steps: int) -> dict[str, Timing]:
    """Seconds of a step of two processes, by what comes before it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = [sys.executable, __file__, "--steps", str(steps), "--port", str(port), "--rank"]
    processes = [subprocess.Popen([*common, str(rank)], stdout=subprocess.PIPE, text=True) for rank in range(2)]
    outputs = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise SystemExit("a process failed")
    numbers = [float(word) for word in outputs[0].split()]
    return {
        name: summarise(numbers[n * steps : (n + 1) * steps])
        for n, name in enumerate((BARE, SELDOM, ALWAYS, BROADCAST))
    }


def rows(figures: dict[str, Timing], baseline: str) -> list[list[str]]:
    """Medians, and ratios to the baseline's."""
    return [
        [name, timing.milliseconds(), f"{timing.median / figures[baseline].median:.3f} x"]
        for name, timing in figures.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=200, help="size of the checkpoint")
    parser.add_argument("--repeats", type=int, default=11, help="of each reading and writing")
    parser.add_argument("--steps", type=int, default=200, help="of each kind")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rank is not None:
        work(arguments)
        return
    if arguments.repeats < 2 or arguments.steps < 2:
        parser.error("a spread needs at least 2 repeats and steps")
    facts = machine(["torch", "pytorch-lightning"])
    print_header(f"What a long run costs, a checkpoint of {arguments.megabytes} MB, two processes", facts)
    reading, writing = measure_files(arguments.megabytes, arguments.repeats)
    asking = measure_steps(arguments.steps)
    for title, figures, baseline in (
        ("reading", reading, READ_UNCHECKED),
        ("writing", writing, SAVE),
        ("a step", asking, BARE),
    ):
        print_table([title, "median (quartiles)", f"against {baseline}"], rows(figures, baseline))
        print()
    tables = {"reading": reading, "writing": writing, "step": asking}
    named = {title: {name: t._asdict() for name, t in figures.items()} for title, figures in tables.items()}
    write_json(arguments.json, {"machine": facts, **named})


if __name__ == "__main__":
    main()
