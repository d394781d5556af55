"""The cost of mining triplets by batch size: time and memory of loss and gradient, given the embeddings.

Batches hold four crops of each identity. The baselines, whose losses are checked to be equal, are

- loop: for each genuine pair a Python loop over all negatives (plain numbers, not tensors), a literal reading of the rules;
- cube: one batch x batch x batch tensor of all triplets, masked (for semihard and all; skipped if larger than `--limit-gb`).

    python benchmarks/triplet_mining.py [--batches 64 128 256 512 1024] [--device cuda] [--json FILE]
"""

from __future__ import annotations

import argparse
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from facelit.heads import TripletHead
from harness.process_memory import peak_resident_bytes, release_free_memory, resident_bytes
from harness.reporting import Timing, machine, print_header, print_table, time_in_turns, write_json

Rule = Literal["semihard", "hard", "all"]
RULES: tuple[Rule, ...] = ("semihard", "hard", "all")
FACELIT, LOOP, CUBE = "facelit", "loop", "cube"
MARGIN, DIM, IMAGES = 0.2, 512, 4
CUBE_TENSORS = 5
"""The approximate number of tensors, one float per triplet, that the cube holds at once."""

Loss = Callable[[Tensor, Tensor], Tensor]


def facelit_loss(rule: Rule) -> Loss:
    """The head's own loss."""
    head = TripletHead(MARGIN, rule)
    return lambda embeddings, labels: head(embeddings, labels).loss


def squared_distances(embeddings: Tensor) -> Tensor:
    """Squared distances between unit vectors, (B, B)."""
    directions = F.normalize(embeddings, dim=1)
    return 2 - 2 * directions @ directions.T


def loop_loss(rule: Rule, embeddings: Tensor, labels: Tensor) -> Tensor:
    """The mean violation of the triplets that a literal loop lists."""
    distances = squared_distances(embeddings)
    triplets = list_triplets(rule, distances.tolist(), labels.tolist())
    if not triplets:
        return 0 * embeddings.sum()
    a, p, n = torch.tensor(triplets, device=embeddings.device).T
    return (distances[a, p] - distances[a, n] + MARGIN).mean()


def list_triplets(rule: Rule, distances: list[list[float]], labels: list[int]) -> list[tuple[int, int, int]]:
    """Anchor, positive and negative of every active triplet."""
    found = []
    everyone = range(len(labels))
    for a, row in enumerate(distances):
        negatives = [n for n in everyone if labels[n] != labels[a]]
        positives = [p for p in everyone if labels[p] == labels[a] and p != a]
        if rule == "hard" and positives and negatives:
            positives, negatives = [max(positives, key=row.__getitem__)], [min(negatives, key=row.__getitem__)]
        for p in positives:
            active = [n for n in negatives if row[n] < row[p] + MARGIN and (rule != "semihard" or row[n] > row[p])]
            if rule == "semihard" and active:
                active = [min(active, key=row.__getitem__)]
            found += [(a, p, n) for n in active]
    return found


def cube_loss(rule: Rule, embeddings: Tensor, labels: Tensor) -> Tensor:
    """The same with a mask over all batch^3 triplets."""
    distances = squared_distances(embeddings)
    same = labels[:, None] == labels[None]
    genuine = same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    violations = distances[:, :, None] - distances[:, None, :] + MARGIN  # (anchor, positive, negative)
    active = genuine[:, :, None] & ~same[:, None, :] & (violations > 0)
    if rule == "semihard":
        active &= violations < MARGIN
        hardest = violations.masked_fill(~active, 0).amax(dim=2)
        return hardest.sum() / active.any(dim=2).sum().clamp(min=1)
    return violations.masked_fill(~active, 0).sum() / active.sum().clamp(min=1)


def make_losses(rule: Rule, batch: int, loop_limit: int, limit_gb: float) -> dict[str, Loss]:
    """The methods that can handle this batch."""
    losses = {FACELIT: facelit_loss(rule)}
    if batch <= loop_limit:
        losses[LOOP] = functools.partial(loop_loss, rule)
    if rule != "hard" and 4 * CUBE_TENSORS * batch**3 / 1e9 <= limit_gb:
        losses[CUBE] = functools.partial(cube_loss, rule)
    return losses


def make_batch(batch: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Embeddings clustered by identity, as from a network that has begun to learn."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(batch) // IMAGES
    middles = torch.randn(batch // IMAGES + 1, DIM, generator=generator)
    embeddings = 0.3 * middles[labels] + torch.randn(batch, DIM, generator=generator)
    return embeddings.to(device).requires_grad_(), labels.to(device)


def run(loss: Loss, embeddings: Tensor, labels: Tensor) -> float:
    """Loss and gradient; waits for the device."""
    embeddings.grad = None
    value = loss(embeddings, labels)
    torch.autograd.backward(value)
    return float(value.detach())


def peak_bytes(loss: Loss, embeddings: Tensor, labels: Tensor) -> int:
    """Peak memory; on a CPU in a forked process, which has its own peak."""
    if embeddings.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run(loss, embeddings, labels)
        return torch.cuda.max_memory_allocated() - before
    reader, writer = os.pipe()
    release_free_memory()  # before the fork: a process's peak starts with the memory it inherits
    if os.fork() == 0:
        small = embeddings.detach()[: 2 * IMAGES].requires_grad_()
        run(loss, small, labels[: 2 * IMAGES])  # memory that a first call loads does not count
        before = resident_bytes()
        run(loss, embeddings, labels)
        os.write(writer, str(peak_resident_bytes() - before).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        return max(0, int(pipe.read()))


def measure(losses: dict[str, Loss], batch: int, device: torch.device, repeats: int) -> dict[str, tuple[Timing, int]]:
    """Time and memory of each method; stops if their losses differ."""
    embeddings, labels = make_batch(batch, device)
    peaks = {name: peak_bytes(loss, embeddings, labels) for name, loss in losses.items()}
    values = {name: run(loss, embeddings, labels) for name, loss in losses.items()}
    for name, value in values.items():
        if abs(value - values[FACELIT]) > 1e-4:
            raise SystemExit(f"batch {batch}: {name} returns {value}, but facelit {values[FACELIT]}: not comparable")
    calls = {name: functools.partial(run, loss, embeddings, labels) for name, loss in losses.items()}
    timings = time_in_turns(calls, dict.fromkeys(calls, repeats))
    return {name: (timings[name], peaks[name]) for name in losses}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", help="by default 64 to 1024, on a GPU to 2048")
    parser.add_argument("--loop-limit", type=int, default=256, help="largest batch of the Python loop")
    parser.add_argument("--limit-gb", type=float, default=4, help="largest cube")
    parser.add_argument("--repeats", type=int, default=9, help="steps of each method")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads for torch")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    if arguments.repeats < 2:
        parser.error("a spread needs at least 2 repeats")
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    batches = arguments.batches or [64, 128, 256, 512, 1024, *([2048] if device.type == "cuda" else [])]
    facts = machine(["torch"]) | {"threads": str(arguments.threads), "device": device.type}
    print_header(f"Triplet mining, loss and gradient, {IMAGES} crops of each identity, D {DIM}, float32", facts)
    rows, figures = [], []
    for rule in RULES:
        for batch in batches:
            losses = make_losses(rule, batch, arguments.loop_limit, arguments.limit_gb)
            found = measure(losses, batch, device, arguments.repeats)
            rows.append([rule, str(batch), *(_cell(found, name) for name in (FACELIT, LOOP, CUBE))])
            figures += [
                {"rule": rule, "batch": batch, "method": name, "peak_bytes": peak} | timing._asdict()
                for name, (timing, peak) in found.items()
            ]
    print_table(["rule", "batch", FACELIT, f"{LOOP} (time / facelit's)", f"{CUBE} (time / facelit's)"], rows)
    write_json(arguments.json, {"machine": facts, "figures": figures})


def _cell(found: dict[str, tuple[Timing, int]], name: str) -> str:
    if name not in found:
        return "skipped"
    timing, peak = found[name]
    ratio = "" if name == FACELIT else f" ({timing.median / found[FACELIT][0].median:.1f} x)"
    return f"{timing.milliseconds()}{ratio}, {peak / 2**20:.1f} MB"


if __name__ == "__main__":
    main()
