"""What the user may name, and what they are told otherwise; what runs logged."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from torch.utils.tensorboard.writer import SummaryWriter

from facelit.errors import FacelitError
from facelit.report.runs import read_run
from facelit.report.sources import find
from simulated_scores import simulated, write_log, write_scores


def test_a_checkpoint_finds_its_scores_and_its_run(
    tmp_path: Path, suites: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_log(tmp_path / "run", "step,train/loss\n1,2.5\n")
    checkpoint = run / "checkpoints" / "best.ckpt"
    checkpoint.parent.mkdir()
    checkpoint.write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FacelitError, match=r"no scores of this checkpoint. Measure it .`facelit suites .*best.ckpt"):
        find([str(checkpoint), str(suites / "first")])
    write_scores(suites / "third", simulated("lfw", 2), checkpoint)
    found = find([str(checkpoint)])  # suites/ in the current folder
    assert [one.name for one in found.measured] == ["third"]
    assert [one.folder for one in found.runs] == [run]
    shutil.move(suites, tmp_path / "elsewhere")
    assert [one.name for one in find([str(checkpoint), "elsewhere"]).measured] == ["first", "second", "third"]


def test_what_is_not_ours(tmp_path: Path, suites: Path) -> None:
    (tmp_path / "empty").mkdir()
    write_log(tmp_path / "runs" / "a" / "version_0", "step,loss\n1,1\n")
    for named, message in {
        "nowhere": "does not exist",
        "empty": "neither the folder of a run",
        "runs": "holds 1 run: name them, such as .*version_0",
        "suites/first/lfw.npz": "name the folder that it lies in",
    }.items():
        with pytest.raises(FacelitError, match=message):
            find([str(tmp_path / named)])
    (suites / "first" / "about.json").write_text("{")
    with pytest.raises(FacelitError, match=r"about\.json: this is not JSON"):
        find([str(suites)])


def test_twins_are_called_by_their_folders(tmp_path: Path) -> None:
    for place in ("a", "b"):
        write_scores(tmp_path / place / "net", simulated("lfw", 0))
    found = find([str(tmp_path / "a"), str(tmp_path / "b")])
    assert [one.name for one in found.measured] == [str(tmp_path / place / "net") for place in ("a", "b")]


def test_scores_that_a_run_saved(tmp_path: Path) -> None:
    run = write_log(tmp_path / "run", "step,lfw/accuracy\n1,0.5\n")
    lines = ["fold\tsame\tscore\tfirst\tsecond", "0\t1\t0.5\td/x.jpg\td/y.jpg", "1\t0\t-0.25\td/x.jpg\td/z.jpg"]
    table = run / "lfw-scores.tsv"
    table.write_text("\n".join(lines))
    (run / "config.yaml").write_text("data: {verification: {lfw: {init_args: {root: d}}}}")
    pairs = find([str(run)]).measured[0].sets["lfw"]
    assert pairs.similarities.tolist() == [0.5, -0.25]
    assert pairs.genuine.tolist() == [True, False]
    assert (pairs.folds.tolist(), pairs.first, pairs.root) == ([0, 1], ["x.jpg", "x.jpg"], "d")
    for broken, message in {"nan": "NaN or infinite", "half": "not a table of scores"}.items():
        table.write_text(f"{lines[0]}\n0\t1\t{broken}\ta\tb")
        with pytest.raises(FacelitError, match=f"lfw-scores.tsv: .*{message}"):
            find([str(run)])


def test_runs_are_read_from_tables_and_events(tmp_path: Path) -> None:
    """A resumed run's later values count, blanks are none, and NaN stays."""
    run = tmp_path / "run"
    write_log(run, "epoch,step,train/loss,lfw/accuracy\n0,20,2,\n0,30,nan,0.8\nbroken,,,\n")
    (run / "metrics-1.csv").write_text("epoch,step,train/loss\n0,10,4\n0,20,3\n")
    with SummaryWriter(run) as writer:
        writer.add_scalar("lr", 0.5, 10)
        writer.add_scalar("hp_metric", -1, 0)
    found = read_run(run)
    assert set(found.logged) == {"train/loss", "lfw/accuracy", "lr"}
    assert found.logged["train/loss"].steps == [10, 20, 30]
    np.testing.assert_array_equal(found.logged["train/loss"].values, [4, 2, np.nan])
    assert found.logged["lr"] == ([10], [0.5])
    assert found.sets == ["lfw"]
    (run / "metrics.csv").write_text("epoch,step\n")
    empty = write_log(tmp_path / "stopped", "epoch,step\n")
    with pytest.raises(FacelitError, match="logged nothing yet"):
        read_run(empty)
