"""The overhead of `fit` over the training step itself, from packed crops to updated weights.

Three loops over the same loader, network, head, optimizers and clipping alternate, each rebuilt every time:

- bare: a `for` loop that logs nothing;
- Lightning, all off: a `Trainer` without logger, checkpoints and progress bar (but with facelit's own callbacks);
- fit: `python main.py fit` as a configuration sets it up: TensorBoard, checkpoints, progress bar (drawn as on a terminal), a log
  every 50 steps.

After some warm-up, a number of steps is timed as a whole. `overhead` is the extra time of a step over the bare loop's in the same
round, in ms and in %; `median step` is unaffected by logging steps and hiccups. The second table is for a network so small that the
overhead, which does not depend on its size, stands out from the noise. Writing a checkpoint falls outside the timed steps; its time
is printed below the table.

On a GPU one table is printed, for the full VGG16 in bf16, with the share of the machine's measured matrix-product rate, the rate
of the loader alone, and a profile of the bare loop (--out).

    python benchmarks/end_to_end.py [--root datasets/lfw/aligned_112] [--json FILE]
    python benchmarks/end_to_end.py --device cuda
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import tempfile
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from facelit.data import FaceDataModule
from facelit.pictures.drawn_faces import draw_face
from facelit.storage.folder import FolderStore
from facelit.storage.packing import pack
from harness.device_profile import profile_steps
from harness.reporting import Timing, machine, print_header, print_table, summarise, write_json
from harness.roofline import count_flops, device_facts, head_flops, measure_matrix_rate
from harness.run_config import fit, run_config
from harness.step_recorder import StepRecorder, Steps, read_steps
from harness.step_timing import BareStep
from harness.training_setup import (
    BACKBONES,
    DTYPES,
    EMBEDDING_DIM,
    GRADIENT_CLIP,
    HEADS,
    RepeatedCrops,
    Setting,
    endless,
    make_backbone,
    make_data,
    make_head,
    make_recognizer,
    on_device,
    quiet_trainer,
)

BARE, LIGHTNING, FIT = "bare loop", "Lightning, all off", "fit"
TINY_WIDTH, TINY_BATCH = 0.02, 4
SHORT_STEP_MS = 15.0  # roughly a VGG16 at a batch of 256 on an H100


class Plan(NamedTuple):
    """How to run a loop: the packed crops, the warm-up steps, the timed steps, and a folder to write to."""

    packed: Path
    warmup: int
    steps: int
    folder: Path


Loop = Callable[[Setting, Plan], Steps]


def bare_loop(setting: Setting, plan: Plan) -> Steps:
    """Runs facelit's step in a `for` loop."""
    device = torch.device(setting.device)
    data = open_data(setting, plan)
    ours, batches = BareStep(setting), endless(data.train_dataloader())
    seconds, begun, before = [], 0.0, perf_counter()
    for number in range(plan.warmup + plan.steps):
        if number == plan.warmup:
            _wait_for(device)
            begun = perf_counter()
        ours.step(on_device(next(batches), data, device))
        now = perf_counter()
        seconds.append(now - before)
        before = now
    _wait_for(device)
    empty = np.zeros(0, np.int64)
    return Steps(np.array(seconds), empty, empty, perf_counter() - begun, plan.steps)


def lightning_loop(setting: Setting, plan: Plan) -> Steps:
    """The recognizer in a trainer with everything off."""
    options = {"max_steps": plan.warmup + plan.steps, "gradient_clip_val": GRADIENT_CLIP}
    path = plan.folder / "lightning.npz"
    recorder = StepRecorder(str(path), plan.warmup, plan.warmup + plan.steps, memory=False)
    trainer = quiet_trainer(setting, callbacks=[recorder], **options)
    trainer.fit(make_recognizer(setting), open_data(setting, plan))
    return read_steps(path)


def fit_loop(setting: Setting, plan: Plan) -> Steps:
    """The command line."""
    path = plan.folder / "fit.npz"
    arguments = {"root": str(plan.packed), "identities_of_set": setting.identities}
    train = {"class_path": "harness.training_setup.RepeatedCrops", "init_args": arguments}
    recorder = {
        "path": str(path),
        "first": plan.warmup,
        "last": plan.warmup + plan.steps,
        "memory": False,
        "checkpoint": True,
    }
    fit(run_config(setting, plan.folder, train, plan.warmup + plan.steps, recorder), plan.folder)
    return read_steps(path)


LOOPS: dict[str, Loop] = {BARE: bare_loop, LIGHTNING: lightning_loop, FIT: fit_loop}


def open_data(setting: Setting, plan: Plan) -> FaceDataModule:
    """The data module with the packed crops."""
    return make_data(RepeatedCrops(str(plan.packed), identities_of_set=setting.identities), setting)


def run_in_turns(setting: Setting, plan: Plan, turns: int) -> dict[str, list[Steps]]:
    """Runs all loops alternately, `turns` times each."""
    runs: dict[str, list[Steps]] = {name: [] for name in LOOPS}
    for _ in range(turns):
        for name, loop in LOOPS.items():
            runs[name].append(loop(setting, plan))
            gc.collect()
            if setting.device == "cuda":
                torch.cuda.empty_cache()
    return runs


def make_pack(root: Path | None, drawn: int, folder: Path) -> Path:
    """Packs a folder of crops, or drawn faces as JPEGs of quality 90."""
    if root is None:
        root = folder / "drawn"
        for number in range(drawn):
            path = root / f"person_{number // 4:05d}" / f"{number % 4}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draw_face(0, number // 4, number % 4)).save(path, quality=90)
    pack(FolderStore(root), folder / "packed", jobs=os.cpu_count() or 1)
    return folder / "packed"


def loader_rate(setting: Setting, plan: Plan) -> float:
    """Images per second of the loader alone, once its processes are running."""
    batches = endless(open_data(setting, plan).train_dataloader())
    count = max(4, min(plan.steps, 50))
    list(islice(batches, max(2, 2 * setting.workers)))
    start = perf_counter()
    for _ in islice(batches, count):
        pass
    return count * setting.batch / (perf_counter() - start)


def step_seconds(run: Steps) -> float:
    """The mean over the timed steps."""
    return run.window / run.counted


def median_step(runs: Sequence[Steps]) -> float:
    """The median over all timed steps of all runs."""
    return float(np.median(np.concatenate([run.seconds[-run.counted :] for run in runs])))


def print_runs(setting: Setting, runs: dict[str, list[Steps]], flops: float, peak: float) -> dict[str, Any]:
    """Prints the table of one network; returns its figures."""
    bare, rows, figures = [step_seconds(run) for run in runs[BARE]], [], {}
    for name, of_loop in runs.items():
        means = [step_seconds(run) for run in of_loop]
        step = summarise(means)
        extra = summarise([own - base for own, base in zip(means, bare, strict=True)])
        share = summarise([own / base - 1 for own, base in zip(means, bare, strict=True)])
        rows.append(
            [
                name,
                f"{setting.batch / step.median:,.1f}",
                step.milliseconds(),
                f"{1e3 * median_step(of_loop):.2f} ms",
                "" if name == BARE else extra.milliseconds(),
                "" if name == BARE else _percent(share),
                f"{flops / step.median / peak:.0%}",
            ]
        )
        figures[name] = {
            "images_per_second": setting.batch / step.median,
            "step": step._asdict(),
            "median_step": median_step(of_loop),
            "overhead_seconds": extra._asdict(),
            "overhead_share": share._asdict(),
            "share_of_peak": flops / step.median / peak,
        }
    print_table(["loop", "images/s", "step (quartiles)", "median step", "overhead", "overhead, %", "of peak"], rows)
    saving = statistics.median(run.saving for run in runs[FIT])
    print(
        f"\nWriting one checkpoint takes {1e3 * saving:.0f} ms: {saving:.2f} ms per step if one is written every 1,000.\n"
    )
    return figures | {"checkpoint_seconds": saving}


def _percent(share: Timing) -> str:
    return f"{share.median:+.1%} ({share.first_quartile:+.1%} to {share.third_quartile:+.1%})"


def measure(setting: Setting, plan: Plan, turns: int, peak: float) -> dict[str, Any]:
    """Measures one network: prints heading and table, returns the figures."""
    flops = setting.batch * count_flops(make_backbone(setting.backbone, setting.width)).training
    flops += head_flops(make_head(setting.head, setting.identities), setting.batch, EMBEDDING_DIM)
    print(f"{setting.name} identities, width {setting.width:g}, batch {setting.batch}, {setting.precision}:\n")
    figures = print_runs(setting, run_in_turns(setting, plan, turns), flops, peak)
    rate = loader_rate(setting, plan)
    print(f"The loader alone: {rate:,.0f} images/s.\n")
    return {**setting._asdict(), **figures, "loader_images_per_second": rate}


def profile_bare(setting: Setting, plan: Plan, out: Path) -> float | None:
    """Profiles the bare loop, including loader and transfer."""
    device = torch.device(setting.device)
    data = open_data(setting, plan)
    ours, batches = BareStep(setting), endless(data.train_dataloader())

    def step() -> None:
        ours.step(on_device(next(batches), data, device))

    for _ in range(plan.warmup):
        step()
    idle = profile_steps(step, 10, device, out, "end-to-end")
    print(f"Profile of the bare loop: {out / 'end-to-end-ops.txt'} and {out / 'end-to-end-trace.json'}.")
    if idle is not None:
        print(f"The GPU is idle {idle:.1%} of the time (under the profiler, which slows the host down).")
        print((out / "end-to-end-ops.txt").read_text())
    return idle


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def parse(args: Sequence[str] | None) -> argparse.Namespace:
    """Parses options, with defaults that depend on the device."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="root/<identity>/<image> to pack; by default faces are drawn")
    parser.add_argument("--drawn", type=int, default=1000, help="faces to draw without --root")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--backbone", choices=BACKBONES, help="default: vgg16_bn, on a GPU vgg16")
    parser.add_argument("--head", choices=HEADS, default="center")
    parser.add_argument("--identities", type=int, default=8631)
    parser.add_argument("--batch", type=int, help="images (default: 64, on a GPU 512)")
    parser.add_argument("--width", type=float, help="of VGG16's channels (default: 0.25, on a GPU 1)")
    parser.add_argument("--precision", choices=list(DTYPES), help="default: 32, on a GPU bf16")
    parser.add_argument(
        "--workers", type=int, help="processes that read images (default: 0, on a GPU the number of cores less one)"
    )
    parser.add_argument("--threads", type=int, help="CPU threads for torch (default: torch's own)")
    parser.add_argument("--steps", type=int, help="timed steps of a run (default: 10, on a GPU 200)")
    parser.add_argument("--tiny-steps", type=int, default=400, help="timed steps of the tiny network; 0 skips it")
    parser.add_argument("--warmup", type=int, help="warm-up steps (default: 3, on a GPU 50)")
    parser.add_argument("--turns", type=int, default=3, help="runs of each loop")
    parser.add_argument("--compile", action="store_true", help="compile the backbone with torch.compile")
    parser.add_argument("--profile", action="store_true", help="profile the bare loop on a CPU too")
    parser.add_argument("--out", type=Path, default=Path("profiles"), help="folder of the profile (default: profiles)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args(args)
    on_gpu = arguments.device == "cuda"
    if on_gpu and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU here")
    if arguments.turns < 2:
        parser.error("a spread needs at least 2 turns")
    defaults: dict[str, tuple[Any, Any]] = {
        "backbone": ("vgg16_bn", "vgg16"),
        "batch": (64, 512),
        "width": (0.25, 1.0),
        "precision": ("32", "bf16"),
        "workers": (0, max(1, (os.cpu_count() or 2) - 1)),
        "steps": (10, 200),
        "warmup": (3, 50),
    }
    for name, (on_cpu, elsewhere) in defaults.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, elsewhere if on_gpu else on_cpu)
    return arguments


def main(args: Sequence[str] | None = None) -> None:
    arguments = parse(args)
    torch.set_num_threads(arguments.threads or torch.get_num_threads())
    device, on_gpu = torch.device(arguments.device), arguments.device == "cuda"
    peak = measure_matrix_rate(device, DTYPES[arguments.precision])
    facts = machine(["torch", "pytorch-lightning", "tensorboard", "rich"]) | device_facts(device)
    facts |= {"turns": str(arguments.turns), "workers": str(arguments.workers)}
    print_header("fit from packed crops, against a bare loop over the same loader and step", facts)
    print(f"Peak: {peak.flops_per_second / 1e12:,.3f} TFLOP/s, a product of {peak.size} x {peak.size} matrices.\n")
    setting = Setting(
        arguments.backbone,
        arguments.head,
        arguments.identities,
        arguments.batch,
        arguments.width,
        arguments.precision,
        arguments.device,
        arguments.compile,
        arguments.workers,
    )
    with tempfile.TemporaryDirectory() as name:
        packed = make_pack(arguments.root, arguments.drawn, Path(name))
        plan = Plan(packed, arguments.warmup, arguments.steps, Path(name))
        figures = [measure(setting, plan, arguments.turns, peak.flops_per_second)]
        if arguments.tiny_steps and not on_gpu:
            tiny = setting._replace(backbone="vgg16_bn", width=TINY_WIDTH, batch=TINY_BATCH)
            few = plan._replace(warmup=min(50, arguments.tiny_steps), steps=arguments.tiny_steps)
            figures.append(measure(tiny, few, arguments.turns, peak.flops_per_second))
            extra = 1e3 * figures[-1][FIT]["overhead_seconds"]["median"]
            base = 1e3 * figures[0][BARE]["step"]["median"]
            print(
                f"fit's {extra:.2f} ms per step are {extra / base:.2%} of the first network's {base:.0f} ms, and would be"
                f" {extra / SHORT_STEP_MS:.1%} of a step of {SHORT_STEP_MS:g} ms, typical of a GPU, if nothing ran in parallel."
            )
        idle = profile_bare(setting, plan, arguments.out) if arguments.profile or on_gpu else None
    write_json(
        arguments.json,
        {"machine": facts, "peak_flops_per_second": peak.flops_per_second, "rows": figures, "gpu_idle": idle},
    )


if __name__ == "__main__":
    main()
