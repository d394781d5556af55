"""The training benchmarks run, tiny and on the CPU, and their figures hang together. What they time is not looked at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import cores
import end_to_end
import flat_steps
import training_step
from facelit.heads import SoftmaxHead, TripletHead
from facelit.optim import move_centers

# At the end: some scripts are named as other modules are.
from harness import device_profile, plain_training, roofline, run_config, training_setup


@pytest.fixture(autouse=True)
def small_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's rate is not looked at: products that take no time."""
    monkeypatch.setitem(roofline._SIZES, "cpu", (64,))


def run_script(main: Any, tmp_path: Path, *options: object) -> dict[str, Any]:
    """Runs a script's `main`; returns what it writes as JSON."""
    path = tmp_path / "figures.json"
    main([*map(str, options), "--device", "cpu", "--threads", "1", "--json", str(path)])
    figures: dict[str, Any] = json.loads(path.read_text())
    return figures


def test_flops_of_a_network() -> None:
    """A linear layer on 3 x 112 x 112 values: two operations a weight, thrice in training but for the images' gradient."""
    size = 3 * 112 * 112
    network = nn.Sequential(nn.Flatten(), nn.Linear(size, 5), nn.Linear(5, 7))
    flops = roofline.count_flops(network)
    assert flops.forward == 2 * size * 5 + 2 * 5 * 7
    assert flops.training == 2 * (2 * size * 5) + 3 * (2 * 5 * 7)
    assert next(network.parameters()).device.type == "cpu"


def test_flops_of_vgg16() -> None:
    """As worked out by hand: 7.7 GFLOP forward, about 23 in training."""
    flops = roofline.count_flops(training_setup.make_backbone("vgg16", 1.0))
    assert flops.forward == pytest.approx(7.72e9, rel=0.01)
    assert flops.training == pytest.approx(3 * flops.forward, rel=0.02)


def test_flops_of_heads() -> None:
    assert roofline.head_flops(SoftmaxHead(100, 16), batch=8, embedding_dim=16) == 3 * 2 * 8 * 16 * 100
    assert roofline.head_flops(TripletHead(), batch=8, embedding_dim=16) == 3 * 2 * 8 * 16 * 8


def test_matrix_rate_is_the_best_of_all() -> None:
    rate = roofline.measure_matrix_rate(torch.device("cpu"), torch.float32, sizes=(8, 64), repeats=2)
    assert rate.size in (8, 64)
    assert rate.flops_per_second > 0


@pytest.mark.parametrize(
    ("spans", "share"),
    [
        ([], 0.0),
        ([(0, 10)], 0.0),
        ([(0, 4), (6, 10)], 0.2),
        ([(6, 10), (0, 4), (1, 3)], 0.2),  # in any order, one inside another
        ([(0, 5), (3, 8), (9, 10)], 0.1),
    ],
)
def test_idle_share(spans: list[tuple[float, float]], share: float) -> None:
    assert device_profile.idle_share(spans) == pytest.approx(share)


def test_dense_centers_move_as_the_sparse_ones() -> None:
    """The baseline does the same work: eq. 4 of the paper, on every center."""
    setting = training_setup.Setting("vgg16", "center", 6, 4, 0.01, "32", "cpu")
    plain = plain_training.PlainTraining(setting)
    expected = plain.centers.clone()
    embeddings, labels = torch.randn(4, 512), torch.tensor([1, 3, 3, 5])
    plain._center_loss(embeddings, labels)
    plain._move_centers(embeddings, labels)
    move_centers(expected, labels, embeddings, alpha=0.5)
    torch.testing.assert_close(plain.centers, expected)


def test_memory_crops_fill_balanced_batches() -> None:
    """Few images of many identities: four of each, with labels that the head has."""
    source = training_setup.MemoryCrops(batch=8, num_identities=1000)
    labels, counts = np.unique(source.labels, return_counts=True)
    assert set(counts) == {4}
    assert labels.min() >= 0
    assert labels.max() < 1000
    assert source.num_identities == 1000


def test_training_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--heads", "center", "triplet", "--identities", 8, "--batch", 8, "--width", 0.01, "--turns", 2]
    profile = ["--no-memory", "--profile", "--out", tmp_path / "profiles"]
    figures = run_script(training_step.main, tmp_path, *options, *profile)
    center, triplet = figures["rows"]
    assert [row["head"] for row in figures["rows"]] == ["center", "triplet"]
    for row in figures["rows"]:
        assert row["images_per_second"] == pytest.approx(8 / row["step"]["median"])
        assert row["share_of_peak"] == pytest.approx(row["flops_per_second"] / figures["peak_flops_per_second"])
        assert row["ratio"]["first_quartile"] <= row["ratio"]["median"] <= row["ratio"]["third_quartile"]
    assert "center optimizer" in center["parts"]
    assert "center optimizer" not in triplet["parts"]
    assert len(list((tmp_path / "profiles").glob("*-ops.txt"))) == 2
    json.loads((tmp_path / "profiles" / "vgg16_bn-center-8-trace.json").read_text())
    assert "vgg16_bn, center, 8" in capsys.readouterr().out


def test_baseline_without_memory_for_it_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_step, "available_bytes", lambda: 1000)
    options = ["--heads", "center", "--identities", 8, "--batch", 4, "--width", 0.01, "--turns", 2, "--no-memory"]
    figures = run_script(training_step.main, tmp_path, *options)
    assert figures["rows"][0]["ratio"] is None
    assert "the baseline is skipped" in capsys.readouterr().out


def test_flat_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The real command line; the recorder sees each step, and none between two epochs is timed."""
    options = ["--steps", 80, "--width", 0.01, "--batch", 4, "--epoch-steps", 40, "--out", tmp_path]
    figures = run_script(flat_steps.main, tmp_path, *options)
    assert figures["first"]["step"]["repeats"] == 15
    assert figures["growth_mb"] == pytest.approx((figures["last"]["resident"] - figures["first"]["resident"]) / 1e6)
    assert figures["growth_since_second_epoch_mb"] is not None  # 80 steps are two epochs
    assert (tmp_path / "flat-steps.png").stat().st_size > 1000
    assert "resident memory" in capsys.readouterr().out


def test_cores(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        cores, "seconds_per_step", lambda _, processes, threads: 6 / (processes * threads) - 0.5 * threads
    )
    path = tmp_path / "figures.json"
    cores.main(["--cores", "2", "--batch", "10", "--turns", "2", "--json", str(path)])
    assert [figure["median"] for figure in json.loads(path.read_text())["figures"]] == [5.5, 2, 2.5]
    printed = capsys.readouterr().out
    assert "1 process, 2 threads" in printed
    assert "2.20 x" in printed
    with pytest.raises(SystemExit):
        cores.main(["--cores", "2", "--batch", "9"])


def test_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--width", 0.01, "--batch", 4, "--identities", 8, "--drawn", 16, "--steps", 3, "--warmup", 2]
    figures = run_script(end_to_end.main, tmp_path, *options, "--tiny-steps", 0, "--turns", 2)
    (row,) = figures["rows"]
    bare = row["bare loop"]
    assert bare["overhead_share"]["median"] == 0
    assert row["fit"]["step"]["repeats"] == 2
    assert row["checkpoint_seconds"] > 0
    assert row["loader_images_per_second"] > 0
    printed = capsys.readouterr().out
    for loop in end_to_end.LOOPS:
        assert f"| {loop} " in printed


@pytest.mark.parametrize("compiled", [False, True])
def test_fit_is_compiled_as_the_bare_loop_is(tmp_path: Path, compiled: bool) -> None:
    setting = training_setup.Setting("vgg16", "center", 6, 4, 0.01, "32", "cpu", compiled=compiled)
    assert run_config.run_config(setting, tmp_path, {}, 1, {})["model"]["compile"] is compiled


def test_repeated_crops(tmp_path: Path) -> None:
    """Each stored image comes again and again, under labels of as many identities as asked for."""
    packed = end_to_end.make_pack(None, 8, tmp_path)
    crops = training_setup.RepeatedCrops(str(packed), num_images=40, identities_of_set=5)
    assert len(crops) == 40
    assert crops.num_identities == 5
    assert np.array_equal(crops.image(3), crops.image(3 + 8))
    assert not np.array_equal(crops.image(3), crops.image(4))
    assert set(crops.labels.tolist()) == set(range(5))
