"""What breaks first on so many GPUs, and which options help, by the cost model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from cost_model.model import Job, Machine, images_per_second, memory, step

NETWORK_SHARE = 0.2
"""Share of a step above which waiting for the network is called a break."""
SAMPLE_RATE = 0.1
"""The rate of negatives that is tried where the head takes longer than the backbone."""
WORTH_IT = 1.05
"""An option against waiting is turned on where it makes training faster by this factor."""


@dataclass(frozen=True)
class Change:
    """An option, and the job and machine with it turned on."""

    option: str
    job: Job
    machine: Machine


@dataclass(frozen=True)
class Plan:
    """What becomes of a job.

    Attributes:
        job: With the options that were turned on.
        machine: Likewise: loader processes, and who decodes.
        first: What broke first, empty where nothing did.
        options: What was turned on, in order.
        left: What is still in the way, where no option helps.
    """

    job: Job
    machine: Machine
    first: str
    options: tuple[str, ...]
    left: str


def breaks(job: Job, machine: Machine, gpus: int) -> str:
    """What is wrong first: a part that does not fit; a loader, a network or a head that the rest waits for; empty if nothing."""
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
    """The options against what is broken that are not on yet."""
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
    """Turns on the option that helps most, one after the other, until nothing is wrong or nothing helps.

    An option against a lack of memory or a slow loader is turned on in any case.
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
        if best.option.endswith("workers"):  # the last number of them is the one that counts
            options = [option for option in options if not option.endswith("workers")]
        options.append(best.option)
        broken = breaks(job, machine, gpus)
    return Plan(job, machine, first, tuple(options), broken)
