"""JPEG decoders for crops: from a file's bytes in memory to a uint8 RGB array, on one thread.

The baseline is PIL. Every decoder's pixels are compared with PIL's. Decoders that are not installed, and nvJPEG where there is
no GPU, are rows without figures. facelit itself needs simplejpeg and PIL; for the others:

    pip install torchcodec opencv-python-headless
    python benchmarks/jpeg_decoders.py [--root datasets/lfw/aligned_112] [--json FILE]
"""

from __future__ import annotations

import argparse
import io
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image

from facelit.storage import CROP_SIZE, decode_crop, list_images
from reporting import machine, print_header, print_table, time_in_turns, write_json

BASELINE = "PIL"
CUDA_BATCH = 256
MADE_UP, MADE_UP_IDENTITIES = 1_000, 100

Pixels = npt.NDArray[np.uint8]
Decoder = Callable[[Sequence[bytes]], Iterator[Any]]
"""Decodes many crops, one after the other: uint8 RGB arrays of shape (height, width, 3), to be used at once."""


class UnavailableError(Exception):
    """Why a decoder has no figures here."""


class Pixelwise(NamedTuple):
    """How a decoder's pixels differ from PIL's: the share of images that are equal, and the largest difference."""

    equal_share: float
    max_difference: int


def load_jpegs(root: Path, limit: int | None = None) -> dict[str, bytes]:
    """The JPEGs of a folder of identities by name (`identity/file`); made-up crops where the folder is absent.

    Args:
        root: `root/<identity>/<image>.jpg`.
        limit: Take this many, evenly spread over the folder.
    """
    paths = [path for path in list_images(root) if path.suffix.lower() in (".jpg", ".jpeg")]
    if not paths:
        return make_up_jpegs(min(limit or MADE_UP, MADE_UP))
    chosen = np.linspace(0, len(paths), min(limit or len(paths), len(paths)), endpoint=False).astype(int)
    return {paths[row].relative_to(root).as_posix(): paths[row].read_bytes() for row in chosen}


def make_up_jpegs(count: int) -> dict[str, bytes]:
    """Smooth noise as 112x112 JPEGs of quality 90, about as large as crops of faces are."""
    rng = np.random.default_rng(0)
    crops: dict[str, bytes] = {}
    for number in range(count):
        image = Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).resize(
            (112, 112), Image.Resampling.BICUBIC
        )
        file = io.BytesIO()
        image.save(file, "JPEG", quality=90)
        crops[f"identity_{number % MADE_UP_IDENTITIES:03d}/{number:06d}.jpg"] = file.getvalue()
    return dict(sorted(crops.items()))


def what_was_read(root: Path, jpegs: Mapping[str, bytes]) -> str:
    """For a heading: how many crops, of what size, and from where."""
    mean = sum(map(len, jpegs.values())) / len(jpegs)
    source = f"of {root.resolve().parent.name}/{root.name}" if root.is_dir() else f"made up, as {root} is absent"
    return f"{len(jpegs):,} crops {source}, {mean:,.0f} bytes on average"


def module(name: str, package: str | None = None) -> Any:
    """Imports a module that facelit does not depend on; raises `UnavailableError` where it is not installed."""
    try:
        return import_module(name)
    except ImportError:
        raise UnavailableError(f"{package or name} is not installed") from None


def one_by_one(decode: Callable[[bytes], Pixels]) -> Decoder:
    """A decoder of many from a decoder of one."""
    return lambda jpegs: map(decode, jpegs)


def pil() -> Decoder:
    return one_by_one(lambda data: np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def torchvision_io() -> Decoder:
    torch, io_module = module("torch"), module("torchvision.io", "torchvision")
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", ".*(decoding and encoding capabilities|not writable)")

    def decode(data: bytes) -> Pixels:
        tensor = io_module.decode_jpeg(torch.from_numpy(np.frombuffer(data, np.uint8)), mode="RGB")
        pixels: Pixels = tensor.permute(1, 2, 0).numpy()
        return pixels

    return one_by_one(decode)


def torchcodec() -> Decoder:
    torch, decoders = module("torch"), module("torchcodec.decoders", "torchcodec")
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", ".*not writable")

    def decode(data: bytes) -> Pixels:
        tensor = decoders.decode_jpeg(torch.from_numpy(np.frombuffer(data, np.uint8)))
        pixels: Pixels = tensor.permute(1, 2, 0).numpy()
        return pixels

    return one_by_one(decode)


def torchcodec_cuda() -> Decoder:
    """By nvJPEG. The pixels stay on the GPU, as training wants them there."""
    torch, decoders = module("torch"), module("torchcodec.decoders", "torchcodec")
    if not torch.cuda.is_available():
        raise UnavailableError("no CUDA device")

    def decode(jpegs: Sequence[bytes]) -> Iterator[Any]:
        for start in range(0, len(jpegs), CUDA_BATCH):
            yield from decoders.decode_jpeg(list(jpegs[start : start + CUDA_BATCH]), device="cuda")

    return decode


def simplejpeg_new_array() -> Decoder:
    return one_by_one(lambda data: simplejpeg.decode_jpeg(data, "RGB"))


def simplejpeg_into_buffer() -> Decoder:
    out = np.empty((CROP_SIZE, CROP_SIZE, 3), np.uint8)
    return one_by_one(lambda data: simplejpeg.decode_jpeg(data, "RGB", buffer=out))


def facelit_decode_crop() -> Decoder:
    out = np.empty((CROP_SIZE, CROP_SIZE, 3), np.uint8)
    return one_by_one(lambda data: decode_crop(data, "a crop", out=out))


def opencv() -> Decoder:
    cv2 = module("cv2", "opencv-python-headless")
    cv2.setNumThreads(1)

    def decode(data: bytes) -> Pixels:
        pixels: Pixels = cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
        return pixels

    return one_by_one(decode)


def opencv_rgb() -> Decoder:
    cv2 = module("cv2", "opencv-python-headless")
    cv2.setNumThreads(1)
    if not hasattr(cv2, "IMREAD_COLOR_RGB"):
        raise UnavailableError("IMREAD_COLOR_RGB needs OpenCV 4.11 or newer")

    def decode(data: bytes) -> Pixels:
        pixels: Pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
        return pixels

    return one_by_one(decode)


DECODERS: dict[str, Callable[[], Decoder]] = {
    BASELINE: pil,
    "torchvision.io": torchvision_io,
    "TorchCodec": torchcodec,
    "OpenCV, BGR to RGB": opencv,
    "OpenCV, IMREAD_COLOR_RGB": opencv_rgb,
    "simplejpeg": simplejpeg_new_array,
    "simplejpeg into a buffer": simplejpeg_into_buffer,
    "facelit's decode_crop into a buffer": facelit_decode_crop,
    f"TorchCodec on CUDA, batches of {CUDA_BATCH}": torchcodec_cuda,
}


def to_host(pixels: Any) -> Pixels:
    """A CUDA tensor of shape (3, height, width) as the others' arrays; theirs as they are."""
    return pixels if isinstance(pixels, np.ndarray) else np.asarray(pixels.permute(1, 2, 0).cpu())


def compare(found: Iterator[Any], expected: Iterator[Any]) -> Pixelwise:
    """Compares decoded crops with PIL's."""
    differences = [
        int(np.abs(to_host(ours).astype(np.int16) - theirs).max()) for ours, theirs in zip(found, expected, strict=True)
    ]
    return Pixelwise(differences.count(0) / len(differences), max(differences))


def run(decode: Decoder, jpegs: Sequence[bytes]) -> None:
    """Decodes all, and keeps none."""
    deque(decode(jpegs), maxlen=0)


def installed(packages: Sequence[str]) -> list[str]:
    """Those of the packages that are installed."""
    found = []
    for package in packages:
        try:
            version(package)
            found.append(package)
        except PackageNotFoundError:
            continue
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("datasets/lfw/aligned_112"), help="a folder of identities")
    parser.add_argument("--images", type=int, default=2_000, help="crops to decode, evenly spread over the folder")
    parser.add_argument("--repeats", type=int, default=11, help="rounds over all crops")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    if arguments.repeats < 2 or arguments.images < 1:
        parser.error("a spread needs at least 2 repeats, and a figure at least 1 image")
    jpegs = load_jpegs(arguments.root, arguments.images)
    facts = machine(installed(["pillow", "torchvision", "torchcodec", "opencv-python-headless", "simplejpeg"]))
    print_header(what_was_read(arguments.root, jpegs), facts)

    encoded = list(jpegs.values())
    decoders, absent = available(DECODERS)
    pixelwise = {name: compare(decode(encoded), decoders[BASELINE](encoded)) for name, decode in decoders.items()}
    timings = time_in_turns(
        {name: partial(run, decode, encoded) for name, decode in decoders.items()},
        dict.fromkeys(decoders, arguments.repeats),
    )
    figures: dict[str, dict[str, Any]] = {}
    for name, timing in timings.items():
        per_crop = [1e6 * seconds / len(encoded) for seconds in timing[:3]]
        figures[name] = {
            "microseconds_a_crop": dict(zip(("median", "first_quartile", "third_quartile"), per_crop, strict=True)),
            "crops_a_second": len(encoded) / timing.median,
            "speed_over_pil": timings[BASELINE].median / timing.median,
        } | pixelwise[name]._asdict()
    print_table(
        [
            "decoder",
            "microseconds a crop (quartiles)",
            "crops/s",
            "speed / PIL's",
            "equal to PIL",
            "largest difference",
        ],
        [row(name, figures.get(name), absent) for name in DECODERS],
    )
    write_json(arguments.json, {"machine": facts, "crops": len(encoded), "decoders": figures, "unavailable": absent})


def available(decoders: Mapping[str, Callable[[], Decoder]]) -> tuple[dict[str, Decoder], dict[str, str]]:
    """The decoders that can run here, and why the others cannot."""
    ready: dict[str, Decoder] = {}
    absent: dict[str, str] = {}
    for name, make in decoders.items():
        try:
            ready[name] = make()
        except UnavailableError as reason:
            absent[name] = str(reason)
    return ready, absent


def row(name: str, figures: Mapping[str, Any] | None, absent: Mapping[str, str]) -> list[str]:
    """A decoder's row of the table."""
    if figures is None:
        return [name, absent[name], "", "", "", ""]
    micros = figures["microseconds_a_crop"]
    return [
        name,
        f"{micros['median']:.1f} ({micros['first_quartile']:.1f} to {micros['third_quartile']:.1f})",
        f"{figures['crops_a_second']:,.0f}",
        f"{figures['speed_over_pil']:.2f}",
        f"{100 * figures['equal_share']:.1f} %",
        str(figures["max_difference"]),
    ]


if __name__ == "__main__":
    main()
