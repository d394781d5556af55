"""Formats for a packed training set: the same JPEG crops written and read in each of them, on one thread.

"Read" gives each image's encoded bytes as `bytes`, from the page cache, in one random order of all images where the format can
do that; formats that only stream give all images in the order of their own shuffling. "Read and decode" hands what the format
gives (a view, where it can) to simplejpeg. "First epoch" opens the format and reads all images once after the system was told to
drop the files' pages: it depends on the disk, and a set that is larger than memory may behave otherwise. The baseline is the plain
folder. Every format's images are compared with what was written before reading is timed. The formats are in `crop_formats.py`;
packages that are not installed are rows without figures. Needs Linux.

    pip install lmdb webdataset litdata
    python benchmarks/pack_formats.py [--root datasets/lfw/aligned_112] [--json FILE]
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import chain, count, islice, repeat
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple, TypeVar

import numpy as np
import simplejpeg

from crop_formats import BASELINE, FORMATS, SOURCE, Crops, Encoded, Read
from facelit.storage import CROP_SIZE
from jpeg_decoders import UnavailableError, installed, load_jpegs, module, what_was_read
from process_memory import resident_bytes
from reporting import Timing, machine, print_header, print_table, summarise, time_in_turns, write_json

Result = TypeVar("Result")

IMAGES_A_TURN = 1_000
"""Few enough that all formats see the same machine."""
WRITES, LOOKS = 3, 3
"""How often each format is written, and looked at in a fresh process."""


class FirstLook(NamedTuple):
    """What opening a format and reading one image takes in a fresh process, after the imports."""

    seconds: float
    memory_bytes: int


def first_look(name: str, folder: Path, row: int) -> FirstLook:
    """Run in a fresh process: opens a format, reads one image."""
    get_ready(name)
    before, start = resident_bytes(), perf_counter()
    read = FORMATS[name].open(folder)
    next(iter(read([row])))
    return FirstLook(perf_counter() - start, resident_bytes() - before)


def first_epoch(name: str, folder: Path, order: Sequence[int]) -> float:
    """Run in a fresh process: seconds to open and to read all images once, none of them in the page cache."""
    get_ready(name)
    for path in filter(Path.is_file, folder.rglob("*")):
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    start = perf_counter()
    deque(map(bytes, FORMATS[name].open(folder)(order)), maxlen=0)
    return perf_counter() - start


def get_ready(name: str) -> None:
    """Imports, so that they are not measured."""
    warnings.simplefilter("ignore")
    FORMATS[name].check()
    module("pyarrow.parquet")


def in_fresh_processes(function: Callable[..., Result], *arguments: object) -> list[Result]:
    """Calls a function several times, each in a process of its own."""
    results = []
    for _ in range(LOOKS):
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            results.append(pool.submit(function, *arguments).result())
    return results


def check_contents(name: str, read: Read, crops: Crops) -> None:
    """Ends the program where a format does not give back what was written."""
    found = [bytes(image) for image in read(range(len(crops.images)))]
    same = found == crops.images if FORMATS[name].random_access else Counter(found) == Counter(crops.images)
    if not same:
        raise SystemExit(f"{name} does not give back the images that were written: there is nothing to compare")


def endlessly(read: Read, order: Sequence[int]) -> Iterator[Encoded]:
    """Epoch after epoch."""
    return chain.from_iterable(map(read, repeat(order)))


def read_some(images: Iterator[Encoded]) -> None:
    """Reads the next images as `bytes`: what is a view is copied, what is `bytes` is not."""
    deque(map(bytes, islice(images, IMAGES_A_TURN)), maxlen=0)


def decode_some(images: Iterator[Encoded]) -> None:
    """Reads and decodes the next images into one buffer."""
    out = np.empty((CROP_SIZE, CROP_SIZE, 3), np.uint8)
    for image in islice(images, IMAGES_A_TURN):
        simplejpeg.decode_jpeg(image, "RGB", buffer=out)


def measure(scratch: Path, crops: Crops, names: Sequence[str], turns: int) -> dict[str, dict[str, Any]]:
    """Everything, by format."""
    FORMATS[BASELINE].write(scratch / SOURCE, crops)
    numbers = count()
    folders: dict[str, Path] = {}

    def write(name: str) -> None:
        folders[name] = scratch / f"packed-{next(numbers)}"
        FORMATS[name].write(folders[name], crops)

    writing = time_in_turns({name: partial(write, name) for name in names}, dict.fromkeys(names, WRITES))
    os.sync()
    order = np.random.default_rng(0).permutation(len(crops.images)).tolist()
    # Before this process maps the files: mapped pages cannot be evicted.
    epochs = {name: in_fresh_processes(first_epoch, name, folders[name], order) for name in names}
    reads = {name: FORMATS[name].open(folders[name]) for name in names}
    for name, read in reads.items():
        check_contents(name, read, crops)
    images = {name: endlessly(reads[name], order) for name in names}
    reading = time_in_turns({name: partial(read_some, images[name]) for name in names}, dict.fromkeys(names, turns))
    decoding = time_in_turns({name: partial(decode_some, images[name]) for name in names}, dict.fromkeys(names, turns))
    first = {name: summarise(seconds) for name, seconds in epochs.items()}
    return {
        name: {
            "random_access": FORMATS[name].random_access,
            "write": speed(writing, name, len(crops.images)),
            "first_epoch": speed(first, name, len(crops.images)),
            "read": speed(reading, name, IMAGES_A_TURN),
            "read_and_decode": speed(decoding, name, IMAGES_A_TURN),
        }
        | room(name, folders[name], crops)
        for name in names
    }


def room(name: str, folder: Path, crops: Crops) -> dict[str, float]:
    """What a format takes on the disk, and what to open it takes."""
    looks = in_fresh_processes(first_look, name, folder, 0)
    files = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return {
        "files": len(files),
        "bytes": sum(files),
        "size_over_jpegs": sum(files) / sum(map(len, crops.images)),
        "open_seconds": statistics.median(look.seconds for look in looks),
        "open_memory_bytes": statistics.median(look.memory_bytes for look in looks),
    }


def speed(timings: Mapping[str, Timing], name: str, images: int) -> dict[str, float]:
    """Images a second: median and quartiles, and the ratio to the baseline."""
    median, low, high, _ = timings[name]
    return {
        "images_a_second": images / median,
        "first_quartile": images / high,
        "third_quartile": images / low,
        "ratio": timings[BASELINE].median / median,
    }


def print_figures(figures: Mapping[str, Mapping[str, Any]], absent: Mapping[str, str]) -> None:
    """Two tables: what training sees, and what the disk sees."""

    def show(entry: Mapping[str, float]) -> str:
        return f"{entry['images_a_second']:,.0f} ({entry['ratio']:.2f} x)"

    rest = [[name, reason, "", "", ""] for name, reason in absent.items()]
    rows = [
        [
            name,
            show(entry["read"]),
            show(entry["read_and_decode"]),
            show(entry["first_epoch"]),
            "yes" if entry["random_access"] else "no",
        ]
        for name, entry in figures.items()
    ]
    columns = ["format", "read, images/s", "read and decode, images/s", "first epoch, images/s", "any row at any time"]
    print_table(columns, rows + rest)
    print()
    rows = [
        [
            name,
            show(entry["write"]),
            f"{entry['size_over_jpegs']:.3f}",
            f"{entry['files']:,}",
            f"{1e3 * entry['open_seconds']:.1f}",
            f"{entry['open_memory_bytes'] / 2**20:.1f}",
        ]
        for name, entry in figures.items()
    ]
    columns = ["format", "write, images/s", "size / JPEGs", "files", "open and read one, ms", "memory for that, MiB"]
    print_table(columns, rows)


def usable(names: Iterable[str]) -> tuple[list[str], dict[str, str]]:
    """The formats that can be measured here, and why the others cannot."""
    ready, absent = [], {}
    for name in names:
        try:
            FORMATS[name].check()
            ready.append(name)
        except UnavailableError as reason:
            absent[name] = str(reason)
    return ready, absent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("datasets/lfw/aligned_112"), help="a folder of identities")
    parser.add_argument("--images", type=int, help="take so many, evenly spread over the folder; by default all")
    parser.add_argument(
        "--turns", type=int, default=41, help=f"how often {IMAGES_A_TURN:,} images are read, and read and decoded"
    )
    parser.add_argument("--scratch", type=Path, help="where the files are written; by default the system's")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    if arguments.turns < 2 or (arguments.images is not None and arguments.images < 1):
        parser.error("a spread needs at least 2 turns, and a figure at least 1 image")
    warnings.simplefilter("ignore")
    jpegs = load_jpegs(arguments.root, arguments.images)
    names, absent = usable(FORMATS)
    facts = machine(installed(["pyarrow", "lmdb", "webdataset", "litdata", "simplejpeg"]))
    print_header(what_was_read(arguments.root, jpegs), facts)
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        figures = measure(Path(scratch), Crops.of(jpegs), names, arguments.turns)
    print_figures(figures, absent)
    write_json(arguments.json, {"machine": facts, "images": len(jpegs), "formats": figures, "unavailable": absent})


if __name__ == "__main__":
    main()
