"""PairsBin: the folds of InsightFace's protocol, each distinct image once, and the way from a pairs file and back."""

import io
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.model_selection import KFold

from facelit.data.pairs import PairsFolder
from facelit.data.pairs_bin import PairsBin, write_bin_of
from facelit.errors import FacelitError
from facelit.storage.pairs_bin import write_pairs_bin
from tiny_run import write_crops, write_pairs


def _png(value: int, size: int = 112) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), (value, 0, 0)).save(buffer, "png")
    return buffer.getvalue()


def _write(folder: Path, images: list[bytes], is_same: list[bool]) -> Path:
    (folder / "lfw.bin").write_bytes(pickle.dumps((images, is_same), 4))
    return folder / "lfw.bin"


@pytest.fixture(scope="module")
def pairs_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., PairsFolder]:
    root = tmp_path_factory.mktemp("pairs")
    write_crops(root / "crops")
    write_pairs(root / "pairs.txt")
    return lambda **options: PairsFolder(root / "crops", root / "pairs.txt", **options)


@pytest.mark.parametrize(("num_pairs", "folds"), [(60, 10), (64, 10), (69, 10), (21, 2), (30, 7)])
def test_folds_are_those_of_scikit_learn(tmp_path: Path, num_pairs: int, folds: int) -> None:
    path = _write(tmp_path, [b"image"] * 2 * num_pairs, [number % 2 == 0 for number in range(num_pairs)])
    expected = np.zeros(num_pairs, np.int64)
    for fold, (_, tested) in enumerate(KFold(folds, shuffle=False).split(np.zeros(num_pairs)), start=1):
        expected[tested] = fold
    source = PairsBin(path, folds=folds)
    assert source.folds.tolist() == expected.tolist()
    assert source.folds.dtype == np.int64


def test_equal_images_are_one(tmp_path: Path) -> None:
    images = [_png(value) for value in (5, 6, 5, 9, 6, 6, 7, 5)]
    source = PairsBin(_write(tmp_path, images, [True, False, True, False]), folds=2)
    assert source.names == ["lfw.bin[0]", "lfw.bin[1]", "lfw.bin[3]", "lfw.bin[6]"]
    assert len(source) == 4
    assert source.first.tolist() == [0, 0, 1, 3]
    assert source.second.tolist() == [1, 2, 1, 0]
    assert source.is_same.tolist() == [True, False, True, False]
    assert source.first.dtype == source.second.dtype == np.int64
    assert [int(source.image(number)[3, 4, 0]) for number in range(4)] == [5, 6, 9, 7]
    assert source.image(0).shape == (112, 112, 3)


def test_a_broken_image_is_named_and_others_are_resized_on_request(tmp_path: Path) -> None:
    path = _write(tmp_path, [_png(5), _png(5), _png(6, size=96), b"broken"] * 2, [True, False] * 2)
    source = PairsBin(path, folds=2)
    with pytest.raises(FacelitError, match=rf"{path}, image 3: cannot read"):
        source.image(2)
    with pytest.raises(FacelitError, match=rf"{path}, image 2: .*96x96.*resize: true"):
        source.image(1)
    assert PairsBin(path, folds=2, resize=True).image(1).shape == (112, 112, 3)


@pytest.mark.parametrize(
    ("is_same", "folds", "reason"),
    [
        ([True, False, True, True], 2, "fold 2 has no genuine or no impostor pair"),
        ([False, False, True, False], 2, "fold 1 has no genuine"),
        ([True, False, True, False], 3, "fold 2 has no genuine"),
        ([True, False, True, False], 10, "fold 1 has no genuine"),
        ([True, False, True, False], 1, "folds=1: verification needs at least two"),
        ([True, False, True, False], 0, "folds=0"),
    ],
)
def test_folds_that_would_mean_nothing(tmp_path: Path, is_same: list[bool], folds: int, reason: str) -> None:
    path = _write(tmp_path, [b"image"] * 2 * len(is_same), is_same)
    with pytest.raises(FacelitError, match=f"{reason}.*option folds"):
        PairsBin(path, folds=folds)


def test_pickled_by_path(tmp_path: Path) -> None:
    path = _write(tmp_path, [_png(value) for value in range(8)], [True, False] * 2)
    pickled = pickle.dumps(PairsBin(path, folds=2, resize=True))
    assert len(pickled) < 300
    source = pickle.loads(pickled)
    assert source.folds.tolist() == [1, 1, 2, 2]
    assert source.resize
    assert int(source.image(7)[0, 0, 0]) == 7


def test_a_pairs_file_becomes_a_bin(tmp_path: Path, pairs_folder: Callable[..., PairsFolder]) -> None:
    source = pairs_folder()
    write_bin_of(source, tmp_path / "set.bin")
    images, is_same = pickle.loads((tmp_path / "set.bin").read_bytes())
    assert is_same == source.is_same.tolist()
    for pair, (first, second) in enumerate(zip(source.first, source.second, strict=True)):
        assert images[2 * pair] == Path(source.names[first]).read_bytes()
        assert images[2 * pair + 1] == Path(source.names[second]).read_bytes()
    _assert_same(PairsBin(tmp_path / "set.bin", folds=2), source)


def test_folds_that_a_bin_cannot_say_are_refused(tmp_path: Path, pairs_folder: Callable[..., PairsFolder]) -> None:
    source = pairs_folder()
    source.folds = source.folds.copy()
    source.folds[-1] = 1
    with pytest.raises(FacelitError, match=r"set\.bin: a \.bin file has no folds"):
        write_bin_of(source, tmp_path / "set.bin")
    assert not (tmp_path / "set.bin").exists()


def _assert_same(found: PairsBin, source: PairsFolder) -> None:
    """The same pairs of the same pixels in the same folds, whatever the images' numbers."""
    assert len(found) == len(source)
    assert found.is_same.tolist() == source.is_same.tolist()
    assert found.folds.tolist() == source.folds.tolist()
    number = dict(zip([*found.first.tolist(), *found.second.tolist()], [*source.first, *source.second], strict=True))
    assert len(number) == len(found)
    assert [number[image] for image in found.first.tolist()] == source.first.tolist()
    assert [number[image] for image in found.second.tolist()] == source.second.tolist()
    for image in list(number)[:20]:
        np.testing.assert_array_equal(found.image(image), source.image(int(number[image])))


@pytest.mark.lfw
def test_lfw_as_a_bin(tmp_path: Path, lfw: Path) -> None:
    """12,000 images, 7,701 distinct ones; the pairs and folds of pairs.txt."""
    source = PairsFolder(lfw / "aligned_112", lfw / "pairs.txt")
    write_bin_of(source, tmp_path / "lfw.bin")
    found = PairsBin(tmp_path / "lfw.bin")
    assert len(found) == 7701
    assert len(found.is_same) == 6000
    assert np.bincount(found.folds).tolist() == [0] + [600] * 10
    _assert_same(found, source)


def test_a_file_with_all_genuine_pairs_first(tmp_path: Path) -> None:
    """No number of folds helps; each kind is dealt out on its own, if asked for."""
    files = [bytes([number]) for number in range(26)]
    write_pairs_bin(files, [True] * 6 + [False] * 7, tmp_path / "sorted.bin")
    with pytest.raises(FacelitError, match=r"fold 1 has no .* by_kind: true .* 6 genuine pairs among 13"):
        PairsBin(tmp_path / "sorted.bin", folds=3)
    source = PairsBin(tmp_path / "sorted.bin", folds=3, by_kind=True)
    assert source.folds.tolist() == [1, 1, 2, 2, 3, 3, 1, 1, 1, 2, 2, 3, 3]
    assert pickle.loads(pickle.dumps(source)).folds.tolist() == source.folds.tolist()
    with pytest.raises(FacelitError, match="fewer folds"):
        PairsBin(tmp_path / "sorted.bin", folds=7, by_kind=True)
