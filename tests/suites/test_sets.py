"""What makes a set the same as last time; names of checkpoints."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from facelit.data import PairsFolder, SyntheticPairs
from facelit.errors import FacelitError
from facelit.storage.images import BadImageError
from facelit.suites.score_folder import checkpoint_names, find_checkpoints
from facelit.suites.sets import SuiteSet, open_sets, read_set
from tiny_run import write_crops, write_pairs


@pytest.fixture(scope="module")
def crops(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets")
    write_crops(folder / "crops", images_each=4)
    write_pairs(folder / "pairs.txt")
    return folder


def opened(folder: Path, **options: object) -> SuiteSet:
    arguments = {"root": str(folder / "crops"), "pairs": str(folder / "pairs.txt"), **options}
    (found,), _ = open_sets({"x": {"class_path": "PairsFolder", "init_args": arguments}}, None, False)
    return found


def test_the_fingerprint_is_of_the_pixels_the_pairs_and_the_names(crops: Path, tmp_path: Path) -> None:
    before = read_set(opened(crops))
    assert len(before.digests) == len(set(before.digests)) == 32
    copy = tmp_path / "copy"
    shutil.copytree(crops, copy)
    assert read_set(opened(copy)).fingerprint == before.fingerprint

    path = copy / "crops" / "person_03" / "person_03_0002.png"
    original = path.read_bytes()
    pixels = np.array(Image.open(path))
    pixels[5, 5, 0] ^= 1
    Image.fromarray(pixels).save(path)
    changed = read_set(opened(copy))
    assert changed.fingerprint != before.fingerprint
    assert sum(a != b for a, b in zip(changed.digests, before.digests, strict=True)) == 1
    path.write_bytes(original)

    one = opened(copy)
    for part, values in (
        ("first", np.roll(one.source.first, 1)),
        ("is_same", ~one.source.is_same),
        ("folds", one.source.folds[::-1]),
    ):
        kept = getattr(one.source, part)
        setattr(one.source, part, values)
        assert read_set(one).fingerprint != before.fingerprint, part
        setattr(one.source, part, kept)
    assert read_set(one._replace(names=one.names[::-1])).fingerprint != before.fingerprint
    assert read_set(one).fingerprint == before.fingerprint

    path.write_bytes(b"no image")
    with pytest.raises(BadImageError, match="person_03_0002"):
        read_set(one)


def test_names_are_relative_to_the_folder(crops: Path) -> None:
    one = opened(crops)
    assert isinstance(one.source, PairsFolder)
    assert (one.root, one.names[0]) == (str(crops / "crops"), "person_00/person_00_0001.png")
    first, second = one.pair_names()
    assert (first[0], second[0]) == ("person_00/person_00_0001.png", "person_00/person_00_0002.png")
    options = {"class_path": "facelit.data.SyntheticPairs", "init_args": {"folds": 2, "pairs_per_fold": 2}}
    (drawn,), _ = open_sets({"drawn": options}, None, False)
    assert isinstance(drawn.source, SyntheticPairs)
    assert (drawn.root, drawn.names) == (None, drawn.source.names)


def test_a_damaged_set_is_not_an_absent_one(crops: Path, tmp_path: Path) -> None:
    """`--allow_missing` leaves out what is not there, and nothing else."""
    (tmp_path / "pairs.txt").write_text("10\tfour\n")
    sets = {
        "good": {
            "class_path": "PairsFolder",
            "init_args": {"root": str(crops / "crops"), "pairs": str(crops / "pairs.txt")},
        },
        "bad": {
            "class_path": "PairsFolder",
            "init_args": {"root": str(crops / "crops"), "pairs": str(tmp_path / "pairs.txt")},
        },
    }
    with pytest.raises(FacelitError, match=r"^set bad: .*pairs\.txt, line 1"):
        open_sets(sets, None, True)
    found, absent = open_sets(sets, ["good"], False)
    assert ([one.name for one in found], absent) == (["good"], {})


def test_names_of_checkpoints(tmp_path: Path) -> None:
    def names(*paths: str, flip: bool = False) -> list[str]:
        return checkpoint_names([Path("/x") / path for path in paths], flip)

    assert names("a.ckpt") == ["a"]
    assert names("a.ckpt", flip=True) == ["a-flip"]
    assert names("runs/center/version_0/checkpoints/last.ckpt", "b.pt") == ["center-version_0-last", "b.pt"]
    assert names("one/a.ckpt", "two/a.ckpt", "two/b.ckpt") == ["one-a", "two-a", "b"]
    assert names("r/one/v/checkpoints/a.ckpt", "s/one/v/checkpoints/a.ckpt") == ["r-one-v-a", "s-one-v-a"]
    assert names("checkpoints/a.ckpt", "/x-a.ckpt") == ["x-a", "x-a-2"]


def test_a_run_stands_for_its_checkpoint(tmp_path: Path) -> None:
    last = tmp_path / "version_0" / "checkpoints" / "last.ckpt"
    last.parent.mkdir(parents=True)
    last.write_bytes(b"")
    assert find_checkpoints([str(tmp_path)]) == [last]


def test_a_crop_that_may_not_be_looked_at_is_named(crops: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a folder that may be listed and not entered."""
    stat = os.stat

    def denied(path: Any, *args: Any, **options: Any) -> os.stat_result:
        if str(path).endswith("person_00_0001.png"):
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, *args, **options)

    monkeypatch.setattr(os, "stat", denied)
    real = os.open
    monkeypatch.setattr(os, "open", lambda path, *args, **options: (denied(path), real(path, *args, **options))[1])
    with pytest.raises(BadImageError, match=r"person_00_0001\.png: cannot read this image \(Permission denied\)"):
        read_set(opened(crops))
