"""Finds what breaks first on a number of GPUs, and which options help, according to the cost model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from cost_model.model import Job, Machine, images_per_second, memory, step

NETWORK_SHARE = 0.2
"""The share of a step above which waiting for the network counts as a break."""
SAMPLE_RATE = 0.1
"""The sample rate to try if the head takes longer than the backbone."""
WORTH_IT = 1.05
"""An option against waiting is turned on if it makes training faster by this factor."""


@dataclass(frozen=True)
class Change:
    """An option, and the job and machine with it turned on."""

    option: str
    job: Job
    machine: Machine


@dataclass(frozen=True)
class Plan:
    """A job's bottlenecks and options.

    Attributes:
        job: The job with the options turned on.
        machine: The machine with them: loader processes, and who decodes.
        first: What broke first; empty if nothing did.
        options: The options turned on, in order.
        left: The remaining bottleneck, if no option helps.
    """

    job: Job
    machine: Machine
    first: str
    options: tuple[str, ...]
    left: str


def breaks(job: Job, machine: Machine, gpus: int) -> str:
    """The first problem: a part that does not fit, or a loader, network or head that the rest waits for; empty if none."""
    used = memory(job, machine, gpus)
    if used.total > machine.memory:
        parts = {"head": used.head + used.centers, "logits": used.logits, "activations": used.activations}
        return f"memory: {max(parts, key=lambda part: parts[part])}"
    seconds = step(job, machine, gpus)
    if seconds.loader > seconds.gpu:
        return "loader"
    if seconds.exposed + seconds.gather > NETWORK_SHARE * seconds.total:
        return "network"
    return "head" if seconds.head > seconds.backbone else ""


def changes(broken: str, job: Job, machine: Machine, gpus: int) -> Iterator[Change]:
    """The options against a problem that are not on yet."""
    identities = job.head != "triplet"
    if broken == "memory: logits" and not job.chunked:
        yield Change("chunked softmax", replace(job, chunked=True), machine)
    if broken == "memory: activations" and not job.checkpointing:
        yield Change("checkpointing", replace(job, checkpointing=True), machine)
    if broken == "loader" and machine.workers < machine.max_workers:
        workers = min(2 * machine.workers, machine.max_workers)
        yield Change(f"{workers} workers", job, replace(machine, workers=workers))
    elif broken == "loader" and not machine.decodes:
        yield Change("GPU decoding", job, replace(machine, decodes=True))
    if broken in ("memory: head", "network") and identities and gpus > 1 and not job.sharded:
        yield Change("sharded", replace(job, sharded=True), machine)
    if broken == "network" and not job.compressed:
        yield Change("16-bit gradients", replace(job, compressed=True), machine)
    if broken == "head" and identities and job.sample_rate == 1:
        sampled = replace(job, sharded=True, sample_rate=SAMPLE_RATE)
        yield Change(f"{'' if job.sharded else 'sharded, '}sample_rate {SAMPLE_RATE}", sampled, machine)


def plan(job: Job, machine: Machine, gpus: int) -> Plan:
    """Turns on the most helpful option, again and again, until nothing is wrong or nothing helps.

    Options against a lack of memory or a slow loader are always turned on.
    """
    first = broken = breaks(job, machine, gpus)
    options: list[str] = []
    while broken:
        found = list(changes(broken, job, machine, gpus))
        if not found:
            break
        best = max(found, key=lambda change: images_per_second(change.job, change.machine, gpus))
        gain = images_per_second(best.job, best.machine, gpus) / images_per_second(job, machine, gpus)
        if gain < WORTH_IT and broken in ("network", "head"):
            break
        job, machine = best.job, best.machine
        if best.option.endswith("workers"):  # only the last number of them counts
            options = [option for option in options if not option.endswith("workers")]
        options.append(best.option)
        broken = breaks(job, machine, gpus)
    return Plan(job, machine, first, tuple(options), broken)
