"""The speed of an exported network: onnxruntime against torch, both float32 on the CPU.

Two networks with random weights, which do not affect speed (batch normalisation has the statistics of drawn faces): the one from
`configs/demo.yaml`, and the full VGG16 with batch normalisation. Both runtimes get the same uint8 crops in memory and return
embeddings of length 1: normalisation and L2 are included. torch runs eagerly, in channels_last memory, as in facelit; onnxruntime
with its defaults except for the number of threads. They alternate in one process. The largest difference is over all components
of 100 embeddings, in batches of 64 and one by one.

    pip install -e ".[export]"
    python benchmarks/export.py [--json FILE]
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from facelit.backbones import VGG16
from facelit.export import EmbeddingGraph, export_model
from facelit.export.packages import require
from facelit.inference import load
from facelit.pictures.drawn_faces import draw_face
from harness.reporting import Timing, machine, print_header, print_table, time_in_turns, write_json

NETWORKS: dict[str, dict[str, Any]] = {
    "demo (VGG16-BN, width 0.125)": {"batch_norm": True, "width": 0.125, "embedding_dim": 128},
    "VGG16-BN, full": {"batch_norm": True},
}
BATCHES, THREADS = (1, 64), (1, 2)
NUM_CROPS, CALLS_OF_ONE = 100, 16
TORCH, ONNX = "torch", "onnxruntime"

Crops = npt.NDArray[np.uint8]
Embed = Callable[[Crops], npt.NDArray[np.float32]]


class Row(NamedTuple):
    """One line of the table; timings are for one batch of `batch` crops."""

    network: str
    batch: int
    threads: int
    timings: dict[str, Timing]
    difference: float

    def rate(self, name: str) -> float:
        """Crops per second."""
        return self.batch / self.timings[name].median


def make_checkpoint(path: Path, arguments: dict[str, Any], crops: Crops) -> None:
    """Writes a checkpoint with random weights and, for batch normalisation, the crops' statistics."""
    torch.manual_seed(0)
    network = VGG16(**arguments)
    with torch.no_grad():
        network.train()(torch.from_numpy(crops[:16]).permute(0, 3, 1, 2).float().sub(127.5).div(127.5))
    configured = {"class_path": "facelit.backbones.VGG16", "init_args": arguments}
    state = {f"backbone.{name}": value for name, value in network.state_dict().items()}
    torch.save({"state_dict": state, "hyper_parameters": {"backbone": configured}}, path)


def torch_embedder(checkpoint: Path, threads: int) -> Embed:
    """The checkpoint opened by `facelit.load`, with the exported file's input."""
    model = load(checkpoint, device="cpu")
    graph = EmbeddingGraph(model.backbone)

    def embed(images: Crops) -> npt.NDArray[np.float32]:
        torch.set_num_threads(threads)
        with torch.inference_mode():
            batch = torch.from_numpy(images).contiguous(memory_format=torch.channels_last)
            embeddings: npt.NDArray[np.float32] = graph(batch).numpy()
        return embeddings

    return embed


def onnx_embedder(path: Path, threads: int) -> Embed:
    """The file in onnxruntime."""
    onnxruntime = require("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def embed(images: Crops) -> npt.NDArray[np.float32]:
        embeddings: npt.NDArray[np.float32] = session.run(None, {"images": images})[0]
        return embeddings

    return embed


def in_batches(embed: Embed, images: Crops, size: int) -> npt.NDArray[np.float32]:
    """Embeddings of all crops."""
    return np.concatenate([embed(images[start : start + size]) for start in range(0, len(images), size)])


def measure(name: str, arguments: dict[str, Any], crops: Crops, folder: Path, repeats: int) -> list[Row]:
    """Measures one network with all batch sizes and numbers of threads."""
    checkpoint, path = folder / "random.ckpt", folder / "network.onnx"
    make_checkpoint(checkpoint, arguments, crops)
    export_model(load(checkpoint, device="cpu"), path, crops[:4])
    images = np.ascontiguousarray(crops.transpose(0, 3, 1, 2))
    rows = []
    for threads in THREADS:
        embedders = {TORCH: torch_embedder(checkpoint, threads), ONNX: onnx_embedder(path, threads)}
        for batch in BATCHES:
            whole = {key: in_batches(embed, images, batch) for key, embed in embedders.items()}
            calls = CALLS_OF_ONE if batch == 1 else 1
            timings = time_in_turns(
                {key: repeated(embed, images[:batch], calls) for key, embed in embedders.items()},
                dict.fromkeys(embedders, repeats),
            )
            per_batch = {
                key: Timing(one.median / calls, one.first_quartile / calls, one.third_quartile / calls, one.repeats)
                for key, one in timings.items()
            }
            rows.append(Row(name, batch, threads, per_batch, float(abs(whole[TORCH] - whole[ONNX]).max())))
    return rows


def repeated(embed: Embed, images: Crops, calls: int) -> Callable[[], None]:
    """Several calls as one, if one is too short to be timed."""

    def call() -> None:
        for _ in range(calls):
            embed(images)

    return call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7, help="timed rounds")
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS), metavar="NAME")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    if arguments.repeats < 2:
        parser.error("a spread needs at least 2 repeats")
    facts = machine(["torch", "onnxruntime", "onnx", "onnxscript", "numpy"])
    print_header("onnxruntime against torch eager (channels_last), float32, CPU, random weights", facts)
    crops = np.stack([draw_face(0, number // 2, number % 2) for number in range(NUM_CROPS)])
    rows: list[Row] = []
    for name in arguments.networks:
        with tempfile.TemporaryDirectory() as folder:
            rows += measure(name, NETWORKS[name], crops, Path(folder), arguments.repeats)
    columns = ["network", "batch", "threads", "torch", "onnxruntime", "speed-up", "largest difference"]
    print_table(
        columns,
        [
            [
                row.network,
                str(row.batch),
                str(row.threads),
                f"{row.rate(TORCH):,.1f} images/s",
                f"{row.rate(ONNX):,.1f} images/s",
                f"{row.rate(ONNX) / row.rate(TORCH):.2f} x",
                f"{row.difference:.1e}",
            ]
            for row in rows
        ],
    )
    figures = [row._asdict() | {"timings": {k: t._asdict() for k, t in row.timings.items()}} for row in rows]
    write_json(arguments.json, {"machine": facts, "rows": figures})


if __name__ == "__main__":
    main()
