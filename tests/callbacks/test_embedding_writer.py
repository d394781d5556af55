"""`predict` against the backbone called by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from facelit.cli import main


@pytest.mark.parametrize("name", ["out/embeddings.npz", "out/embeddings"])
def test_predict_writes_names_and_embeddings(finished: Any, tmp_path: Path, name: str) -> None:
    """In the order of the sorted paths, whatever the batch size; folders are made and the suffix is added."""
    crops = finished.folder / "crops"
    options = ["--data.predict", str(crops), "--embeddings.path", str(tmp_path / name), "--data.eval_batch_size", "7"]
    main(["predict", "--config", finished.config, "--ckpt_path", str(finished.checkpoints / "last.ckpt"), *options])
    with np.load(tmp_path / "out" / "embeddings.npz", allow_pickle=False) as written:
        names, embeddings = list(written["names"]), written["embeddings"]
    assert names == sorted(path.relative_to(crops).as_posix() for path in crops.glob("*/*.png"))
    assert embeddings.dtype == np.float32
    assert embeddings.shape == (48, 16)
    expected = finished.embed([crops / row for row in names])
    torch.testing.assert_close(torch.from_numpy(embeddings), expected, rtol=1e-4, atol=1e-6)


def test_predict_takes_a_tree_of_any_depth(finished: Any, tmp_path: Path) -> None:
    source = finished.folder / "crops" / "person_03" / "person_03_0002.png"
    for place in ("top.png", "a/one.png", "a/b/two.PNG"):
        (tmp_path / "photos" / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / place).write_bytes(source.read_bytes())
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    options = ["--data.predict", str(tmp_path / "photos"), "--embeddings.path", str(tmp_path / "three.npz")]
    main(["predict", "--config", finished.config, "--ckpt_path", str(finished.checkpoints / "last.ckpt"), *options])
    with np.load(tmp_path / "three.npz", allow_pickle=False) as written:
        assert sorted(written["names"]) == ["a/b/two.PNG", "a/one.png", "top.png"]
        rows = torch.from_numpy(written["embeddings"])
    torch.testing.assert_close(rows, finished.embed([source] * 3), rtol=1e-4, atol=1e-6)
