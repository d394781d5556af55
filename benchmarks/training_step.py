"""The cost of a training step, how close it is to the machine's limit, and where its time goes.

One row for each backbone, head and number of identities (triplets do not depend on it). facelit runs its own `FaceRecognizer`,
head, optimizers and data module in a bare loop, on random crops in memory. The baseline is the plain, obvious implementation
(`plain_training.py`): float32 in NCHW order, dense center loss, triplets through three forward passes. Both alternate in one
process; the ratio is between their times in the same round, with quartiles. A baseline that needs more memory than available is
skipped, and a line says so.

`of peak` is the share of the machine's own matrix-product rate, measured at the start in the same dtype: the operations required
by the formulas of network and head, over the time. (Algorithms that need fewer, such as Winograd's convolution, may exceed 100 %.)
`memory` is the step's peak: torch's allocations on a GPU, the growth of the process on a CPU, each measured in its own process.
With --profile, a table of operations and a trace are written to --out.

    python benchmarks/training_step.py [--backbones vgg16_bn] [--heads center] [--identities 8631] [--json FILE]
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from facelit.data.batches import TrainBatch
from harness.device_profile import profile_steps
from harness.plain_training import PlainTraining, dense_bytes
from harness.process_memory import available_bytes, peak_resident_bytes, resident_bytes
from harness.reporting import Timing, machine, print_header, print_table, summarise, write_json
from harness.roofline import MatrixRate, count_flops, device_facts, head_flops, measure_matrix_rate
from harness.step_timing import PARTS, BareStep, PartClock
from harness.training_setup import (
    BACKBONES,
    DTYPES,
    EMBEDDING_DIM,
    HEADS,
    IDENTITIES,
    MemoryCrops,
    Setting,
    endless,
    make_backbone,
    make_data,
    make_head,
    on_device,
)

LOG_EVERY = 50  # trainer.log_every_n_steps of the configurations


class Row(NamedTuple):
    """The figures of one setting: seconds per step and of each part, bytes; None if the baseline is skipped."""

    setting: Setting
    step: Timing
    plain: Timing | None
    ratio: Timing | None
    flops: int
    parts: dict[str, float]
    memory: int | None
    plain_memory: int | None
    idle: float | None


def loaded_batches(setting: Setting) -> Iterator[TrainBatch]:
    """Training batches from memory, through facelit's loader."""
    data = make_data(MemoryCrops(setting.batch, setting.identities), setting)
    return endless(data.train_dataloader())


def ready_batch(setting: Setting) -> TrainBatch:
    """One batch on the device."""
    data = make_data(MemoryCrops(setting.batch, setting.identities), setting._replace(workers=0))
    return on_device(next(iter(data.train_dataloader())), data, torch.device(setting.device))


def facelit_call(setting: Setting, batch: TrainBatch) -> Callable[[], object]:
    """One of facelit's steps."""
    ours = BareStep(setting)
    return lambda: ours.step(batch)


def plain_call(setting: Setting, batch: TrainBatch) -> Callable[[], object]:
    """One of the baseline's steps."""
    assert isinstance(batch.images, Tensor)
    plain, images, labels = PlainTraining(setting), batch.images.contiguous(), batch.labels
    return lambda: plain.step(images, labels)


CALLS = {"facelit": facelit_call, "plain": plain_call}


def time_turns(
    calls: Sequence[Callable[[], object]], turns: int, steps: int, device: torch.device
) -> list[list[float]]:
    """Seconds per step of each call in each round, waiting for a GPU once per round."""
    seconds: list[list[float]] = [[] for _ in calls]
    for turn in range(turns + 1):  # the first one warms up
        for call, times in zip(calls, seconds, strict=True):
            start = perf_counter()
            for _ in range(steps):
                call()
            _wait_for(device)
            if turn:
                times.append((perf_counter() - start) / steps)
    return seconds


def time_parts(setting: Setting, steps: int) -> dict[str, float]:
    """Median seconds of each part of facelit's step, including loader and transfer; logging is spread over its interval."""
    device = torch.device(setting.device)
    data = make_data(MemoryCrops(setting.batch, setting.identities), setting)
    batches, ours, clock = endless(data.train_dataloader()), BareStep(setting), PartClock(device)
    for number in range(steps + 2):
        if number == 2:
            clock = PartClock(device)  # two steps warm up
        clock.mark("")
        batch = next(batches)
        clock.mark("data")
        batch = on_device(batch, data, device)
        clock.mark("transfer, augmentation")
        ours.step_in_parts(batch, clock)
    parts = {part: statistics.median(times) for part, times in clock.seconds().items()}
    ordered = {part: parts[part] for part in PARTS if part in parts}
    return ordered | {f"logging (1 step in {LOG_EVERY})": _logging_seconds(ours, batch) / LOG_EVERY}


def _logging_seconds(ours: BareStep, batch: TrainBatch) -> float:
    """Seconds to log one step's metrics to TensorBoard, once they are computed."""
    loss, metrics = ours.step(batch, logs=True)
    _wait_for(batch.labels.device)
    times = []
    with tempfile.TemporaryDirectory() as folder, SummaryWriter(folder) as writer:
        for step in range(5):
            start = perf_counter()
            for name, value in {"loss": loss, **metrics}.items():
                writer.add_scalar(f"train/{name}", value.item(), step)
            times.append(perf_counter() - start)
    return statistics.median(times)


def memory_of(kind: str, setting: Setting, threads: int) -> int:
    """The peak bytes of two steps beyond those held before; to be run in its own process on a CPU."""
    device = torch.device(setting.device)
    torch.set_num_threads(threads)
    batch = ready_batch(setting)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    before = resident_bytes()
    call = CALLS[kind](setting, batch)
    for _ in range(2):
        call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device))
    return peak_resident_bytes() - before


def peak_memory(kind: str, setting: Setting) -> int:
    """`memory_of`, unaffected by earlier work."""
    if setting.device == "cuda":
        return memory_of(kind, setting, torch.get_num_threads())
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(memory_of, kind, setting, torch.get_num_threads()).result()


def measure(setting: Setting, arguments: argparse.Namespace) -> Row:
    """Measures all figures of one setting."""
    device = torch.device(setting.device)
    with_plain = not arguments.no_baseline and fits(setting, device)
    kinds = ["facelit", "plain"] if with_plain else ["facelit"]
    memory = {} if arguments.no_memory else {kind: peak_memory(kind, setting) for kind in kinds}
    batch = ready_batch(setting)
    calls = [CALLS[kind](setting, batch) for kind in kinds]
    seconds = time_turns(calls, arguments.turns, arguments.steps, device)
    idle = None
    if arguments.profile:
        name = setting.name.replace(", ", "-").replace(",", "")
        idle = profile_steps(calls[0], min(10, arguments.steps * 2), device, arguments.out, name)
    del calls
    _free(device)
    parts = time_parts(setting, max(3, arguments.turns * arguments.steps // 2))
    _free(device)
    backbone, head = make_backbone(setting.backbone, setting.width), make_head(setting.head, min(setting.identities, 2))
    flops = setting.batch * count_flops(backbone).training
    if head.num_identities is not None:
        head.num_identities = setting.identities
    flops += head_flops(head, setting.batch, EMBEDDING_DIM)
    ratios = [theirs / own for own, theirs in zip(seconds[0], seconds[1], strict=True)] if with_plain else []
    return Row(
        setting,
        summarise(seconds[0]),
        summarise(seconds[1]) if with_plain else None,
        summarise(ratios) if with_plain else None,
        flops,
        parts,
        memory.get("facelit"),
        memory.get("plain"),
        idle,
    )


def fits(setting: Setting, device: torch.device) -> bool:
    """Whether there is memory for the dense baseline along with facelit's own step."""
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_bytes()
    own = 4 * setting.identities * 4 * EMBEDDING_DIM if setting.head != "triplet" else 0
    return dense_bytes(setting) + own < 0.7 * free


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def print_rows(rows: Sequence[Row], peak: MatrixRate) -> None:
    """Prints two tables: rates and ratios, and where the time goes."""
    lines = []
    for row in rows:
        rate = row.flops / row.step.median
        lines.append(
            [
                row.setting.name,
                f"{row.setting.batch / row.step.median:,.1f}",
                row.step.milliseconds(),
                f"{rate / 1e12:,.3f}",
                f"{rate / peak.flops_per_second:.0%}",
                "skipped" if row.ratio is None else f"{_with_quartiles(row.ratio)} x",
                f"{_gigabytes(row.memory)} / {_gigabytes(row.plain_memory)}",
            ]
        )
    columns = ["network, head, identities", "images/s", "step (quartiles)", "TFLOP/s", "of peak", "against plain"]
    print_table([*columns, "memory / plain, GB"], lines)
    print("\nWhere the time of a step goes (medians, ms, and shares of their sum):\n")
    names = list(dict.fromkeys(part for row in rows for part in row.parts))
    table = []
    for row in rows:
        total = sum(row.parts.values())
        cells = [
            f"{1e3 * row.parts[name]:.2f} ({row.parts[name] / total:.0%})" if name in row.parts else ""
            for name in names
        ]
        table.append([row.setting.name, *cells])
    print_table(["network, head, identities", *names], table)
    print_notes(rows)


def print_notes(rows: Sequence[Row]) -> None:
    """Prints notes on the tables."""
    print()
    for row in rows:
        if row.setting.head == "triplet" and row.ratio is not None:
            pairs, triplets = 3 * row.setting.batch, row.setting.batch // 3
            print(
                f"{row.setting.name}: facelit's batch holds {pairs:,} anchor-positive pairs to mine negatives for, the"
                f" baseline's {triplets:,} triplets: {row.ratio.median * pairs / triplets:.0f} x per triplet."
            )
        if row.ratio is None:
            gigabytes = dense_bytes(row.setting) / 1e9
            print(
                f"{row.setting.name}: the baseline is skipped (it holds about {gigabytes:.1f} GB of centers and logits)."
            )
        if row.idle is not None:
            print(f"{row.setting.name}: the GPU is idle {row.idle:.1%} of the time.")


def _with_quartiles(ratio: Timing) -> str:
    return f"{ratio.median:.2f} ({ratio.first_quartile:.2f} to {ratio.third_quartile:.2f})"


def _gigabytes(size: int | None) -> str:
    return "-" if size is None else f"{size / 1e9:.2f}"


def as_json(row: Row, peak: MatrixRate) -> dict[str, Any]:
    """A row's figures by name."""
    rate = row.flops / row.step.median
    return {
        **row.setting._asdict(),
        "images_per_second": row.setting.batch / row.step.median,
        "flops_per_step": row.flops,
        "flops_per_second": rate,
        "share_of_peak": rate / peak.flops_per_second,
        "step": row.step._asdict(),
        "plain_step": row.plain and row.plain._asdict(),
        "ratio": row.ratio and row.ratio._asdict(),
        "parts": row.parts,
        "memory": row.memory,
        "plain_memory": row.plain_memory,
        "gpu_idle": row.idle,
    }


def make_settings(arguments: argparse.Namespace) -> list[Setting]:
    """All combinations, with a single row for triplets."""
    return [
        Setting(
            backbone,
            head,
            identities,
            arguments.batch,
            arguments.width,
            arguments.precision,
            arguments.device,
            arguments.compile,
            arguments.workers,
        )
        for backbone in arguments.backbones
        for head in arguments.heads
        for identities in (arguments.identities if head != "triplet" else arguments.identities[:1])
    ]


def parse(args: Sequence[str] | None) -> argparse.Namespace:
    """Parses options, with defaults that depend on the device."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="+", choices=BACKBONES, default=["vgg16_bn"])
    parser.add_argument("--heads", nargs="+", choices=HEADS, default=list(HEADS))
    parser.add_argument("--identities", nargs="+", type=int, default=list(IDENTITIES))
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, help="images (default: 32, on a GPU 512)")
    parser.add_argument("--width", type=float, help="of VGG16's channels (default: 0.25, on a GPU 1)")
    parser.add_argument("--precision", choices=list(DTYPES), help="default: 32, on a GPU bf16 autocast")
    parser.add_argument("--threads", type=int, help="CPU threads for torch (default: torch's own)")
    parser.add_argument("--workers", type=int, help="loader processes while parts are timed (default: 0, on a GPU 8)")
    parser.add_argument("--turns", type=int, default=5, help="timed rounds of facelit and the baseline")
    parser.add_argument("--steps", type=int, help="steps per round (default: 1, on a GPU 20)")
    parser.add_argument("--compile", action="store_true", help="compile the backbone with torch.compile")
    parser.add_argument("--no-baseline", action="store_true", help="facelit's rows only")
    parser.add_argument("--no-memory", action="store_true", help="do not measure memory, which takes extra processes")
    parser.add_argument("--profile", action="store_true", help="write a profile of facelit's step to --out")
    parser.add_argument("--out", type=Path, default=Path("profiles"), help="folder of --profile (default: profiles)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args(args)
    on_gpu = arguments.device == "cuda"
    defaults = {
        "batch": (32, 512),
        "width": (0.25, 1.0),
        "precision": ("32", "bf16"),
        "workers": (0, 8),
        "steps": (1, 20),
    }
    for name, (on_cpu, elsewhere) in defaults.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, elsewhere if on_gpu else on_cpu)
    if arguments.turns < 2:
        parser.error("a spread needs at least 2 turns")
    if on_gpu and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU here")
    return arguments


def main(args: Sequence[str] | None = None) -> None:
    arguments = parse(args)
    torch.set_num_threads(arguments.threads or torch.get_num_threads())
    device = torch.device(arguments.device)
    peak = measure_matrix_rate(device, DTYPES[arguments.precision])
    facts = machine(["torch", "torchvision", "pytorch-lightning"]) | device_facts(device)
    facts |= {
        name: str(getattr(arguments, name)) for name in ("batch", "width", "precision", "compile", "turns", "steps")
    }
    print_header("A training step, forward to optimizers, against the plain implementation", facts)
    print(
        f"Peak: {peak.flops_per_second / 1e12:,.3f} TFLOP/s, a product of {peak.size} x {peak.size} matrices"
        f" ({arguments.precision}).\n"
    )
    rows = [measure(setting, arguments) for setting in make_settings(arguments)]
    print_rows(rows, peak)
    figures = {
        "machine": facts,
        "peak_flops_per_second": peak.flops_per_second,
        "rows": [as_json(r, peak) for r in rows],
    }
    write_json(arguments.json, figures)


if __name__ == "__main__":
    main()
