"""The cost of one step of center loss on the CPU, by the number of identities.

A step is forward and backward of CenterLoss and a step of CenterSGD (without the softmax, whose cost is inherently
linear in the identities). The dense baseline does the same with a batch x identities distance matrix and an update of
every center.

    python benchmarks/center_step.py [--threads N] [--json FILE]
"""

import argparse
import json
import platform
import statistics
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import torch
import torch.nn.functional as F
from torch import Tensor

from facelit.heads import CenterLoss
from facelit.optim import CenterSGD
from harness.process_memory import available_bytes

IDENTITIES = (8_631, 85_742, 1_000_000)  # VGGFace2, MS1MV2, a million
BATCH, DIM, ALPHA = 256, 512, 0.5
FEW = 3  # dense steps at the largest size, which take many seconds
DENSE_LIMIT = 0.75  # of the available memory

Step = Callable[[Tensor, Tensor], None]


def sparse_step(identities: int) -> Step:
    loss = CenterLoss(identities, DIM)
    optimizer = CenterSGD([loss.centers], alpha=ALPHA)

    def step(x: Tensor, labels: Tensor) -> None:
        torch.autograd.backward(loss(x, labels))
        optimizer.step()

    return step


def dense_step(identities: int) -> Step:
    centers = torch.empty(identities, DIM).uniform_(-0.1, 0.1)

    def step(x: Tensor, labels: Tensor) -> None:
        mask = F.one_hot(labels, identities).float()  # (batch, identities)
        squared = x.square().sum(dim=1, keepdim=True) + centers.square().sum(dim=1) - 2 * x @ centers.T
        torch.autograd.backward((mask * squared).sum() / 2 / BATCH)
        counts = mask.sum(dim=0).unsqueeze(1)
        delta = (counts * centers - mask.T @ x.detach()) / (1 + counts)
        centers.sub_(delta, alpha=ALPHA)

    return step


def dense_gigabytes(identities: int) -> float:
    """Centers with two temporaries of their size, and five batch x identities matrices (one int64)."""
    return 4 * identities * (3 * DIM + 6 * BATCH) / 1e9


def time_step(step: Step, identities: int) -> float:
    """Seconds of one step on a fresh random batch."""
    x = torch.randn(BATCH, DIM, requires_grad=True)
    labels = torch.randint(0, identities, (BATCH,))
    start = perf_counter()
    step(x, labels)
    return perf_counter() - start


def measure(make: Callable[[int], Step], repeats: int) -> dict[int, list[float]]:
    """Seconds of each step by number of identities, alternating between the sizes so that all see the same machine."""
    limit = DENSE_LIMIT * available_bytes() / 1e9
    sizes = [c for c in IDENTITIES if make is sparse_step or dense_gigabytes(c) <= limit]
    steps = {identities: make(identities) for identities in sizes}
    for identities, step in steps.items():
        for _ in range(1 if make is dense_step else 3):
            time_step(step, identities)
    seconds: dict[int, list[float]] = {identities: [] for identities in sizes}
    for turn in range(repeats):
        for identities, step in steps.items():
            if make is sparse_step or turn < FEW or identities != IDENTITIES[-1]:
                seconds[identities].append(time_step(step, identities))
    return seconds


def report(name: str, seconds: dict[int, list[float]], baseline: float) -> dict[int, dict[str, float]]:
    """Prints a line for each number of identities: median, quartiles, and the ratio to the baseline."""
    figures = {}
    for identities, times in seconds.items():
        low, median, high = (1e3 * q for q in statistics.quantiles(times, n=4))
        ratio = median / (1e3 * baseline)
        figures[identities] = {"median_ms": median, "q1_ms": low, "q3_ms": high, "ratio": ratio}
        print(
            f"{name:>7} {identities:>10,} identities {median:9.2f} ms (quartiles {low:.2f} to {high:.2f}) "
            f"{ratio:8.2f} x {name} at {IDENTITIES[0]:,}"
        )
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=300, help="steps for each size; a 30th for dense")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads for torch")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    print(
        f"Python {platform.python_version()}, torch {torch.__version__}, "
        f"{arguments.threads} CPU thread(s); batch {BATCH}, embeddings of {DIM}, float32"
    )
    sparse = measure(sparse_step, arguments.repeats)
    dense = measure(dense_step, max(2, arguments.repeats // 30))
    figures = {
        "facelit": report("facelit", sparse, statistics.median(sparse[IDENTITIES[0]])),
        "dense": report("dense", dense, statistics.median(dense[IDENTITIES[0]])),
    }
    for identities in IDENTITIES:
        if identities in dense:
            ratio = figures["dense"][identities]["median_ms"] / figures["facelit"][identities]["median_ms"]
            print(f"dense / facelit at {identities:,} identities: {ratio:.0f} x")
        else:
            gigabytes = dense_gigabytes(identities)
            print(f"dense at {identities:,} identities: skipped, needs about {gigabytes:.0f} GB")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
