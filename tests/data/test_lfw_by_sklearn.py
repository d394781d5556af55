"""docs/data.md's lines that fetch LFW, run on a tiny LFW that lies where scikit-learn would have put the real one."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from facelit.data import PairsFolder
from tiny_run import ROOT

PEOPLE = {"Ann_A": 3, "Ben_B": 2}


def test_photos_and_pairs_lie_where_the_document_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No network: scikit-learn downloads what is not there, which is nothing."""
    (code,) = re.findall(
        r"```python\n(from sklearn.*?)```", (ROOT / "docs" / "data.md").read_text("utf-8"), flags=re.DOTALL
    )
    home = tmp_path / "datasets" / "lfw_home"
    for name, count in PEOPLE.items():
        (home / "lfw" / name).mkdir(parents=True)
        for number in range(1, count + 1):
            pixels = np.full((250, 250, 3), 20 * number, np.uint8)
            Image.fromarray(pixels).save(home / "lfw" / name / f"{name}_{number:04d}.jpg")
    for file in ("pairsDevTrain.txt", "pairsDevTest.txt"):
        (home / file).write_text("")
    fold = "Ann_A\t1\t3\nAnn_A\t2\tBen_B\t1\n"
    (home / "pairs.txt").write_text(f"2\t1\n{fold}{fold}")

    def no_network(*_: object, **__: object) -> None:
        raise AssertionError("a download was tried")

    monkeypatch.setattr("sklearn.datasets._lfw._fetch_remote", no_network)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(code, "data.md", "exec"), names)
    assert "datasets/lfw_home/lfw/<Name>/<Name>_NNNN.jpg" in code
    assert "datasets/lfw_home/pairs.txt" in code
    source = PairsFolder(home / "lfw", home / "pairs.txt")
    assert source.is_same.tolist() == [True, False, True, False]
    assert len(source.names) == 4
