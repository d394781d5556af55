"""Whether a step takes as much time and memory at the end of a long run as at its beginning.

A tiny network is trained by the real `fit`: facelit's command line with the callbacks, checkpoints, TensorBoard logger and
progress bar of a configuration, verification after each epoch, a log every 50 steps. After 50 steps of warm-up the first 200 are
compared with the last 200.
A step's time is from the end of the previous step to its own end, including the loader; the first step of an epoch, after a
validation, does not count. The growth includes one-off allocations by the first validation and checkpoint: a further row counts
from the second epoch on. Memory is the process's resident memory, and on a GPU also torch's allocated memory.

    python benchmarks/flat_steps.py [--steps 2000] [--head center] [--out FOLDER] [--json FILE]
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.figure import Figure

from harness.reporting import Timing, machine, print_header, print_table, summarise, write_json
from harness.roofline import device_facts
from harness.run_config import fit, run_config
from harness.step_recorder import Steps, read_steps
from harness.training_setup import HEADS, Setting

WARMUP, COMPARED = 50, 200
IMAGES_EACH = 20
MEGABYTE = 1e6


class Span(NamedTuple):
    """The cost of some steps: seconds of one, and the median memory in bytes, of the process and on the GPU."""

    step: Timing
    resident: float
    on_gpu: float


def span(steps: Steps, start: int, stop: int) -> Span:
    """Steps `start` to `stop`, counted from 0."""
    seconds = steps.seconds[start:stop]
    return Span(
        summarise(seconds[np.isfinite(seconds)].tolist()),
        float(np.median(steps.resident[start:stop])),
        float(np.median(steps.on_gpu[start:stop])),
    )


def train(arguments: argparse.Namespace, folder: Path) -> Steps:
    """The run."""
    precision = "bf16" if arguments.device == "cuda" else "32"
    setting = Setting(
        "vgg16_bn",
        arguments.head,
        0,
        arguments.batch,
        arguments.width,
        precision,
        arguments.device,
        workers=arguments.workers,
    )
    count = max(8, -(-arguments.batch * arguments.epoch_steps // IMAGES_EACH))
    faces = {
        "class_path": "facelit.data.SyntheticFaces",
        "init_args": {"num_identities": count, "images_per_identity": IMAGES_EACH},
    }
    recorder = {"path": str(folder / "steps.npz")}
    config = run_config(setting, folder, faces, arguments.steps, recorder)
    pairs = {"class_path": "facelit.data.SyntheticPairs", "init_args": {"folds": 2, "pairs_per_fold": 20}}
    config["data"] |= {"verification": {"drawn": pairs}, "eval_batch_size": 40}
    fit(config, folder)
    return read_steps(folder / "steps.npz")


def draw(steps: Steps, path: Path) -> None:
    """Draws step times and memory over the run."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    numbers = np.arange(1, len(steps.seconds) + 1)
    upper.plot(numbers, 1e3 * steps.seconds, ".", markersize=1, alpha=0.5, label="each step")
    upper.plot(numbers, 1e3 * running_median(steps.seconds), linewidth=1.5, label="median of 51")
    upper.set(ylabel="step, ms", ylim=(0, 3e3 * float(np.nanmedian(steps.seconds))))
    upper.legend(loc="upper right")
    lower.plot(numbers, steps.resident / MEGABYTE, label="resident memory")
    if steps.on_gpu.any():
        lower.plot(numbers, steps.on_gpu / MEGABYTE, label="allocated on the GPU")
    lower.set(xlabel="optimizer step", ylabel="MB", ylim=(0, 1.3 * float(steps.resident.max()) / MEGABYTE))
    lower.legend(loc="lower right")
    figure.savefig(path, dpi=120)


def running_median(values: npt.NDArray[np.float64], width: int = 51) -> npt.NDArray[np.float64]:
    """The median of the values around each, ignoring NaN; of fewer values at the ends."""
    half = width // 2
    return np.array([np.nanmedian(values[max(0, i - half) : i + half + 1]) for i in range(len(values))])


def settled_memory(steps: Steps, compared: int) -> float | None:
    """The median resident memory, in bytes, of the second epoch's first steps, after all one-off allocations.

    None if the run has no second epoch.
    """
    starts = np.flatnonzero(np.isnan(steps.seconds))
    if len(starts) < 2:
        return None
    return float(np.median(steps.resident[starts[1] : starts[1] + compared]))


def report(first: Span, last: Span, settled: float | None, on_gpu: bool) -> dict[str, Any]:
    """Prints the comparison; returns its figures."""
    ratio = last.step.median / first.step.median
    growth = (last.resident - first.resident) / MEGABYTE
    rows = [
        ["time of a step", first.step.milliseconds(), last.step.milliseconds(), f"{ratio:.3f} x"],
        [
            "resident memory",
            f"{first.resident / MEGABYTE:,.1f} MB",
            f"{last.resident / MEGABYTE:,.1f} MB",
            f"{growth:+.1f} MB",
        ],
    ]
    since = None if settled is None else (last.resident - settled) / MEGABYTE
    if settled is not None:
        cells = [f"{settled / MEGABYTE:,.1f} MB", f"{last.resident / MEGABYTE:,.1f} MB", f"{since:+.1f} MB"]
        rows.append(["resident memory, second epoch's first steps", *cells])
    if on_gpu:
        before, after = first.on_gpu / MEGABYTE, last.on_gpu / MEGABYTE
        rows.append(["memory on the GPU", f"{before:,.1f} MB", f"{after:,.1f} MB", f"{after - before:+.1f} MB"])
    print_table(["", f"first {first.step.repeats}", f"last {last.step.repeats}", "change"], rows)
    return {
        "first": {"step": first.step._asdict(), "resident": first.resident, "on_gpu": first.on_gpu},
        "last": {"step": last.step._asdict(), "resident": last.resident, "on_gpu": last.on_gpu},
        "time_ratio": ratio,
        "growth_mb": growth,
        "growth_since_second_epoch_mb": since,
    }


def main(args: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--width", type=float, default=0.05, help="of VGG16's channels")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--head", choices=HEADS, default="center")
    parser.add_argument("--epoch-steps", type=int, default=500, help="approximate steps per epoch")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="CPU threads for torch (default: torch's own)")
    parser.add_argument("--workers", type=int, default=0, help="processes that read images")
    parser.add_argument("--out", type=Path, help="folder for a picture of the run, flat-steps.png")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args(args)
    warmup, compared = WARMUP, min(COMPARED, (arguments.steps - WARMUP) // 2)
    if compared < 10:
        parser.error(
            f"--steps {arguments.steps}: at least {WARMUP + 20}, for 10 steps at each end after {WARMUP} of warm-up"
        )
    torch.set_num_threads(arguments.threads or torch.get_num_threads())
    facts = machine(["torch", "pytorch-lightning", "tensorboard"]) | device_facts(torch.device(arguments.device))
    facts |= {name: str(getattr(arguments, name)) for name in ("steps", "width", "batch", "head", "workers")}
    print_header("A long run's first and last steps", facts)
    with tempfile.TemporaryDirectory() as folder:
        steps = train(arguments, Path(folder))
    first = span(steps, warmup, warmup + compared)
    last = span(steps, len(steps.seconds) - compared, len(steps.seconds))
    figures = report(first, last, settled_memory(steps, compared), arguments.device == "cuda")
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
        draw(steps, arguments.out / "flat-steps.png")
        print(f"\nOver the whole run: {arguments.out / 'flat-steps.png'}")
    write_json(arguments.json, {"machine": facts, **figures})


if __name__ == "__main__":
    main()
