"""`facelit check --checkpoint` with a network that was really trained."""

import json
from pathlib import Path

import numpy as np
import pytest

from facelit.cli import main
from trained_run import TrainedRun, read, unit


def test_embeddings_are_the_checkpoint_s(trained: TrainedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """People are the training set's own: each is found, with the cosine of the means computed by torch alone."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other" / "Somebody").mkdir(parents=True)
    for number in (1, 2):
        crop = trained.crop(3, number)
        (tmp_path / "other" / "Somebody" / f"Somebody_000{number}.png").symlink_to(crop)
    against = ["--against", "other", "--threshold", "-1", "--ckpt_path", str(trained.checkpoint)]
    main(["check", str(trained.crops), *against, "--device", "cpu", "--jobs", "1"])
    (found,) = [
        finding["items"]
        for finding in json.loads(Path("check-crops.json").read_text())["findings"]
        if finding["key"] == "in_verification_by_face"
    ]
    whole = [
        unit(trained.embed(read(*(trained.crop(person, number) for number in range(1, 7))))) for person in range(8)
    ]
    means = unit(np.stack([one.mean(0) for one in whole]))
    somebody = unit(whole[3][:2].mean(0)[None])[0]
    scores = {f"person_{person:02d}": float(means[person] @ somebody) for person in range(8)}
    assert {item["identity"]: item["verification"][0]["score"] for item in found} == {
        name: pytest.approx(score, abs=2e-3) for name, score in scores.items()
    }
    assert [item["identity"] for item in found] == sorted(scores, key=lambda name: -scores[name])
