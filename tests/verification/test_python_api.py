"""The loop that docs/python-api.md shows, as it stands there, on one process and on two."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from facelit.verification import VerificationResult, evaluate_pairs
from tiny_run import ROOT
from two_processes import run_on_two_processes

DOCUMENT = (ROOT / "docs" / "python-api.md").read_text(encoding="utf-8")


def code(name: str) -> str:
    """A block of the document."""
    (block,) = re.findall(rf"<!-- run: {name} -->\n```python\n(.*?)```", DOCUMENT, flags=re.DOTALL)
    return str(block)


def run(folder: str) -> VerificationResult:
    """Runs both blocks on eight people's images."""
    torch.manual_seed(0)
    images = (torch.randn(8, 1, 3, 1, 1) + torch.randn(8, 3, 3, 112, 112)).flatten(0, 1)
    rng = np.random.default_rng(0)
    genuine = [(3 * person, 3 * person + 1 + other) for person in range(8) for other in range(2)]
    impostor = [(3 * person, 3 * ((person + step) % 8)) for person in range(8) for step in (1, 2)]
    order = rng.permutation(32)
    names: dict[str, Any] = {
        "network": torch.nn.Sequential(torch.nn.AvgPool2d(112), torch.nn.Flatten()),
        "images": images,
        "pairs": np.array([*genuine, *impostor])[order],
        "is_same": np.repeat([True, False], 16)[order],
    }
    block = code("use").replace("roc.png", f"{folder}/roc.png")
    exec(compile(code("loop") + block, "python-api.md", "exec"), names)
    embeddings = torch.nn.functional.normalize(images.double().mean(dim=(2, 3)), dim=1).numpy()
    scores = [embeddings[a] @ embeddings[b] for a, b in names["pairs"]]
    expected = evaluate_pairs(scores, names["is_same"], 2)
    result: VerificationResult = names["result"]
    np.testing.assert_allclose(result.scores, expected.scores, atol=1e-5)
    assert (result.accuracy, result.auc) == (expected.accuracy, expected.auc)
    return result


def test_the_loop_runs_on_one_process_and_on_two(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = run(str(tmp_path))
    assert result.summary() in capsys.readouterr().out
    assert (tmp_path / "roc.png").read_bytes().startswith(b"\x89PNG")
    for other in run_on_two_processes(run, str(tmp_path)):
        assert other.as_dict() == pytest.approx(result.as_dict(), abs=1e-5)
