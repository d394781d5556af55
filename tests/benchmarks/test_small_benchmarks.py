"""Triplet mining, verification, augmentation and start-up: the baselines do the same as facelit, and the scripts run."""

from __future__ import annotations

import itertools
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import augmentation
import image_sizes
import long_runs
import startup
import triplet_mining
import verification_run
from facelit.checkpoints import read_checkpoint
from facelit.data.batches import as_tensor
from facelit.errors import FacelitError
from harness.reporting import Timing

CPU = torch.device("cpu")


def run(monkeypatch: pytest.MonkeyPatch, module: object, json_file: Path, *options: str) -> dict[str, object]:
    """The script's own main, and what it wrote; torch's threads stay as they are."""
    threads = torch.get_num_threads()
    monkeypatch.setattr(sys, "argv", ["script", *options, "--json", str(json_file)])
    try:
        module.main()  # type: ignore[attr-defined]
    finally:
        torch.set_num_threads(threads)
    figures: dict[str, object] = json.loads(json_file.read_text())
    return figures


def literal_triplets(rule: str, distances: np.ndarray, labels: np.ndarray, margin: float) -> set[tuple[int, int, int]]:
    """By filtering every triplet there is."""
    everyone = range(len(labels))
    candidates = [
        (a, p, n)
        for a, p, n in itertools.product(everyone, repeat=3)
        if a != p and labels[a] == labels[p] and labels[n] != labels[a]
    ]
    if rule == "hard":
        candidates = [
            (a, p, n)
            for a, p, n in candidates
            if distances[a, p] == max(distances[a, q] for b, q, _ in candidates if b == a)
            and distances[a, n] == min(distances[a, m] for b, _, m in candidates if b == a)
        ]
    active = {(a, p, n) for a, p, n in candidates if distances[a, n] < distances[a, p] + margin}
    if rule == "semihard":
        semi = {(a, p, n) for a, p, n in active if distances[a, n] > distances[a, p]}
        return {
            (a, p, n)
            for a, p, n in semi
            if distances[a, n] == min(distances[a, m] for b, q, m in semi if (b, q) == (a, p))
        }
    return active


@pytest.mark.parametrize("rule", triplet_mining.RULES)
def test_the_loop_lists_the_triplets_of_the_rule(rule: triplet_mining.Rule) -> None:
    embeddings, labels = triplet_mining.make_batch(12, CPU)
    distances = triplet_mining.squared_distances(embeddings).detach()
    listed = triplet_mining.list_triplets(rule, distances.tolist(), labels.tolist())
    assert listed
    assert set(listed) == literal_triplets(rule, distances.double().numpy(), labels.numpy(), triplet_mining.MARGIN)
    assert len(set(listed)) == len(listed)


@pytest.mark.parametrize("rule", triplet_mining.RULES)
def test_every_method_gives_the_same_loss_and_gradient(rule: triplet_mining.Rule) -> None:
    losses = triplet_mining.make_losses(rule, 24, loop_limit=64, limit_gb=1)
    assert list(losses) == ["facelit", "loop", *(["cube"] if rule != "hard" else [])]
    gradients, values = [], []
    for loss in losses.values():
        embeddings, labels = triplet_mining.make_batch(24, CPU)
        values.append(triplet_mining.run(loss, embeddings, labels))
        gradients.append(embeddings.grad)
    assert values[0] > 0
    for value, gradient in zip(values, gradients, strict=True):
        assert value == pytest.approx(values[0], abs=1e-6)
        torch.testing.assert_close(gradient, gradients[0], atol=1e-6, rtol=1e-4)


def test_large_batches_leave_the_baselines_out() -> None:
    assert list(triplet_mining.make_losses("all", 2048, loop_limit=256, limit_gb=4)) == ["facelit"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="memory is measured in a forked process")
@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="memory is read from /proc")
def test_memory_is_that_of_the_method_alone() -> None:
    def greedy(embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        megabytes = 40 if len(labels) > 8 else 1
        return embeddings.sum() + torch.ones(megabytes * 2**18).sum()

    embeddings, labels = triplet_mining.make_batch(16, CPU)
    # Earlier work has left the allocator more free memory than the method takes. (A first freed block makes glibc take the
    # next ones from its heap; the last one keeps the heap's end in use.)
    torch.ones(30 * 2**18)
    blocks = [torch.ones(25 * 2**18) for _ in range(3)] + [torch.ones(2**18)]
    del blocks[:3]
    assert 38 < triplet_mining.peak_bytes(greedy, embeddings, labels) / 2**20 < 60


def test_triplet_mining_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--batches", "16", "--repeats", "2", "--loop-limit", "8"]
    figures = run(monkeypatch, triplet_mining, tmp_path / "a.json", *options)
    methods = [(row["rule"], row["method"]) for row in figures["figures"]]  # type: ignore[attr-defined, index]
    assert methods == [(r, m) for r in triplet_mining.RULES for m in ("facelit", "cube") if (r, m) != ("hard", "cube")]
    assert "skipped" in capsys.readouterr().out


def test_grid_is_chosen_on_the_other_folds() -> None:
    # Fold 1 is separated at any threshold in (0.2, 0.8], fold 2 at any in (0.4, 0.6]; the grid starts from above.
    scores = np.array([0.8, 0.2, 0.6, 0.4])
    is_same = np.array([True, False, True, False])
    folds = np.array([1, 1, 2, 2])
    # Fold 1 is judged at 0.6, fold 2 at 0.8, where its genuine pair is rejected.
    np.testing.assert_array_equal(verification_run.grid_accuracies(scores, is_same, folds), [1.0, 0.5])


def test_both_ways_score_the_same_pairs() -> None:
    source = verification_run.RandomCrops(12, 4)
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.AvgPool2d(16), torch.nn.Flatten())
    setting = verification_run.Setting(network, CPU, False, 5, 0)
    once = verification_run.facelit_way(setting, source)
    twice = verification_run.plain_way(setting, source)
    assert once.shape == twice.shape == (10,)
    # On pairs that the pooled pixels separate, both find all of them: the first of each fold is an image with itself.
    source.second[:] = np.where(source.is_same, source.first, source.second)
    np.testing.assert_array_equal(verification_run.facelit_way(setting, source), np.ones(10))
    np.testing.assert_array_equal(verification_run.plain_way(setting, source), np.ones(10))


def test_a_subset_keeps_the_crops_of_its_pairs() -> None:
    whole = verification_run.RandomCrops(50, 6)
    part = verification_run.Subset(whole, 2)
    assert len(part.first) == 20
    assert part.is_same.tolist() == [True, False] * 10
    rows = [row for fold in range(10) for row in (6 * fold, 6 * fold + 3)]
    for number, row in enumerate(rows):
        for mine, theirs in ((part.first, whole.first), (part.second, whole.second)):
            np.testing.assert_array_equal(part.image(mine[number]), whole.image(theirs[row]))


def test_verification_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--pairs-per-fold", "2", "--width", "0.01", "--repeats", "2", "--threads", "1"]
    figures = run(monkeypatch, verification_run, tmp_path / "a.json", *options)
    assert set(figures["ways"]) == {verification_run.FACELIT, verification_run.PLAIN}  # type: ignore[call-overload]


@pytest.mark.parametrize("name", augmentation.SETTINGS)
def test_every_method_gives_a_changed_batch_in_range(name: str) -> None:
    crops = as_tensor(np.random.default_rng(0).integers(0, 256, (4, 112, 112, 3), np.uint8))
    torch.manual_seed(0)
    plain = crops.float() / 127.5 - 1
    for call in augmentation.make_calls(crops, CPU, name).values():
        batch = call()
        assert (batch.shape, batch.dtype) == (crops.shape, torch.float32)
        assert batch.abs().max() <= 1 + 1e-5
        if name == "flip":
            same = [torch.allclose(x, y, atol=1e-5) for x, y in zip(batch, plain, strict=True)]
            flipped = [torch.allclose(x, y.flip(2), atol=1e-5) for x, y in zip(batch, plain, strict=True)]
            assert all(a != b for a, b in zip(same, flipped, strict=True))


def test_augmentation_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = run(monkeypatch, augmentation, tmp_path / "a.json", "--batch", "2", "--repeats", "2")
    assert set(figures["chains"]) == {"flip", "all"}  # type: ignore[call-overload]


def test_startup_shows_ratios_to_both_baselines() -> None:
    timings = {
        name: Timing(seconds, 0, 0, 2)
        for name, seconds in zip(startup.COMMANDS, (0.1, 2.0, 0.2, 1.0, 3.0), strict=True)
    }
    rows = startup.table_rows(timings)
    assert [row[2:] for row in rows] == [
        ["1.0 x", "0.05 x"], ["20.0 x", "1.00 x"], ["2.0 x", "0.10 x"], ["10.0 x", "0.50 x"], ["30.0 x", "1.50 x"],
    ]  # fmt: skip


def test_startup_commands_run_and_failures_are_shown() -> None:
    startup.run(startup.COMMANDS["python main.py --help"])
    startup.run(startup.COMMANDS["facelit check --help"])
    with pytest.raises(SystemExit, match="ZeroDivisionError"):
        startup.run(["-c", "1 / 0"])


@pytest.mark.parametrize("module", [triplet_mining, verification_run, augmentation, startup])
def test_one_repeat_is_refused(
    module: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run(monkeypatch, module, tmp_path / "a.json", "--repeats", "1")
    assert "at least 2 repeats" in capsys.readouterr().err


def test_image_sizes_are_timed_beside_whole_crops(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    options = ["--width", "0.01", "--batch", "2", "--sizes", "64", "--precisions", "bf16", "--repeats", "2"]
    figures = run(monkeypatch, image_sizes, tmp_path / "sizes.json", *options)["figures"]
    assert [row["case"] for row in figures] == ["112 px, 32", "64 px, bf16"]  # type: ignore[attr-defined]


def test_the_peers_losses_are_equal_where_they_are_said_to_be() -> None:
    peers = pytest.importorskip("peers", exc_type=ImportError)
    for losses in (peers.arcface(10, CPU), peers.triplets("all")):
        assert peers.measure(losses, 16, CPU, repeats=2, equal=True).keys() == {peers.FACELIT, peers.PEER}
    unequal = {**peers.triplets("all"), peers.PEER: peers.triplets("semihard")[peers.PEER]}
    with pytest.raises(SystemExit, match="not comparable"):
        peers.measure(unequal, 16, CPU, repeats=2, equal=True)


def test_what_long_runs_cost(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Checksums are left out of the baselines, and only there; the two processes are not started here."""
    step = {name: Timing(1.0 + n, 0.9, 2.1, 2) for n, name in enumerate((long_runs.BARE, long_runs.SELDOM))}
    monkeypatch.setattr(long_runs, "measure_steps", lambda steps: step)
    monkeypatch.chdir(tmp_path)
    figures = run(monkeypatch, long_runs, tmp_path / "figures.json", "--megabytes", "8", "--repeats", "2")
    assert [*figures] == ["machine", "reading", "writing", "step"]
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]
    assert long_runs.rows(step, long_runs.BARE)[1][2] == "2.000 x"
    path = tmp_path / "some.ckpt"
    torch.save({"state_dict": {"a": torch.arange(1000)}}, path)
    whole = path.read_bytes()
    place = whole.index(torch.arange(500, 504).numpy().tobytes())
    path.write_bytes(whole[:place] + b"\xff" + whole[place + 1 :])
    with pytest.raises(FacelitError):
        read_checkpoint(str(path))
    long_runs.without_checksums(lambda: read_checkpoint(str(path)))
