"""Checks the cost model on a machine: measures its constants, predicts steps and memory, and measures those too.

On a CPU with one and two processes (DistributedDataParallel over gloo on 127.0.0.1, one thread each); on a GPU with one.
"""

from __future__ import annotations

import functools
import json
import math
import os
import statistics
import tempfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from cost_model.count import count_backbone
from cost_model.model import FLOAT32, Head, Job, Link, Machine, Step, memory, step
from facelit.backbones import VGG16
from facelit.distributed import world_size
from facelit.heads import CenterLossHead, SoftmaxHead, TripletHead
from facelit.heads import Head as FaceHead
from harness.process_memory import peak_resident_bytes, resident_bytes
from harness.reporting import Timing, print_header, print_table, summarise, write_json
from harness.reporting import machine as machine_facts
from harness.roofline import device_facts, seconds_of

EMBEDDING_DIM = 512
WARMUPS = 2
SIDE, STREAM, ROWS = {"cpu": 1024, "cuda": 8192}, {"cpu": 2**24, "cuda": 2**27}, 16_384
SMALL, LARGE = 2**16, 2**26
"""Sizes, in bytes, of the messages for measuring latency and bandwidth."""
_NO_LINK = Link(1e30, 0)
_HEADS: dict[str, Callable[[int], FaceHead]] = {
    "softmax": lambda identities: SoftmaxHead(identities, EMBEDDING_DIM),
    "center": lambda identities: CenterLossHead(identities, EMBEDDING_DIM),
    "triplet": lambda identities: TripletHead(),
}


class Setting(NamedTuple):
    """What to check.

    Attributes:
        device: "cpu" or "cuda".
        width: The width of VGG16.
        batch: Images per process and step.
        identities: Two numbers of identities, few and many; memory is checked with many.
        repeats: The number of timings of each call.
    """

    device: str
    width: float
    batch: int
    identities: tuple[int, int]
    repeats: int

    @property
    def jobs(self) -> list[Job]:
        """The jobs whose steps are predicted and measured."""
        few, many = self.identities
        cases: list[tuple[Head, int]] = [("softmax", few), ("center", few), ("softmax", many), ("triplet", 0)]
        backbone = count_backbone(f"VGG16 of width {self.width}", VGG16(EMBEDDING_DIM, width=self.width))
        bf16 = self.device == "cuda"
        return [Job(backbone, head, count, EMBEDDING_DIM, self.batch, bf16) for head, count in cases]


class Training(nn.Module):
    """The module that DistributedDataParallel wraps: from crops and labels to a loss."""

    def __init__(self, width: float, head: str, identities: int) -> None:
        super().__init__()
        self.backbone = VGG16(EMBEDDING_DIM, width=width)
        self.head = _HEADS[head](identities)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """The loss, scalar."""
        loss: Tensor = self.head(self.backbone(images), labels).loss
        return loss


def autocast(device: torch.device) -> AbstractContextManager[object]:
    """bfloat16 on a GPU, as `fit` does there by default."""
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()


def random_crops(batch: int, device: torch.device) -> Tensor:
    """(batch, 3, 112, 112) float32, channels_last."""
    return torch.randn(batch, 3, 112, 112, device=device).contiguous(memory_format=torch.channels_last)


def make_step(job: Job, width: float, device: torch.device, wrap: bool) -> Callable[[], None]:
    """A whole training step on random crops: forward, backward, SGD with momentum, centers."""
    training = Training(width, job.head, job.identities).to(device).to(memory_format=torch.channels_last).train()
    centers = training.head.make_optimizer()
    followers = [parameter for parameter in training.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(followers, lr=1e-3, momentum=0.9, fused=True)
    wrapped: nn.Module = training
    if wrap:  # as facelit's strategy sets it up
        wrapped = nn.parallel.DistributedDataParallel(training, gradient_as_bucket_view=True)
    images = random_crops(job.batch, device)
    labels = torch.arange(job.batch, device=device) // 4

    def run() -> None:
        optimizer.zero_grad()
        with autocast(device):
            loss = wrapped(images, labels)
        torch.autograd.backward(loss)
        optimizer.step()
        if centers is not None:
            centers.step()

    return run


def constant_calls(job: Job, width: float, device: torch.device) -> dict[str, Callable[[], object]]:
    """The calls that yield the machine's constants: products, the backbone alone, a stream through memory, and gloo."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    side = SIDE[device.type]
    a, b, out = (torch.randn(side, side, device=device).to(dtype) for _ in range(3))
    backbone = VGG16(EMBEDDING_DIM, width=width).to(device).to(memory_format=torch.channels_last).train()
    images = random_crops(job.batch, device)
    x, weight = torch.randn(job.batch, EMBEDDING_DIM, device=device), torch.randn(ROWS, EMBEDDING_DIM, device=device)
    logits = x @ weight.T
    first, second = (torch.zeros(STREAM[device.type], device=device) for _ in range(2))

    def run_backbone() -> None:
        with autocast(device):
            embeddings = backbone(images)
        torch.autograd.backward(embeddings, torch.ones_like(embeddings))

    def run_products() -> tuple[Tensor, Tensor]:
        torch.mm(x, weight.T, out=logits)
        return logits @ weight, logits.T @ x

    calls: dict[str, Callable[[], object]] = {
        "matmul": lambda: torch.mm(a, b, out=out),
        "backbone": run_backbone,
        "products": run_products,
        "stream": lambda: first.add_(second),
        "fresh": lambda: torch.ones(STREAM[device.type], device=device),
    }
    if world_size() > 1:
        messages = {"small": torch.ones(SMALL // 4), "large": torch.ones(LARGE // 4)}
        calls |= {name: functools.partial(dist.all_reduce, message) for name, message in messages.items()}
    return calls


def make_machine(seconds: Mapping[str, float], job: Job, device: torch.device) -> Machine:
    """The machine's constants, from its seconds for `constant_calls`."""
    rate = 2 * SIDE[device.type] ** 3 / seconds["matmul"]
    cuda = device.type == "cuda"
    return Machine(
        name=device.type,
        matmul=rate,
        efficiency=3 * job.backbone.flops * job.batch / seconds["backbone"] / rate,
        head_matmul=6 * job.batch * ROWS * EMBEDDING_DIM / seconds["products"],
        memory=torch.cuda.get_device_properties(device).total_memory if cuda else 0,
        reserved=0,
        memory_bandwidth=3 * FLOAT32 * STREAM[device.type] / seconds["stream"],
        first_touch=math.inf if cuda else FLOAT32 * STREAM[device.type] / seconds["fresh"],
        gpus_per_node=2,
        intra=_gloo_link(seconds) if "large" in seconds else _NO_LINK,
        inter=_NO_LINK,
        # A GPU keeps computing while its network cards work; gloo runs on the same cores as the computation.
        overlap=0.8 if cuda else 0,
        crops_per_worker=float("inf"),
        workers=1,
        max_workers=1,
    )


def _gloo_link(seconds: Mapping[str, float]) -> Link:
    """A ring over two processes: bandwidth from the large message, latency from the small one."""
    bandwidth = (LARGE - SMALL) / (
        seconds["large"] - seconds["small"]
    )  # each of two sends 2 (n - 1) / n = 1 time the size
    return Link(bandwidth, max(0.0, (seconds["small"] - SMALL / bandwidth) / 2))


def _process(rank: int, world: int, setting: Setting, folder: str) -> None:
    """One of `world` processes: times constants and steps alternately, all processes at the same call."""
    device = torch.device(setting.device)
    if device.type == "cpu":
        torch.set_num_threads(1)
    if world > 1:
        if Path("/sys/class/net/lo").exists():
            os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    torch.manual_seed(0)
    calls = constant_calls(setting.jobs[0], setting.width, device)
    for number, job in enumerate(setting.jobs):
        calls[str(number)] = make_step(job, setting.width, device, wrap=world > 1)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(WARMUPS + setting.repeats):
        for name, call in calls.items():
            if world > 1:
                dist.barrier()
            taken = seconds_of(call, device)
            if turn >= WARMUPS:
                seconds[name].append(taken)
    if rank == 0:
        (Path(folder) / "found.json").write_text(json.dumps(seconds))
    if world > 1:
        dist.destroy_process_group()


def _memory_process(rank: int, setting: Setting, folder: str) -> None:
    """Peak bytes of softmax + center loss with many identities, in a process that has done nothing else."""
    device = torch.device(setting.device)
    torch.set_num_threads(1)
    cuda = device.type == "cuda"
    job = replace(setting.jobs[1], identities=setting.identities[1])
    before = torch.cuda.memory_allocated(device) if cuda else resident_bytes()
    run = make_step(job, setting.width, device, wrap=False)
    for _ in range(3):
        run()
    peak = torch.cuda.max_memory_allocated(device) if cuda else peak_resident_bytes()
    nothing = Machine(setting.device, 1, 1, 1, 0, 0, 1, 1, 1, _NO_LINK, _NO_LINK, 0, 1, 1, 1)
    found = {"predicted": memory(job, nothing, 1).total, "measured": peak - before}
    (Path(folder) / "found.json").write_text(json.dumps(found))


def _spawned(function: Callable[..., None], arguments: tuple[object, ...], processes: int) -> Any:
    """The result of the first of some fresh processes; each is called with its rank, the arguments, and a folder for the result."""
    with tempfile.TemporaryDirectory() as folder:
        spawn(function, (*arguments, folder), nprocs=processes)  # type: ignore[no-untyped-call]  # torch's own
        return json.loads((Path(folder) / "found.json").read_text())


def check(setting: Setting, path: Path | None) -> None:
    """Prints predicted and measured step times and memory, and how far apart they are."""
    device = torch.device(setting.device)
    facts = machine_facts(["torch"]) | device_facts(device)
    facts |= {"width": str(setting.width), "batch": str(setting.batch), "repeats": str(setting.repeats)}
    if device.type == "cpu":
        facts["threads"] = "1 a process"
    print_header("The cost model: predicted and measured", facts)
    rows, steps = [], []
    for world in (1, 2) if device.type == "cpu" else (1,):
        seconds: dict[str, list[float]] = _spawned(_process, (world, setting), world)
        medians = {name: statistics.median(times) for name, times in seconds.items()}
        machine = make_machine(medians, setting.jobs[0], device)
        _print_constants(world, machine)
        for number, job in enumerate(setting.jobs):
            predicted, times = step(job, machine, world), seconds[str(number)]
            rows.append([str(world), *_cells(job, predicted, summarise(times))])
            facts_of_job = {"processes": world, "head": job.head, "identities": job.identities, "measured": times}
            steps.append(facts_of_job | {"predicted": asdict(predicted) | {"total": predicted.total}})
    print_table(["processes", "head", "predicted", "of it network", "measured (quartiles)", "error"], rows)
    used: dict[str, float] = _spawned(_memory_process, (setting,), 1)
    print(
        f"\nmemory of the step with centers at {setting.identities[1]:,} identities: predicted "
        f"{used['predicted'] / 1e6:,.0f} MB, measured {used['measured'] / 1e6:,.0f} MB, "
        f"error {used['predicted'] / used['measured'] - 1:+.0%}"
    )
    write_json(path, {"machine": facts, "steps": steps, "memory": used})


def _cells(job: Job, predicted: Step, measured: Timing) -> list[str]:
    setting = f"{job.head}, {job.identities:,}" if job.identities else job.head
    network = f"{1e3 * (predicted.gather + predicted.exposed):.0f} ms"
    error = f"{predicted.total / measured.median - 1:+.0%}"
    return [setting, f"{1e3 * predicted.total:.0f} ms", network, measured.milliseconds(), error]


def _print_constants(world: int, machine: Machine) -> None:
    link = machine.intra
    network = (
        f", all-reduce {link.bandwidth / 1e9:.2f} GB/s + {1e6 * link.latency:.0f} µs a message" if world > 1 else ""
    )
    print(
        f"{world} process(es): matrix products {machine.matmul / 1e9:,.0f} GFLOP/s, of which the backbone reaches "
        f"{machine.efficiency:.2f}, the head's {machine.head_matmul / 1e9:,.0f} GFLOP/s, memory "
        f"{machine.memory_bandwidth / 1e9:.1f} GB/s, the first time {machine.first_touch / 1e9:.1f} GB/s{network}"
    )
