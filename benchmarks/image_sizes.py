"""What smaller training images (`model.resizing`) and bf16 save: a training step by image size and precision, shrinking included.

VGG16-BN under softmax + center loss, facelit's own recognizer and optimizers in a bare loop; the settings take turns. Ratios
are to whole crops in float32, in the same round.

    python benchmarks/image_sizes.py [--width 0.25] [--sizes 112 96 80 64] [--precisions 32 bf16] [--device cuda] [--json FILE]
"""

from __future__ import annotations

import argparse
import functools
import itertools
from pathlib import Path

import torch
from torch import Tensor

from facelit.data.batches import TrainBatch
from facelit.storage.images import CROP_SIZE
from facelit.training.resizing import shrunk
from harness.reporting import machine, print_header, print_table, time_in_turns, write_json
from harness.step_timing import BareStep
from harness.training_setup import DTYPES, MemoryCrops, Setting, make_data, on_device

IDENTITIES = 4_843


def step(run: BareStep, batch: TrainBatch, size: int) -> float:
    """One training step on images of a size; waits for the device."""
    assert isinstance(batch.images, Tensor)
    if size < CROP_SIZE:
        batch = batch._replace(images=shrunk(batch.images, size))
    loss, _ = run.step(batch)
    return float(loss)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=float, default=0.25, help="of VGG16's channels")
    parser.add_argument("--sizes", type=int, nargs="+", default=[112, 96, 80, 64], help="sides in pixels")
    parser.add_argument("--precisions", choices=list(DTYPES), nargs="+", default=["32", "bf16"])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=9, help="steps of each")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads for torch")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    if arguments.repeats < 2:
        parser.error("a spread needs at least 2 repeats")
    torch.set_num_threads(arguments.threads)
    facts = machine(["torch"]) | {"threads": str(arguments.threads), "device": arguments.device}
    print_header(f"A training step, VGG16-BN at {arguments.width:g} of its width, {arguments.batch} images", facts)
    calls = {}
    cases = dict.fromkeys([(CROP_SIZE, "32"), *itertools.product(arguments.sizes, arguments.precisions)])
    for size, precision in cases:
        setting = Setting(
            "vgg16_bn", "center", IDENTITIES, arguments.batch, arguments.width, precision, arguments.device
        )
        data = make_data(MemoryCrops(setting.batch, setting.identities), setting)
        batch = on_device(next(iter(data.train_dataloader())), data, torch.device(setting.device))
        calls[f"{size} px, {precision}"] = functools.partial(step, BareStep(setting), batch, size)
    timings = time_in_turns(calls, dict.fromkeys(calls, arguments.repeats))
    whole = timings[f"{CROP_SIZE} px, 32"].median
    rows = [
        [name, f"{arguments.batch / found.median:,.0f}", found.milliseconds(), f"{whole / found.median:.2f} x"]
        for name, found in timings.items()
    ]
    print_table(["images", "images/s", "a step", f"against {CROP_SIZE} px, float32"], rows)
    figures = [{"case": name} | found._asdict() for name, found in timings.items()]
    write_json(arguments.json, {"machine": facts, "width": arguments.width, "figures": figures})


if __name__ == "__main__":
    main()
