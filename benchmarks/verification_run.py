"""The cost of one verification on LFW: embedding 7,701 crops once and evaluating 6,000 pairs, against the plain method.

The plain method, found in many repositories: a Dataset of pairs, both crops of each read and embedded (12,000), and thresholds from
a grid of 0.01 in a Python loop. Reading, network, precision and batch size are the same for both; the network is VGG16 with random
weights, narrow by default, so the accuracies mean nothing but must agree. Without `--lfw` the crops are random and in memory.

    python benchmarks/verification_run.py [--lfw datasets/lfw] [--pairs-per-fold 600] [--width 0.125] [--device cuda] [--json FILE]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from facelit.backbones import VGG16
from facelit.data.augmentation import normalize
from facelit.data.batches import EvalBatch, EvalImages, as_tensor
from facelit.data.pairs import PairsFolder
from facelit.data.sources import VerificationSource
from facelit.storage.images import Crop
from facelit.verification import PairVerification
from harness.reporting import Timing, machine, print_header, print_table, summarise, write_json

FACELIT, PLAIN = "facelit: each crop once, sorted thresholds", "plain: both crops of each pair, grid of 0.01"
LFW_IMAGES, FOLDS, KINDS = 7_701, 10, 2


class RandomCrops(VerificationSource):
    """Random crops, with pairs and folds like LFW's View 2.

    Args:
        num_images: The number of crops.
        pairs_per_fold: The number of pairs in each fold, half of them genuine.
    """

    def __init__(self, num_images: int, pairs_per_fold: int) -> None:
        rng = np.random.default_rng(0)
        self._crops = rng.integers(0, 256, (num_images, 112, 112, 3), np.uint8)
        pairs = FOLDS * pairs_per_fold
        first = np.arange(pairs) % num_images
        second = (first + 1 + rng.integers(0, num_images - 1, pairs)) % num_images
        is_same = np.tile(np.repeat([True, False], pairs_per_fold // KINDS), FOLDS)
        names = [str(number) for number in range(num_images)]
        super().__init__(names, first, second, is_same, np.repeat(np.arange(1, FOLDS + 1), pairs_per_fold))

    def image(self, number: int) -> Crop:
        """Crop `number`, uint8 RGB (112, 112, 3)."""
        crop: Crop = self._crops[number]
        return crop


class Subset(VerificationSource):
    """The first pairs of each fold, half of them genuine, and the crops they name."""

    def __init__(self, source: VerificationSource, pairs_per_fold: int) -> None:
        kept = [
            np.flatnonzero((source.folds == fold) & (source.is_same == same))[: pairs_per_fold // KINDS]
            for fold in np.unique(source.folds)
            for same in (True, False)
        ]
        rows = np.concatenate(kept)
        numbers, places = np.unique(np.stack([source.first[rows], source.second[rows]]), return_inverse=True)
        first, second = places.reshape(2, -1)
        self._source, self._numbers = source, numbers
        names = [source.names[number] for number in numbers]
        super().__init__(names, first, second, source.is_same[rows], source.folds[rows])

    def image(self, number: int) -> Crop:
        """Crop `number`, uint8 RGB (112, 112, 3)."""
        return self._source.image(int(self._numbers[number]))


class Pairs(Dataset[tuple[Tensor, Tensor]]):
    """Both crops of each pair: the plain method."""

    def __init__(self, source: VerificationSource) -> None:
        self.source = source

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        """Two uint8 (3, 112, 112)."""
        numbers = int(self.source.first[row]), int(self.source.second[row])
        first, second = (as_tensor(self.source.image(number)[None])[0] for number in numbers)
        return first, second

    def __len__(self) -> int:
        return len(self.source.first)


class Setting(NamedTuple):
    """The settings that both methods share."""

    network: nn.Module
    device: torch.device
    bf16: bool
    batch: int
    workers: int


def embed(setting: Setting, crops: Tensor) -> Tensor:
    """Embeds uint8 crops (N, 3, 112, 112) to float32 (N, D), on the device."""
    images = normalize(crops.to(setting.device, non_blocking=True)).contiguous(memory_format=torch.channels_last)
    with torch.autocast(setting.device.type, torch.bfloat16, enabled=setting.bf16):
        embeddings: Tensor = setting.network(images)
    return embeddings.float()


@torch.inference_mode()
def facelit_way(setting: Setting, source: VerificationSource) -> npt.NDArray[np.float64]:
    """Embeds every crop once; returns the fold accuracies."""
    metric = PairVerification(np.stack([source.first, source.second], axis=1), source.is_same, source.folds)
    batches: Iterable[EvalBatch] = DataLoader(
        EvalImages(source), setting.batch, num_workers=setting.workers, pin_memory=setting.device.type == "cuda"
    )
    for images, numbers, _ in batches:
        metric.update(embed(setting, images), numbers)
    return metric.compute().fold_accuracies


@torch.inference_mode()
def plain_way(setting: Setting, source: VerificationSource) -> npt.NDArray[np.float64]:
    """Embeds every pair's two crops; returns the fold accuracies."""
    batches: Iterable[tuple[Tensor, Tensor]] = DataLoader(
        Pairs(source), setting.batch, num_workers=setting.workers, pin_memory=setting.device.type == "cuda"
    )
    scores = [F.cosine_similarity(embed(setting, first), embed(setting, second)).cpu() for first, second in batches]
    return grid_accuracies(torch.cat(scores).double().numpy(), source.is_same, source.folds)


def grid_accuracies(
    scores: npt.NDArray[np.float64], is_same: npt.NDArray[np.bool_], folds: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Fold accuracies at thresholds from -1 to 1 in steps of 0.01: for each fold the one that is best on the others."""
    accuracies = []
    for fold in np.unique(folds):
        held_out = folds == fold
        best = max(np.arange(1, -1.005, -0.01), key=lambda t: np.mean((scores >= t)[~held_out] == is_same[~held_out]))
        accuracies.append(np.mean((scores >= best)[held_out] == is_same[held_out]))
    return np.array(accuracies)


def measure(ways: dict[str, Callable[[], npt.NDArray[np.float64]]], repeats: int) -> dict[str, tuple[Timing, float]]:
    """Runs the methods alternately; returns each one's seconds and mean accuracy."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    accuracies: dict[str, float] = {}
    for _ in range(repeats):
        for name, way in ways.items():
            start = perf_counter()
            accuracies[name] = float(way().mean())
            seconds[name].append(perf_counter() - start)
    return {name: (summarise(times), accuracies[name]) for name, times in seconds.items()}


def make_source(lfw: Path | None, pairs_per_fold: int) -> VerificationSource:
    """LFW, or as many random crops."""
    if lfw is None:
        return RandomCrops(max(2, LFW_IMAGES * pairs_per_fold // 600), pairs_per_fold)
    source = PairsFolder(lfw / "aligned_112", lfw / "pairs.txt")
    return source if pairs_per_fold >= 600 else Subset(source, pairs_per_fold)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lfw", type=Path, help="folder with aligned_112/ and pairs.txt; random crops without")
    parser.add_argument("--pairs-per-fold", type=int, default=600, help="even; fewer for a quick look")
    parser.add_argument("--width", type=float, default=0.125, help="of VGG16")
    parser.add_argument("--precision", choices=["32", "bf16"], help="by default bf16 on a GPU")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--workers", type=int, default=0, help="loader processes")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads for torch")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    if arguments.repeats < 2 or arguments.pairs_per_fold < 2 or arguments.pairs_per_fold % 2:
        parser.error("a spread needs at least 2 repeats, and a fold an even number of pairs")
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    device = torch.device(arguments.device)
    network = VGG16(width=arguments.width).to(device).to(memory_format=torch.channels_last).eval()
    precision = arguments.precision or ("bf16" if device.type == "cuda" else "32")
    setting = Setting(network, device, precision == "bf16", arguments.batch, arguments.workers)
    source = make_source(arguments.lfw, arguments.pairs_per_fold)
    facts = machine(["torch", "numpy"]) | {
        "threads": str(arguments.threads), "device": device.type, "width": str(arguments.width), "precision": precision,
        "batch": str(arguments.batch), "workers": str(arguments.workers), "crops": str(arguments.lfw or "random, in memory"),
    }  # fmt: skip
    print_header(f"Verification of {len(source.first):,} pairs over {len(source):,} crops", facts)
    ways: dict[str, Callable[[], npt.NDArray[np.float64]]] = {
        FACELIT: lambda: facelit_way(setting, source),
        PLAIN: lambda: plain_way(setting, source),
    }
    found = measure(ways, arguments.repeats)
    embedded = {FACELIT: len(source), PLAIN: 2 * len(source.first)}
    rows = []
    for name, (timing, accuracy) in found.items():
        spread = f"{timing.median:.2f} s ({timing.first_quartile:.2f} to {timing.third_quartile:.2f})"
        ratio = f"{timing.median / found[FACELIT][0].median:.2f} x"
        rate = f"{embedded[name] / timing.median:,.0f}"
        rows.append([name, f"{embedded[name]:,}", spread, rate, ratio, f"{accuracy:.4f}"])
    print_table(["way", "embedded", "median (quartiles)", "crops/s", "time / facelit's", "accuracy"], rows)
    figures = {name: timing._asdict() | {"accuracy": accuracy} for name, (timing, accuracy) in found.items()}
    write_json(arguments.json, {"machine": facts, "ways": figures})


if __name__ == "__main__":
    main()
