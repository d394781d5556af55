"""Scores as a file: all of it comes back; what is not ours, cut or NaN is one line."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from facelit.errors import FacelitError
from facelit.verification import evaluate_pairs
from facelit.verification.scored_pairs import ScoredPairs


def scored(**changes: object) -> ScoredPairs:
    pairs = ScoredPairs(
        "lfw",
        np.array([0.9, 0.1, 0.9, 0.2], np.float32),
        np.array([True, False, True, False]),
        np.array([1, 1, 2, 2]),
        ["Zoë/1.jpg", "b/1.jpg", "", "\udc80.jpg"],
        ["a/2.jpg", "b/2.jpg", "c/2.jpg", "d/2.jpg"],
        "crops",
    )
    return dataclasses.replace(pairs, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("root", ["crops", None])
def test_everything_comes_back(tmp_path: Path, root: str | None) -> None:
    path = tmp_path / "lfw.npz"
    before = scored(root=root)
    with path.open("wb") as file:
        before.save(file)
    after = ScoredPairs.load(path)
    for field in dataclasses.fields(ScoredPairs):
        old, new = getattr(before, field.name), getattr(after, field.name)
        assert type(old) is type(new)
        if isinstance(old, np.ndarray):
            assert new.dtype == old.dtype
            assert new.tolist() == old.tolist()
        else:
            assert new == old
    assert after.evaluate().accuracy == evaluate_pairs(before.similarities, before.genuine, before.folds).accuracy == 1


def test_a_cut_or_changed_file_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "lfw.npz"
    scored().save(path)
    whole = path.read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(FacelitError, match=r"lfw\.npz: not a file of scores, or a damaged one"):
            ScoredPairs.load(path)
    place = whole.index(b"similarities") + 40
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
    with pytest.raises(FacelitError, match="not a file of scores, or a damaged one"):
        ScoredPairs.load(path)


def test_other_files(tmp_path: Path) -> None:
    with pytest.raises(FacelitError, match=r"scores not found.*facelit suites"):
        ScoredPairs.load(tmp_path / "lfw.npz")
    np.savez(tmp_path / "embeddings.npz", embeddings=np.zeros((2, 3)))
    np.save(tmp_path / "one.npy", np.zeros(3))
    np.savez(tmp_path / "pickle.npz", format=np.array([{}], object))
    (tmp_path / "text.npz").write_text("no scores")
    for name in ("embeddings.npz", "one.npy", "pickle.npz", "text.npz"):
        with pytest.raises(FacelitError, match=rf"{name}: (these are not scores|not a file of scores)"):
            ScoredPairs.load(tmp_path / name)


def test_nan_and_lengths(tmp_path: Path) -> None:
    broken = np.array([0.9, np.nan, np.inf, 0.2], np.float32)
    with pytest.raises(FacelitError, match="2 of 4 similarities are NaN or infinite"):
        scored(similarities=broken)
    with pytest.raises(FacelitError, match="kinds, folds and names"):
        scored(first=["a"])
    pairs = scored()
    object.__setattr__(pairs, "similarities", broken)
    pairs.save(tmp_path / "nan.npz")
    with pytest.raises(FacelitError, match=r"nan\.npz: scores of lfw: 2 of 4 similarities are NaN"):
        ScoredPairs.load(tmp_path / "nan.npz")
    with pytest.raises(FacelitError, match=r"scores of lfw: .*at least two folds"):
        scored(folds=np.ones(4, np.int64)).evaluate()
