"""The cost model against cases worked by hand, its inputs against counting, and the page against the script."""

from __future__ import annotations

import json
import math
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cost_model.count import count_backbone
from cost_model.inputs import BACKBONES, DATASETS, MACHINES
from cost_model.model import (
    Backbone,
    Job,
    Link,
    Machine,
    all_gather_seconds,
    all_reduce_seconds,
    images_per_second,
    in_groups,
    link,
    memory,
    step,
)
from cost_model.plan import breaks, plan
from facelit.backbones import VGG16, IResNet, TorchvisionBackbone
from scaling import duration, epoch_minutes, main, tables, update
from scaling_check import make_machine
from tiny_run import ROOT
from warm_processes import run

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
NETWORK = Backbone("toy", flops=1000, params=100, saved=(30, 60), largest=5)
JOB = Job(NETWORK, "softmax", identities=20, embedding_dim=8, batch=10, bf16=False, chunked=False)
MACHINE = Machine(
    name="toy",
    matmul=2000,
    efficiency=0.5,
    head_matmul=100,
    memory=1e6,
    reserved=7,
    memory_bandwidth=1000,
    first_touch=math.inf,
    gpus_per_node=2,
    intra=Link(50, 0.5),
    inter=Link(20, 2),
    overlap=0.5,
    crops_per_worker=4,
    workers=1,
    max_workers=4,
)


def test_a_ring_sends_what_the_formula_says() -> None:
    # 4 GPUs, 80 bytes: 6 messages of 20 bytes at 10 bytes/s, 1 s of latency each.
    assert all_reduce_seconds(80, 4, Link(10, 1)) == 6 * (2 + 1)
    assert all_gather_seconds(80, 4, Link(10, 1)) == 3 * (8 + 1)
    assert all_reduce_seconds(80, 1, Link(10, 1)) == all_gather_seconds(80, 1, Link(10, 1)) == 0


def test_past_a_node_the_slowest_stretch_counts() -> None:
    assert link(MACHINE, 2) == Link(50, 0.5)
    assert link(MACHINE, 4) == Link(20, 2)
    assert link(replace(MACHINE, inter=Link(400, 0.1)), 4) == Link(50, 0.5)  # a fast network does not speed up a node


def test_step_of_one_gpu() -> None:
    seconds = step(JOB, MACHINE, 1)
    assert seconds.backbone == 3 * 1000 * 10 / 1000
    # Three products of 10 x 8 x 20, and 11 passes over 10 x 20 float32 logits.
    assert seconds.head == pytest.approx(3 * 2 * 10 * 8 * 20 / 100 + 11 * 4 * 200 / 1000)
    # 5 float32 for each of 100 + 160 parameters.
    assert seconds.optimizer == pytest.approx(20 * 260 / 1000)
    assert seconds.gather == seconds.all_reduce == seconds.exposed == 0
    assert seconds.loader == 10 / 4
    assert seconds.gpu == pytest.approx(30 + 96 + 8.8 + 5.2)
    assert seconds.total == seconds.gpu
    assert step(replace(JOB, checkpointing=True), MACHINE, 1).backbone == 4 * 1000 * 10 / 1000  # one forward more
    assert images_per_second(JOB, replace(MACHINE, crops_per_worker=0.01), 1) == pytest.approx(0.01)  # the loader's


def test_gradients_hide_behind_the_backward_but_for_the_last_bucket() -> None:
    plain = step(JOB, MACHINE, 2)
    # 260 float32 over two GPUs: 2 messages of 520 bytes; all of it is the last bucket, which nothing hides.
    assert plain.all_reduce == pytest.approx(2 * (520 / 50 + 0.5))
    assert plain.exposed == plain.all_reduce
    large = replace(JOB, backbone=replace(NETWORK, params=10**9), batch=1000)
    slow = step(large, MACHINE, 2)
    assert slow.exposed == pytest.approx(slow.all_reduce - 0.5 * 2 * 1000 * 1000 / 1000)


def test_sixteen_bits_halve_what_travels() -> None:
    still = replace(MACHINE, intra=Link(50, 0))
    whole, half = (step(replace(JOB, compressed=c), still, 2).all_reduce for c in (False, True))
    assert half == whole / 2


def test_a_sharded_head_is_neither_reduced_nor_less_work() -> None:
    whole, sharded = (step(replace(JOB, sharded=s), MACHINE, 2) for s in (False, True))
    assert sharded.all_reduce == pytest.approx(2 * (4 * 100 / 2 / 50 + 0.5))  # the backbone's alone
    assert sharded.head == whole.head  # twice the images, half of the identities
    # Embeddings (320 bytes) and labels (80), their gradient over both (640), four numbers for each of 20 images (320).
    assert sharded.gather == pytest.approx((320 / 50 + 0.5) + (80 / 50 + 0.5) + 2 * (320 / 50 + 0.5) + (320 / 50 + 0.5))
    assert whole.gather == 0
    sampled = step(replace(JOB, sharded=True, sample_rate=0.25), MACHINE, 2)
    assert sampled.head == pytest.approx(sharded.head / 4)


def test_centers_and_triplets_gather_embeddings() -> None:
    expected = (320 / 50 + 0.5) + (80 / 50 + 0.5)
    assert step(replace(JOB, head="center"), MACHINE, 2).gather == pytest.approx(expected)
    triplet = step(replace(JOB, head="triplet"), MACHINE, 2)
    assert triplet.gather == pytest.approx(expected)
    assert triplet.head == pytest.approx(6 * 20 * 20 * 8 / 100 + 40 * 4 * 400 / 1000)
    assert triplet.all_reduce == step(replace(JOB, sharded=True), MACHINE, 2).all_reduce  # no weights for identities


def test_memory_of_one_gpu() -> None:
    used = memory(replace(JOB, head="center"), MACHINE, 1)
    assert used.backbone == 3 * 4 * 100
    assert used.head == 3 * 4 * 160
    assert used.centers == 4 * 160
    assert used.buckets == 0
    assert used.activations == 10 * (60 + 2 * 5 * 4)
    assert used.logits == 3 * 4 * 200
    assert used.total == 1200 + 1920 + 640 + 1000 + 2400 + 7


def test_memory_by_options() -> None:
    sixteen = memory(replace(JOB, bf16=True), MACHINE, 1)
    assert (sixteen.backbone, sixteen.activations) == (14 * 100, 10 * (30 + 20))
    two = memory(JOB, MACHINE, 2)
    assert two.buckets == 4 * 160
    sharded = memory(replace(JOB, sharded=True), MACHINE, 2)
    assert (sharded.head, sharded.buckets) == (3 * 4 * 80, 0)
    assert memory(replace(JOB, head="triplet"), MACHINE, 2).logits == 12 * 4 * 20**2
    recomputed = memory(replace(JOB, checkpointing=True), MACHINE, 1)
    assert recomputed.activations == pytest.approx(10 * (20 + 40))


def test_logits_in_groups_need_no_more_memory_with_more_identities() -> None:
    few, many, more = (replace(JOB, chunked=True, batch=256, identities=n) for n in (8_631, 360_232, 2_059_906))
    assert [in_groups(job, 1) for job in (few, many, more)] == [False, True, True]
    assert memory(few, MACHINE, 1).logits == 4 * 8_631 * 2 * 256
    assert memory(many, MACHINE, 1).logits == memory(more, MACHINE, 1).logits == 4 * 2**25
    # Made twice: a product more of three.
    again, kept = (6 * 256 * 8 * 360_232 * factor / 100 for factor in (4 / 3, 1))
    passes = 5 * 4 * 256 * 360_232 / 1000
    difference = step(many, MACHINE, 1).head - step(replace(many, chunked=False), MACHINE, 1).head
    assert difference == pytest.approx(again - kept + passes)


def test_what_breaks_first() -> None:
    fast = replace(MACHINE, head_matmul=1e9, crops_per_worker=1e9, intra=Link(1e9, 0), memory_bandwidth=1e9)
    assert breaks(JOB, fast, 2) == ""
    assert breaks(JOB, replace(fast, crops_per_worker=0.1), 2) == "loader"
    assert breaks(JOB, replace(fast, intra=Link(50, 1)), 2) == "network"
    assert breaks(JOB, replace(fast, head_matmul=100), 1) == "head"
    assert breaks(JOB, replace(fast, memory=3000), 1) == "memory: logits"
    assert breaks(replace(JOB, identities=2000), replace(fast, memory=3e5), 1) == "memory: logits"
    assert breaks(replace(JOB, identities=2000, batch=1), replace(fast, memory=1e5), 1) == "memory: head"
    assert breaks(replace(JOB, batch=100, identities=1), replace(fast, memory=9e3), 1) == "memory: activations"


def test_a_plan_turns_on_what_helps_and_says_what_is_left() -> None:
    fast = replace(MACHINE, head_matmul=1e9, crops_per_worker=1e9, intra=Link(1e9, 0), memory_bandwidth=1e9)
    fed = plan(JOB, replace(fast, crops_per_worker=0.1), 1)
    assert fed.first == "loader"
    assert (fed.machine.workers, fed.options) == (4, ("4 workers",))
    assert fed.left == ""
    decoded = plan(JOB, replace(fast, crops_per_worker=0.01), 1)
    assert decoded.options == ("4 workers", "GPU decoding")
    assert decoded.left == ""
    fits = plan(replace(JOB, identities=2000, batch=1), replace(fast, memory=1.5e5), 2)
    assert (fits.first, fits.options, fits.left) == ("memory: head", ("sharded",), "")
    lonely = plan(replace(JOB, identities=2000, batch=1), replace(fast, memory=1e5), 1)
    assert (lonely.options, lonely.left) == ((), "memory: head")
    assert plan(JOB, fast, 1).options == ()


@pytest.mark.parametrize(
    ("name", "network"),
    [
        ("vgg16", VGG16),
        ("vgg16_bn", lambda: VGG16(batch_norm=True)),
        ("resnet50", TorchvisionBackbone),
        ("iresnet50", IResNet),
        ("iresnet100", lambda: IResNet(100)),
    ],
)
def test_backbones_are_what_counting_gives(name: str, network: type) -> None:
    with torch.device("meta"):
        made = network()
    expected = BACKBONES[name]
    counted = count_backbone(expected.name, made)
    assert (counted.flops, counted.params, counted.largest) == (expected.flops, expected.params, expected.largest)
    assert counted.saved == pytest.approx(
        expected.saved, rel=0.02
    )  # what torch keeps may differ from release to release


def test_constants_are_rates() -> None:
    seconds = {"matmul": 2.0, "backbone": 3.0, "products": 4.0, "stream": 5.0, "fresh": 6.0, "small": 0.5, "large": 8.5}
    machine = make_machine(seconds, replace(JOB, embedding_dim=512), torch.device("cpu"))
    assert machine.matmul == 1024**3
    assert machine.matmul * machine.efficiency == pytest.approx(3 * 1000 * 10 / 3)
    assert machine.head_matmul == 6 * 10 * 512 * 16_384 / 4
    assert machine.memory_bandwidth == 12 * 2**24 / 5
    assert machine.first_touch == 4 * 2**24 / 6
    # Both messages' times come out of the link again.
    for size, taken in ((2**16, 0.5), (2**26, 8.5)):
        assert all_reduce_seconds(size, 2, machine.intra) == pytest.approx(taken, rel=1e-6)


def test_an_epoch_is_the_images_over_the_rate() -> None:
    machine, job = MACHINES["h200"], Job(BACKBONES["vgg16"], "center", 8_631)
    assert epoch_minutes(DATASETS[0], job, machine, 8) == 3_140_000 / images_per_second(job, machine, 8) / 60
    assert [duration(m) for m in (0.5, 5, 150)] == ["30 s", "5.0 min", "2.5 h"]


def test_the_page_shows_what_the_script_prints() -> None:
    page = (BENCHMARKS.parent / "docs" / "scaling.md").read_text()
    assert update(page, tables(Job(BACKBONES["vgg16"], "center", 0), list(MACHINES))) == page


def test_update_replaces_a_table_and_misses_none() -> None:
    page = "a\n<!-- scaling: x -->\n| old |\n| old |\n\nb\n"
    assert update(page, {"x": "| new |\n"}) == "a\n<!-- scaling: x -->\n| new |\n\nb\n"
    with pytest.raises(ValueError, match="y"):
        update(page, {"y": ""})


def test_the_script_writes_tables_and_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = [
        "--machine",
        "24gb",
        "--head",
        "triplet",
        "--out",
        str(tmp_path / "a.png"),
        "--json",
        str(tmp_path / "a.json"),
    ]
    monkeypatch.setattr(sys, "argv", ["scaling.py", *arguments])
    main()
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert "scaling 24gb" in json.loads((tmp_path / "a.json").read_text())


CHECK = """
import sys
from functools import partial
from pathlib import Path
from torch.multiprocessing import start_processes
import scaling_check
scaling_check.spawn = partial(start_processes, start_method="fork")
scaling_check.check(scaling_check.Setting("cpu", 0.01, 8, (20, 300), 2), Path("a.json"))
"""


def test_check_predicts_and_measures(tmp_path: Path) -> None:
    (tmp_path / "check.py").write_text(CHECK)
    folders = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks")])
    done = run(tmp_path / "check.py", cwd=tmp_path, env={**os.environ, "PYTHONPATH": folders})
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "a.json").read_text())
    assert [(row["processes"], row["head"], row["identities"]) for row in figures["steps"]] == [
        (world, *case)
        for world in (1, 2)
        for case in (("softmax", 20), ("center", 20), ("softmax", 300), ("triplet", 0))
    ]
    for row in figures["steps"]:
        assert (row["predicted"]["exposed"] > 0) == (row["processes"] == 2)
        assert row["predicted"]["total"] > 0
        assert len(row["measured"]) == 2
    assert figures["memory"]["predicted"] > 0
