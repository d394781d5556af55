"""`facelit embed` on the command line: files, and what was left out."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from facelit.cli import main
from facelit.inference.photo_embedding import read_ahead
from facelit.inference.photos import FaceFinder, FoundFaces, NoFaceError
from trained_run import TrainedRun, read, unit


def run(*arguments: object) -> int:
    """Exit status of the program."""
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as left:
        return int(left.code or 0)
    return 0


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("suffix", ["npz", "parquet"])
def test_the_file_holds_names_and_embeddings(
    trained: TrainedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str, flip: bool
) -> None:
    out = tmp_path / f"e.{suffix}"
    options = ["--aligned", "--checkpoint", trained.checkpoint, "--batch_size", "7", *(["--flip_average"] * flip)]
    assert run("embed", trained.crops, "--out", out, *options) == 0
    assert f"{out}: 48 embeddings of 16 numbers" in capsys.readouterr().out
    paths = sorted(trained.crops.glob("*/*.png"))
    pixels = read(*paths)
    expected = trained.embed(pixels)
    if flip:
        expected = (expected + trained.embed(pixels[:, :, ::-1].copy())) / 2
    if suffix == "npz":
        with np.load(out, allow_pickle=False) as file:
            names, embeddings = file["names"].tolist(), file["embeddings"]
    else:
        table = pq.read_table(out)
        names = table["name"].to_pylist()
        embeddings = np.array(table["embedding"].to_pylist(), np.float32)
        assert str(table.schema.field("embedding").type) == "fixed_size_list<element: float>[16]"
        assert table.schema.metadata[b"checkpoint"] == str(trained.checkpoint).encode()
    assert names == [path.relative_to(trained.crops).as_posix() for path in paths]
    assert embeddings.dtype == np.float32
    np.testing.assert_allclose(embeddings, unit(expected), atol=2e-6)
    assert [file.name for file in tmp_path.iterdir()] == [out.name]


def test_what_cannot_be_used_is_listed(
    trained: TrainedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither skipped silently nor the end of everything; the list of an earlier run does not stay."""

    def find(self: Any, photo: Path, aligned: bool, which: str = "largest") -> FoundFaces:
        assert (aligned, which) == (False, "largest")
        if photo.name.endswith("_0003.png"):
            raise NoFaceError(str(photo), "no face was found")
        return FoundFaces([read(photo)[0]], 2 if photo.name.endswith("_0002.png") else 1)

    out = tmp_path / "e.npz"
    with monkeypatch.context() as patch:
        patch.setattr(FaceFinder, "find", find)
        assert run("embed", trained.crops, "--out", out, "--checkpoint", trained.checkpoint) == 1
    err = capsys.readouterr().err
    assert "8 of 48 photos left out" in err
    assert f"  {trained.crop(0, 3)}: no face was found" in err
    assert f"{trained.crop(0, 2)}: 2 faces; the largest is used" in err
    listed = Path(f"{out}.skipped.tsv").read_text().splitlines()
    assert listed[0] == "photo\treason"
    assert listed[1:] == [f"{trained.crop(person, 3)}\tno face was found" for person in range(8)]
    with np.load(out) as file:
        assert len(file["names"]) == len(file["embeddings"]) == 40
        assert "person_00/person_00_0003.png" not in file["names"]
    assert run("embed", trained.crops, "--aligned", "--out", out, "--checkpoint", trained.checkpoint) == 0
    assert not Path(f"{out}.skipped.tsv").exists()


def test_slips_are_one_line(trained: TrainedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "broken.png").write_bytes(b"broken")
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        (["nowhere"], "nowhere does not exist"),
        ([tmp_path / "empty"], "holds no photo"),
        ([tmp_path / "only"], "none of the 1 photos can be used, for example"),
        ([tmp_path / "only", "--out", "e.csv"], "must end with .npz or .parquet"),
        ([tmp_path / "only", "--out", tmp_path / "no" / "e.npz"], "there is no folder"),
        ([tmp_path / "only", "--batch_size", "0"], "--batch_size must be at least 1"),
    ):
        options = [] if "--out" in arguments else ["--out", tmp_path / "e.npz"]
        assert run("embed", *arguments, *options, "--aligned", "--checkpoint", trained.checkpoint) == 2
        err = capsys.readouterr().err
        assert message in err
        assert err.count("\n") == 1
    assert not (tmp_path / "e.npz").exists()


def test_reading_ahead_keeps_the_order_and_a_bound() -> None:
    begun: list[int] = []

    def slow(item: int) -> int:
        begun.append(item)
        time.sleep(0.002 * (item % 3))
        return item * item

    results = read_ahead(slow, range(40), threads=4, ahead=6)
    assert next(results) == 0
    assert len(begun) <= 6
    assert list(results) == [item * item for item in range(1, 40)]


def test_reading_ahead_raises_what_was_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        list(read_ahead(lambda item: 1 // item, [1, 0, 2], threads=2, ahead=2))
