"""How fast crops are read from disk: a folder, packed shards and RecordIO, against the usual first implementation.

The baseline is `torchvision.datasets.ImageFolder` with PIL, `ToTensor` and `Normalize` in a `DataLoader`: float32 batches.
facelit's rows use its own training loader (whole uint8 batches, in random order; the device normalises). Both go through all
images once per repeat, with a warm page cache. `decoding alone` is the lower bound: libjpeg-turbo on bytes in memory.
`crops/s per core` divides by the number of working cores: the worker processes, or one.

    python benchmarks/loading.py [--root datasets/lfw/aligned_112] [--repeats 5] [--workers 0 1 2] [--json FILE]
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from facelit.data import FaceDataModule, IdentityFolder
from facelit.storage.folder import FolderStore
from facelit.storage.packing import pack
from facelit.storage.recordio import write_recordio
from harness.reporting import Timing, machine, print_header, print_table, time_in_turns, write_json

BASELINE, FLOOR = "ImageFolder + PIL + ToTensor + Normalize", "decoding alone (simplejpeg, in memory)"


def baseline_loader(root: Path, batch_size: int, workers: int) -> DataLoader[Any]:
    """The usual first implementation."""
    change = transforms.Compose([transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)])
    return DataLoader(
        ImageFolder(str(root), change), batch_size, shuffle=True, num_workers=workers, persistent_workers=workers > 0
    )


def facelit_loader(root: Path, batch_size: int, workers: int) -> DataLoader[Any]:
    """The loader that `fit` uses."""
    data = FaceDataModule(IdentityFolder(root), batch_size=batch_size, num_workers=workers)
    return data.train_dataloader()


def go_through(batches: Iterable[Any]) -> None:
    """Goes through one epoch, discarding its batches."""
    for _ in batches:
        pass


def decode_all(files: list[bytes]) -> None:
    """The floor."""
    out = np.empty((112, 112, 3), np.uint8)
    for data in files:
        simplejpeg.decode_jpeg(data, "RGB", buffer=out)


def make_calls(root: Path, scratch: Path, batch_size: int, workers: int) -> dict[str, Callable[[], object]]:
    """The functions to time, by name; loaders are made once, as in a run."""
    loaders = {
        BASELINE: baseline_loader(root, batch_size, workers),
        "facelit, folder": facelit_loader(root, batch_size, workers),
        "facelit, packed": facelit_loader(scratch / "packed", batch_size, workers),
        "facelit, RecordIO": facelit_loader(scratch / "recordio", batch_size, workers),
    }
    return {name: lambda loader=loader: go_through(loader) for name, loader in loaders.items()}  # type: ignore[misc]  # a default binds it


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("datasets/lfw/aligned_112"), help="root/<identity>/<image>")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    store = FolderStore(arguments.root)
    facts = machine(["torch", "torchvision", "pillow", "simplejpeg", "pyarrow"])
    print_header(f"{len(store):,} crops, batches of {arguments.batch_size}", facts)
    rows, figures = [], {}
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        pack(store, scratch / "packed", jobs=1)
        write_recordio(store, scratch / "recordio")
        for workers in arguments.workers:
            calls = make_calls(arguments.root, scratch, arguments.batch_size, workers)
            if workers == 0:
                files = [store.encoded(row) for row in range(len(store))]
                calls[FLOOR] = lambda files=files: decode_all(files)  # type: ignore[misc]  # likewise
            timings = time_in_turns(calls, dict.fromkeys(calls, arguments.repeats))
            rows += table_rows(timings, workers, len(store))
            figures[str(workers)] = {name: len(store) / timing.median for name, timing in timings.items()}
    print_table(["workers", "what", "crops/s (quartiles)", "per core", "against the baseline"], rows)
    write_json(arguments.json, {"machine": facts, "crops_per_second": figures})


def table_rows(timings: dict[str, Timing], workers: int, count: int) -> list[list[str]]:
    """Rates, and ratios to the baseline with the same number of workers."""
    rows = []
    for name, timing in timings.items():
        low, rate, high = (count / seconds for seconds in (timing.third_quartile, timing.median, timing.first_quartile))
        ratio = timings[BASELINE].median / timing.median
        cells = [f"{rate:,.0f} ({low:,.0f} to {high:,.0f})", f"{rate / max(1, workers):,.0f}", f"{ratio:.2f} x"]
        rows.append([str(workers), name, *cells])
    return rows


if __name__ == "__main__":
    main()
