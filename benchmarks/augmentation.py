"""The cost of augmentation per crop: facelit's on whole batches, against torchvision's transforms on one image at a time.

All turn a batch of uint8 crops into a float32 batch in [-1, 1] on the device. facelit draws its random numbers, normalises and
changes the whole batch there. The baselines run `torchvision.transforms.v2` on each image, as a Dataset's `transform` does, from PIL
images or from uint8 tensors, then stack and copy to the device. "flip" is a horizontal flip of half of the crops; "all" is flip,
rotation with scale and shift, random crop, low resolution, blur, brightness, contrast and saturation, grey, and erasing, with the
same probabilities and strengths in both (the two libraries' definitions differ in detail).

    python benchmarks/augmentation.py [--batch 128] [--threads 1] [--device cuda] [--json FILE]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from facelit.data import Augmentation
from facelit.data.augmentation import normalize, uniform_draws
from facelit.data.batches import as_tensor
from harness.reporting import Timing, machine, print_header, print_table, time_in_turns, write_json

FACELIT, PIL, TENSOR = "facelit, the whole batch", "torchvision v2, each PIL image", "torchvision v2, each tensor"
SETTINGS = {
    "flip": {"flip": 0.5},
    "all": {
        "flip": 0.5, "rotate": 10.0, "scale": 0.1, "shift": 0.05, "crop": 0.2, "low_resolution": 0.2, "blur": 0.2,
        "brightness": 0.1, "contrast": 0.3, "saturation": 0.3, "grayscale": 0.1, "erase": 0.1,
    },
}  # fmt: skip


def facelit_batches(crops: Tensor, device: torch.device, options: dict[str, float]) -> Callable[[], Tensor]:
    """Augments as a training run does."""
    augmentation = Augmentation(**options)
    numbers = np.arange(len(crops))

    def run() -> Tensor:
        draws = torch.from_numpy(uniform_draws(0, 0, numbers)).to(device, non_blocking=True)
        return augmentation(normalize(crops.to(device, non_blocking=True)), draws)

    return run


def torchvision_batches(
    images: Sequence[Any], device: torch.device, transform: Callable[[Any], Tensor]
) -> Callable[[], Tensor]:
    """Augments one image at a time, as most first programs do."""
    return lambda: torch.stack([transform(image) for image in images]).to(device, non_blocking=True)


def make_transform(name: str, side: int = 112) -> v2.Compose:
    """The torchvision transforms for one of `SETTINGS`."""
    steps: list[Callable[[Any], Any]] = [v2.RandomHorizontalFlip(0.5)]
    if name == "all":
        o = SETTINGS["all"]
        stretch = InterpolationMode.BILINEAR
        steps += [
            v2.RandomAffine(o["rotate"], (o["shift"],) * 2, (1 - o["scale"], 1 + o["scale"]), interpolation=stretch),
            v2.RandomResizedCrop(side, scale=((1 - o["crop"]) ** 2, 1.0), ratio=(1.0, 1.0)),
            v2.RandomApply([v2.Resize(side // 3), v2.Resize(side)], o["low_resolution"]),
            v2.RandomApply([v2.GaussianBlur(13, (0.5, 2.0))], o["blur"]),
            v2.ColorJitter(o["brightness"], o["contrast"], o["saturation"]),
            v2.RandomGrayscale(o["grayscale"]),
        ]
    steps += [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.5] * 3)]
    if name == "all":
        steps.append(v2.RandomErasing(SETTINGS["all"]["erase"], scale=(0.02, 0.2), ratio=(0.3, 3.3)))
    return v2.Compose(steps)


def make_calls(crops: Tensor, device: torch.device, name: str) -> dict[str, Callable[[], Tensor]]:
    """The functions to time, by name, each waiting for its result."""
    arrays = crops.permute(0, 2, 3, 1).numpy()
    transform = make_transform(name, crops.shape[-1])
    calls = {
        FACELIT: facelit_batches(crops, device, SETTINGS[name]),
        PIL: torchvision_batches([Image.fromarray(array) for array in arrays], device, transform),
        TENSOR: torchvision_batches([crop.contiguous() for crop in crops], device, transform),
    }
    return {key: finished(call, device) for key, call in calls.items()}


def finished(call: Callable[[], Tensor], device: torch.device) -> Callable[[], Tensor]:
    """The same call, waiting until the device has finished."""

    def run() -> Tensor:
        batch = call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return batch

    return run


def table_rows(name: str, timings: dict[str, Timing], batch: int) -> list[list[str]]:
    """The time per image, and its ratio to facelit's."""
    rows = []
    for method, timing in timings.items():
        low, median, high = (1e6 * q / batch for q in (timing.first_quartile, timing.median, timing.third_quartile))
        ratio = timing.median / timings[FACELIT].median
        rows.append([name, method, f"{median:.0f} µs ({low:.0f} to {high:.0f})", f"{ratio:.2f} x"])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=15, help="batches of each method")
    parser.add_argument(
        "--threads", type=int, default=1, help="CPU threads for torch; a loader's workers have one each"
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where the batch is needed")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    if arguments.repeats < 2:
        parser.error("a spread needs at least 2 repeats")
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    device = torch.device(arguments.device)
    facts = machine(["torch", "torchvision", "pillow"]) | {"threads": str(arguments.threads), "device": device.type}
    print_header(f"Augmentation of batches of {arguments.batch} crops", facts)
    crops = as_tensor(np.random.default_rng(0).integers(0, 256, (arguments.batch, 112, 112, 3), np.uint8))
    rows, figures = [], {}
    for name in SETTINGS:
        calls = make_calls(crops, device, name)
        timings = time_in_turns(calls, dict.fromkeys(calls, arguments.repeats))
        rows += table_rows(name, timings, arguments.batch)
        figures[name] = {method: timing._asdict() for method, timing in timings.items()}
    print_table(["chain", "method", "an image (quartiles)", "time / facelit's"], rows)
    write_json(arguments.json, {"machine": facts, "batch": arguments.batch, "chains": figures})


if __name__ == "__main__":
    main()
