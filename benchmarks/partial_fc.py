"""Memory and time of one step of a softmax over very many identities: plain, in groups, and sharded.

The plain head is `nn.Linear` and `F.cross_entropy` under autograd. facelit's holds 128 MB of logits at a time; sharded over two
processes (gloo), each holds half of the identities; with a sample rate, a batch is compared with only some of them. A step is
forward, backward and SGD with momentum, on the same batch of embeddings. Each configuration runs in its own processes.

    python benchmarks/partial_fc.py [--identities 1000000] [--batch 128] [--json FILE]
"""

from __future__ import annotations

import argparse
import socket
import statistics
import subprocess
import sys
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from facelit.distributed import world_size
from facelit.heads import ArcFaceHead, SoftmaxHead
from harness.process_memory import peak_resident_bytes
from harness.reporting import machine, print_header, print_table, write_json

DIM = 512


class PlainHead(nn.Module):
    """A linear layer and cross entropy, the usual first implementation."""

    def __init__(self, identities: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(DIM, identities)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """The loss of (N, D) embeddings with (N,) labels, scalar."""
        return F.cross_entropy(self.classifier(embeddings), labels)


class Case(NamedTuple):
    """One row of the table."""

    head: str
    processes: int
    sample_rate: float


CASES = {
    "plain softmax": Case("plain", 1, 1.0),
    "SoftmaxHead": Case("softmax", 1, 1.0),
    "SoftmaxHead, sharded over 2": Case("softmax", 2, 1.0),
    "ArcFaceHead, sharded over 2": Case("arcface", 2, 1.0),
    "ArcFaceHead, sharded over 2, sample_rate 0.1": Case("arcface", 2, 0.1),
}


def run_case(case: Case, identities: int, batch: int, steps: int) -> tuple[float, int, int]:
    """Seconds per step, peak bytes, and bytes before the head was created."""
    before = peak_resident_bytes()
    torch.manual_seed(0)
    head: nn.Module
    if case.head == "plain":
        head = PlainHead(identities)
    else:
        cls = SoftmaxHead if case.head == "softmax" else ArcFaceHead
        own = cls(identities, DIM, sharded=case.processes > 1, sample_rate=case.sample_rate)
        own.shard()
        head = own
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1, momentum=0.9)
    embeddings = torch.randn(batch // world_size(), DIM, requires_grad=True)
    labels = torch.randint(identities, (batch // world_size(),))
    seconds = []
    for _ in range(steps):
        start = perf_counter()
        optimizer.zero_grad()
        output = head(embeddings, labels)
        torch.autograd.backward(output if isinstance(output, Tensor) else output.loss)
        optimizer.step()
        seconds.append(perf_counter() - start)
    return statistics.median(seconds[1:]), peak_resident_bytes(), before


def work(arguments: argparse.Namespace) -> None:
    """One process of one configuration."""
    case = CASES[arguments.case]
    torch.set_num_threads(max(1, arguments.threads // case.processes))
    if case.processes > 1:
        address = f"tcp://127.0.0.1:{arguments.port}"
        dist.init_process_group("gloo", init_method=address, rank=arguments.rank, world_size=case.processes)
    print(*run_case(case, arguments.identities, arguments.batch, arguments.steps))
    if case.processes > 1:
        dist.barrier()
        dist.destroy_process_group()


def measure(name: str, arguments: argparse.Namespace) -> tuple[float, int]:
    """Seconds per step, and the head's peak bytes in each process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = [sys.executable, __file__, "--case", name, "--port", str(port), "--identities", str(arguments.identities)]
    common += ["--batch", str(arguments.batch), "--steps", str(arguments.steps), "--threads", str(arguments.threads)]
    processes = [
        subprocess.Popen([*common, "--rank", str(rank)], stdout=subprocess.PIPE, text=True)
        for rank in range(CASES[name].processes)
    ]
    outputs = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise SystemExit(f"{name}: a process failed")
    figures = [output.split()[-3:] for output in outputs]
    return max(float(s) for s, _, _ in figures), max(int(peak) - int(before) for _, peak, before in figures)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--identities", type=int, default=1_000_000)
    parser.add_argument("--batch", type=int, default=128, help="embeddings, over all processes")
    parser.add_argument("--steps", type=int, default=4, help="the first does not count")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads, over all processes")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--rank", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        work(arguments)
        return
    facts = machine(["torch"]) | {"threads": str(arguments.threads), "batch": str(arguments.batch), "D": str(DIM)}
    print_header(f"A step of an identity softmax, {arguments.identities:,} identities, float32", facts)
    measured = {name: measure(name, arguments) for name in CASES}
    seconds, memory = measured["plain softmax"]
    rows = [
        [name, f"{s:.2f} s", f"{seconds / s:.2f} x", f"{peak / 1e9:.2f} GB", f"{peak / memory:.2f} x"]
        for name, (s, peak) in measured.items()
    ]
    print_table(["head", "a step", "rate to plain", "peak memory of a process", "to plain"], rows)
    figures = {name: {"seconds": s, "peak_bytes": peak} for name, (s, peak) in measured.items()}
    write_json(arguments.json, {"machine": facts, "identities": arguments.identities, "cases": figures})


if __name__ == "__main__":
    main()
