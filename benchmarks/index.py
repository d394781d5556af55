"""The cost of listing a large training set: a generated tree of a million tiny files in 10,000 identities.

Each measurement runs in its own process, alternately: facelit's first listing (with its index deleted beforehand), its start from
the saved index, and `torchvision.datasets.ImageFolder`. Memory is the process's peak growth beyond its imports; for a worker, the
pages that a forked child must copy when it goes through all samples once, as a data loader's worker does in an epoch. The page
cache is warm for all.

    python benchmarks/index.py [--identities 10000] [--images 100] [--repeats 3] [--root FOLDER] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from time import perf_counter
from typing import Any

from harness.reporting import machine, print_header, print_table, write_json

FIRST, CACHED, IMAGE_FOLDER = "facelit, first", "facelit, from its index", "ImageFolder"
METHODS = {
    FIRST: ("facelit.storage.folder", "FolderStore"),
    CACHED: ("facelit.storage.folder", "FolderStore"),
    IMAGE_FOLDER: ("torchvision.datasets", "ImageFolder"),
}


def make_tree(root: Path, identities: int, images: int) -> None:
    """Creates empty files, as only names are listed."""
    for identity in range(identities):
        folder = root / f"n{identity:06d}"
        folder.mkdir(parents=True)
        for image in range(images):
            os.close(os.open(folder / f"{image:04d}_01.jpg", os.O_CREAT | os.O_WRONLY))


def peak_kb() -> int:
    """This process's peak memory."""
    return int(_status("VmHWM"))


def own_kb() -> int:
    """Memory that this process shares with no other."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
    return sum(int(fields[name].split()[0]) for name in ("Private_Clean", "Private_Dirty"))


def _status(field: str) -> str:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(line.split()[1] for line in lines if line.startswith(f"{field}:"))


def measure(method: str, root: str) -> dict[str, float]:
    """Measures seconds, peak MB, a worker's own MB and images; to be run in its own process."""
    # Imported only in this process, before the clock starts.
    dataset: Any = getattr(import_module(METHODS[method][0]), METHODS[method][1])
    before, start = peak_kb(), perf_counter()
    listed = dataset(root)
    seconds = perf_counter() - start
    return {
        "seconds": seconds,
        "peak_mb": (peak_kb() - before) / 1024,
        "worker_mb": _worker_mb(lambda: _go_through(listed)),
        "images": len(listed),
    }


def _go_through(listed: Any) -> None:
    """Looks at each sample once, as an epoch does."""
    if hasattr(listed, "samples"):
        for path, label in listed.samples:
            assert path is not None and label >= 0  # noqa: PT018  # no test: it uses the values
    else:
        for row in range(len(listed)):
            assert listed.place(row)


def _worker_mb(work: Callable[[], None]) -> float:
    """The unshared memory that a forked child grows by."""
    reader, writer = os.pipe()
    if os.fork() == 0:
        before = own_kb()
        work()
        os.write(writer, f"{(own_kb() - before) / 1024}".encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        return float(pipe.read())


def in_a_process(name: str, root: Path) -> dict[str, float]:
    """One measurement."""
    if name == FIRST:
        (root / ".facelit-index.arrow").unlink(missing_ok=True)
    command = [sys.executable, __file__, "--measure", name, "--root", str(root)]
    result: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--identities", type=int, default=10_000)
    parser.add_argument("--images", type=int, default=100, help="of each identity")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--root", type=Path, help="an existing tree; by default one is created and deleted again")
    parser.add_argument("--measure", choices=list(METHODS), help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, str(arguments.root))))
        return
    root, made = arguments.root, arguments.root is None
    if made:
        root = Path(tempfile.mkdtemp(prefix="facelit-index-"))
        make_tree(root, arguments.identities, arguments.images)
    try:
        runs = [{name: in_a_process(name, root) for name in METHODS} for _ in range(arguments.repeats)]
    finally:
        if made:
            shutil.rmtree(root)
    report(runs, arguments.json)


def report(runs: list[dict[str, dict[str, float]]], path: Path | None) -> None:
    """Prints medians, and ratios to ImageFolder's."""
    medians = {
        name: {key: statistics.median(run[name][key] for run in runs) for key in runs[0][name]} for name in METHODS
    }
    base = medians[IMAGE_FOLDER]
    facts = machine(["numpy", "pyarrow", "torchvision"])
    print_header(f"Listing {base['images']:,.0f} files, median of {len(runs)}", facts)
    rows = []
    for name, found in medians.items():
        cells = [
            f"{found[key]:,.2f} {unit} ({base[key] / max(found[key], 1e-9):,.1f} x)" for key, unit in _COLUMNS.items()
        ]
        rows.append([name, *cells, f"{found['peak_mb'] * 2**20 / found['images']:.0f}"])
    print_table(["", "time (ratio)", "peak memory (ratio)", "each worker's own (ratio)", "bytes per image"], rows)
    write_json(path, {"machine": facts, "medians": medians, "runs": runs})


_COLUMNS = {"seconds": "s", "peak_mb": "MB", "worker_mb": "MB"}

if __name__ == "__main__":
    main()
