"""`predict` against the backbone called by hand."""

import errno
import os
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

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


def test_an_older_file_stays_whole(
    finished: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the disk is full before the new one is."""
    older = tmp_path / "embeddings.npz"
    older.write_bytes(b"older")

    def full(file: Any, **arrays: Any) -> None:
        with nullcontext(file) if hasattr(file, "write") else Path(file).open("wb") as opened:
            opened.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    crops = finished.folder / "crops" / "person_03"
    options = ["--data.predict", str(crops), "--embeddings.path", str(older)]
    with pytest.raises(SystemExit) as ended:
        main(["predict", "--config", finished.config, "--ckpt_path", str(finished.checkpoints / "last.ckpt"), *options])
    assert ended.value.code == 2
    assert f"facelit: error: {older}: cannot write this file (No space left" in capsys.readouterr().err
    assert older.read_bytes() == b"older"
    assert [*tmp_path.iterdir()] == [older]


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


@pytest.mark.parametrize("workers", ["0", "1"])
def test_broken_crops_are_left_out_and_listed(
    finished: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: str
) -> None:
    """One among three million ended the run, and left nothing."""
    source = (finished.folder / "crops" / "person_03" / "person_03_0002.png").read_bytes()
    for name, data in {"a/1.png": source, "a/2.png": b"broken", "b/1.png": source[:300], "b/2.png": source}.items():
        (tmp_path / "crops" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "crops" / name).write_bytes(data)
    options = ["--data.predict", str(tmp_path / "crops"), "--embeddings.path", str(tmp_path / "x.npz")]
    arguments = [
        "predict",
        "--config",
        finished.config,
        "--ckpt_path",
        str(finished.checkpoints / "last.ckpt"),
        *options,
    ]
    arguments += ["--data.num_workers", workers, "--data.eval_batch_size", "3"]
    with pytest.warns(UserWarning, match=r"2 of 4 crops .*2\.png: cannot read"), pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 1
    with np.load(tmp_path / "x.npz") as written:
        assert list(written["names"]) == ["a/1.png", "b/2.png"]
        assert written["embeddings"].shape == (2, 16)
        assert np.abs(written["embeddings"][0] - written["embeddings"][1]).max() < 1e-5
    listed = (tmp_path / "x.npz.skipped.tsv").read_text().splitlines()
    assert [row.split("\t")[0] for row in listed[1:]] == [
        str(tmp_path / "crops" / name) for name in ("a/2.png", "b/1.png")
    ]
    if workers == "0":
        # The other processes of a run: the first may still be writing, and would be killed if they failed.
        monkeypatch.setattr("facelit.cli.training.is_first_process", lambda: False)
        with pytest.warns(UserWarning, match="2 of 4"):
            main(arguments)
        for name in ("a/1.png", "b/2.png"):
            (tmp_path / "crops" / name).write_bytes(b"")
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="not on this system")
def test_whatever_lies_where_a_crop_should(finished: Any, tmp_path: Path) -> None:
    """An empty file, another size, a link to nowhere, a pipe; batches without a single crop, the last one among them."""
    root = tmp_path / "crops"
    source = finished.folder / "crops" / "person_03" / "person_03_0002.png"
    root.mkdir()
    for name in ("b.png", "d.png"):
        shutil.copy(source, root / name)
    (root / "a.png").touch()
    Image.open(source).resize((64, 64)).save(root / "c.png")
    (root / "y.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(root / "z.png")
    arguments = ["predict", "--config", finished.config, "--ckpt_path", str(finished.checkpoints / "last.ckpt")]
    options = ["--data.predict", str(root), "--embeddings.path", str(tmp_path / "x.npz"), "--data.eval_batch_size", "1"]
    with pytest.warns(UserWarning, match="4 of 6 crops"), pytest.raises(SystemExit) as ended:
        main([*arguments, *options])
    assert ended.value.code == 1
    with np.load(tmp_path / "x.npz") as written:
        assert list(written["names"]) == ["b.png", "d.png"]
    reasons = [row.split("\t")[1] for row in (tmp_path / "x.npz.skipped.tsv").read_text().splitlines()[1:]]
    assert [
        word in reason for word, reason in zip(("empty", "64x64", "no such", "not a file"), reasons, strict=True)
    ] == [True] * 4
