"""The page as a file: what stands in it, what must not, and what is refused."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from facelit.errors import FacelitError
from facelit.tools.report import report
from simulated_scores import simulated, write_log, write_scores

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>'\"&"


def page_of(out: Path, *what: Path, **options: Any) -> str:
    assert report([str(one) for one in what], str(out), **options) == 0
    return (out / "index.html").read_text(encoding="utf-8")


def without_library(page: str) -> str:
    start = page.index("<script>")
    return page[:start] + page[page.index("</script>", start) :]


def test_a_page_of_two_checkpoints(tmp_path: Path, suites: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = page_of(tmp_path / "out", suites)
    figures = [simulated("lfw", seed).evaluate() for seed in (0, 1)]
    for result in figures:
        assert f"{result.accuracy:.4f}</span><small>± {result.accuracy_se:.4f}" in page
    assert "200 genuine and 200 impostor pairs in 10 folds; 3 pairs were left out" in page
    assert "only <span" in page
    assert page.count("data:image/jpeg;base64,") == 2 * 2 * 2 * 8  # checkpoints, kinds, images of a pair, pairs
    assert "MB, one file" in capsys.readouterr().out
    smaller = page_of(tmp_path / "out", suites, no_pictures=True, pairs=3)  # replaces a page of ours
    assert "data:image" not in without_library(smaller)
    assert smaller.count("<figure") == 2 * 2 * 3
    assert re.search(r"title=.p\d+/p\d+_\d.png.>p\d+_\d<", smaller)
    assert "Hardest" not in page_of(tmp_path / "out", suites, pairs=0)


def test_the_page_asks_nobody_for_anything(tmp_path: Path, suites: Path) -> None:
    page = page_of(tmp_path / "out", suites)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    assert "default-src 'none'" in policy.group(1)
    assert "unsafe" not in policy.group(1).replace("style-src 'unsafe-inline'", "")
    rest = without_library(page)
    assert not re.search(r"https?://|@import|url\(|<link|src=(?!\"data:)", rest)


def test_names_are_text_and_nothing_else(tmp_path: Path, faces: Path) -> None:
    """Names of checkpoints, sets, images and groups, options of a configuration, and the title."""
    plain = simulated("lfw", 0, faces)
    bad = replace(plain, first=[HOSTILE] * len(plain), root=None)
    bad.save(tmp_path / "x.npz")
    folder = write_scores(tmp_path / "suites" / "<b>net", plain)
    bad.save(folder / "lfw.npz")
    rates = {
        "group": HOSTILE,
        "genuine": 2,
        "rejected": 1,
        "frr": [0.5, 0.1, 0.9],
        "impostor": 0,
        "accepted": 0,
        "far": None,
    }
    column = {"column": HOSTILE, "groups": [rates], "across": rates, "unknown": 1}
    groups = {"threshold": None, "origin": HOSTILE, "images": 2, "missing_images": [HOSTILE], "columns": [column]}
    (folder / "lfw.groups.json").write_text(json.dumps(groups))
    run = write_log(tmp_path / "<i>run", f'step,"{HOSTILE.replace(chr(34), chr(34) * 2)}",train/loss\n1,2,3\n')
    (run / "config.yaml").write_text(f"a: |\n  {HOSTILE}\n")
    page = without_library(page_of(tmp_path / "out", tmp_path / "suites", run, title=HOSTILE))
    assert page.count("<script") == 2  # the data, and the page's own; the library's was taken out
    assert "<img src=x" not in page
    assert "<b>net" not in page
    assert "<i>run" not in page
    assert "&lt;img src=x onerror=alert(2)&gt;" in page
    data = re.search(r'id="page-data">(.*?)</script>', page, re.DOTALL)
    assert data is not None
    names = [trace.get("name", "") for chart in json.loads(data.group(1))["charts"].values() for trace in chart["data"]]
    assert not any("<" in name for name in names)  # plotly takes tags in names for its own


def test_images_outside_the_set_or_absent(tmp_path: Path, faces: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = simulated("lfw", 0, faces)
    write_scores(
        tmp_path / "s" / "net", replace(pairs, first=["../secret.png"] * len(pairs), second=["gone.png"] * len(pairs))
    )
    page = page_of(tmp_path / "out", tmp_path / "s")
    assert "data:image" not in without_library(page)
    told = capsys.readouterr().err
    assert "2 pictures of hardest pairs are left out" in told
    assert "../secret.png: its name leads out of the set's folder" in told
    assert "gone.png: no such image file" in told


def test_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Curves, the best step, configurations and what differs; a run without validation is said in one line."""
    rows = "step,train/loss,lfw/accuracy,lfw/accuracy_se\n10,2,0.7,0.01\n20,1,0.9,0.02\n30,nan,0.8,0.03\n"
    one, other = write_log(tmp_path / "one", rows), write_log(tmp_path / "other", "step,train/loss\n10,3\n")
    for run, rate in ((one, 0.1), (other, 0.2)):
        (run / "config.yaml").write_text(f"model: {{lr: {rate}, depth: 18}}")
    page = without_library(page_of(tmp_path / "out", one, other))
    assert "best, step 20</small></th><td>0.9000<small>± 0.0200" in page
    assert "last, step 30</small></th><td>0.8000" in page
    assert "model.lr</th><td>0.1</td><td>0.2" in page
    assert "model.depth</th>" not in page
    assert "NaN" not in page
    told = capsys.readouterr().err
    assert f"{other}: this run measured no verification set" in told
    assert "whole configurations" in told
    assert f"{other}: this run measured no verification set" in page


def test_what_is_refused(tmp_path: Path, suites: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "index.html").write_text("<p>Somebody's own.</p>")
    with pytest.raises(FacelitError, match="no report of facelit's"):
        report([str(suites)], str(taken))
    assert (taken / "index.html").read_text() == "<p>Somebody's own.</p>"
    with pytest.raises(FacelitError, match=r"cannot write into this folder"):
        report([str(suites)], str(taken / "index.html"))
    with pytest.raises(FacelitError, match="--pairs must be 0 to 100"):
        report([str(suites)], pairs=-1)
    (suites / "first" / "lfw.groups.json").write_text('{"threshold": "x"}')
    with pytest.raises(FacelitError, match=r"lfw\.groups\.json of first: not what"):
        report([str(suites)], str(tmp_path / "out"))
    (suites / "first" / "lfw.groups.json").unlink()
    write_scores(suites / "second", simulated("lfw", 1, pairs=200))
    with pytest.raises(
        FacelitError, match=r"lfw: first \(400 pairs\) and second \(200\) were not measured on the same pairs"
    ):
        report([str(suites)], str(tmp_path / "out"))
    broken = dict(np.load(suites / "second" / "lfw.npz"))
    broken["similarities"][0] = np.nan
    np.savez(suites / "second" / "lfw.npz", **broken)
    with pytest.raises(FacelitError, match=r"lfw\.npz: .*NaN"):
        report([str(suites)], str(tmp_path / "out"))
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(FacelitError, match=r'pip install -e "\.\[report\]"'):
        report([str(suites)], str(tmp_path / "out"))
    assert not (tmp_path / "out" / "index.html").exists()
