"""The inputs of the cost model: data sets, networks, machines, and the source of each figure."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

from cost_model.model import Backbone, Link, Machine


class Dataset(NamedTuple):
    """A training set: its numbers of images and identities."""

    name: str
    images: int
    identities: int


DATASETS = (
    Dataset("VGGFace2", 3_140_000, 8_631),
    Dataset("MS1MV2", 5_800_000, 85_742),
    Dataset("Glint360K", 17_000_000, 360_232),
    Dataset("WebFace42M", 42_500_000, 2_059_906),
)
GPUS = (1, 2, 4, 8, 16, 32, 64)

# For crops of 112x112 and embeddings of 512, counted by count.py; a test counts again.
BACKBONES = {
    "vgg16": Backbone("VGG16", 7_715_258_368, 35_690_816, (10_682_880, 18_318_336), 802_816),
    "vgg16_bn": Backbone("VGG16-BN", 7_715_258_368, 35_699_264, (17_481_984, 31_899_648), 802_816),
    "resnet50": Backbone("ResNet-50", 2_153_799_680, 24_557_120, (11_247_744, 21_987_840), 200_704),
    "iresnet50": Backbone("IResNet-50", 12_618_661_888, 43_590_848, (35_514_624, 70_952_960), 802_816),
    "iresnet100": Backbone("IResNet-100", 24_179_212_288, 65_156_160, (56_080_896, 112_022_528), 802_816),
}

_H200 = Machine(
    name="8 x H200 a node, NVLink inside, 8 x 400 Gb/s InfiniBand between nodes",
    matmul=790e12,
    efficiency=0.45,
    head_matmul=50e12,
    memory=141e9,
    reserved=2e9,
    memory_bandwidth=3.8e12,
    first_touch=math.inf,
    gpus_per_node=8,
    intra=Link(360e9, 10e-6),
    inter=Link(320e9, 20e-6),
    overlap=0.8,
    crops_per_worker=9_510,
    workers=4,
    max_workers=16,
)
MACHINES = {
    "h200": _H200,
    "h200-ethernet": replace(
        _H200, name="8 x H200 a node, NVLink inside, one 100 Gb/s Ethernet between nodes", inter=Link(10e9, 50e-6)
    ),
    "24gb": Machine(
        name="8 cards of 24 GB a node, PCIe 4.0 inside, one 25 Gb/s Ethernet between nodes",
        matmul=140e12,
        efficiency=0.45,
        head_matmul=50e12,
        memory=24e9,
        reserved=1.5e9,
        memory_bandwidth=0.8e12,
        first_touch=math.inf,
        gpus_per_node=8,
        intra=Link(8e9, 20e-6),
        inter=Link(2.5e9, 50e-6),
        overlap=0.8,
        crops_per_worker=9_510,
        workers=2,
        max_workers=8,
    ),
}


def input_rows(machine: Machine) -> list[list[str]]:
    """Every figure of a machine: its value, whether it was measured, and the command to measure it."""
    m, check = machine, "`scaling.py --check --device cuda`"
    nccl = "NCCL's `all_reduce_perf -b 8 -e 1G -f 2`"
    measured = "measured before this project" if m.matmul == _H200.matmul else "assumed: 85 % of the data sheet"
    return [
        ["bf16 matrix products", f"{m.matmul / 1e12:.0f} TFLOP/s", measured, check],
        ["share of it that backbones reach", f"{m.efficiency:.2f}", "assumed", check],
        ["float32 products of the head", f"{m.head_matmul / 1e12:.0f} TFLOP/s", "assumed: three quarters or less of the data sheet", check],
        ["memory of a GPU, reserved of it", f"{m.memory / 1e9:.0f} GB, {m.reserved / 1e9:.1f} GB", "data sheet, assumed", "`nvidia-smi`"],
        ["memory bandwidth", f"{m.memory_bandwidth / 1e12:.1f} TB/s", "assumed: 80 % of the data sheet", check],
        ["link between a node's GPUs, for each", _link(m.intra), "assumed", nccl],
        ["link out of a node, all cards together", _link(m.inter), "assumed: 80 % of the wire", f"{nccl}, on two nodes"],
        ["share of the backward that hides an all-reduce", f"{m.overlap:.1f}", "assumed", "a profile of `fit` on two GPUs"],
        ["crops/s of a loader process, packed", f"{m.crops_per_worker:,.0f}", "measured, one worker on an Intel Xeon", "`loading.py`"],
        ["loader processes for each GPU, at most", f"{m.workers}, {m.max_workers}", "assumed", "`nproc`"],
    ]  # fmt: skip


def _link(link: Link) -> str:
    return f"{link.bandwidth / 1e9:g} GB/s, {1e6 * link.latency:.0f} µs"
