"""Built-in faces: functions of their numbers, held-out people, LFW's folds, a task pixels do not solve."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from facelit.data import synthetic
from facelit.data.synthetic import (
    SyntheticFaces,
    SyntheticPairs,
    draw_face,
    write_identity_tree,
    write_lfw_tree,
)
from facelit.pictures import drawn_faces


def test_an_image_is_a_function_of_its_three_numbers() -> None:
    first = draw_face(3, 5, 7)
    drawn_faces._identity.cache_clear()
    draw_face(3, 6, 0)
    np.testing.assert_array_equal(draw_face(3, 5, 7), first)
    assert first.shape == (112, 112, 3)
    assert first.dtype == np.uint8
    for other in ((4, 5, 7), (3, 4, 7), (3, 5, 8)):
        assert np.abs(draw_face(*other).astype(int) - first).mean() > 5


def test_all_images_differ_and_people_differ_more() -> None:
    faces = SyntheticFaces(num_identities=20, images_per_identity=5)
    crops = np.stack([faces.image(index) for index in range(len(faces))])
    assert len({crop.tobytes() for crop in crops}) == 100
    flat = crops.reshape(100, -1).astype(np.float64)
    alike = np.corrcoef(flat - flat.mean(axis=0))
    same = np.equal.outer(faces.labels, faces.labels)
    assert alike[same & ~np.eye(100, dtype=bool)].mean() > alike[~same].mean() + 0.05


def test_training_set_as_a_source() -> None:
    faces = SyntheticFaces(num_identities=3, images_per_identity=2, seed=1)
    assert len(faces) == 6
    assert faces.num_identities == 3
    assert faces.labels.dtype == np.int64
    assert faces.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert faces.identities == [f"synthetic_0000000{number}" for number in range(3)]
    assert faces.name(3) == "synthetic_00000001/synthetic_00000001_0002.png"
    np.testing.assert_array_equal(faces.image(3), draw_face(1, 1, 1))
    with pytest.raises(ValueError, match="identities"):
        SyntheticFaces(num_identities=1)


def test_verified_people_are_held_out() -> None:
    train = set(SyntheticFaces(num_identities=1000, images_per_identity=1).identities)
    people = {name.split("/")[0] for name in SyntheticPairs(folds=2, pairs_per_fold=20).names}
    assert not train & people
    assert min(int(name.split("_")[1]) for name in people) >= 1_000_000
    with pytest.raises(ValueError, match="identities"):
        SyntheticFaces(num_identities=1_000_001)  # would reach the held-out numbers


@pytest.mark.parametrize(("pairs_per_fold", "images"), [(100, 4), (2, 2), (5, 2), (9, 3)])
def test_folds_are_as_in_lfw(pairs_per_fold: int, images: int) -> None:
    """Genuine before impostor pairs in each fold, no pair twice, nobody in two folds."""
    pairs = SyntheticPairs(folds=4, pairs_per_fold=pairs_per_fold, images_per_identity=images)
    expected = ([True] * pairs_per_fold + [False] * pairs_per_fold) * 4
    assert pairs.is_same.tolist() == expected
    assert pairs.folds.tolist() == [fold for fold in (1, 2, 3, 4) for _ in range(2 * pairs_per_fold)]
    people = [name.split("/")[0] for name in pairs.names]
    fold_of: dict[str, int] = {}
    for first, second, same, fold in zip(pairs.first, pairs.second, pairs.is_same, pairs.folds, strict=True):
        assert first != second
        assert (people[first] == people[second]) == same
        assert fold_of.setdefault(people[first], fold) == fold
        assert fold_of.setdefault(people[second], fold) == fold
    seen = Counter(frozenset(pair) for pair in zip(pairs.first.tolist(), pairs.second.tolist(), strict=True))
    assert max(seen.values()) == 1
    assert len(set(pairs.names)) == len(pairs.names)
    assert set(pairs.first) | set(pairs.second) == set(range(len(pairs)))


def _ten_fold_accuracy(scores: np.ndarray, is_same: np.ndarray, folds: np.ndarray) -> float:
    """LFW's protocol, literally: the best threshold of nine folds, applied to the tenth."""
    accuracies = []
    for fold in sorted(set(folds.tolist())):
        test = folds == fold
        candidates = np.unique(scores[~test])
        right = [np.mean((scores[~test] >= threshold) == is_same[~test]) for threshold in candidates]
        best = candidates[int(np.argmax(right))]
        accuracies.append(np.mean((scores[test] >= best) == is_same[test]))
    return float(np.mean(accuracies))


def test_pixels_do_not_solve_the_task() -> None:
    """Cosine of crops less their mean, on a fifth of the default number of pairs: above chance, far from solved."""
    pairs = SyntheticPairs(pairs_per_fold=20)
    pixels = np.stack([pairs.image(number) for number in range(len(pairs))]).reshape(len(pairs), -1)
    centred = pixels.astype(np.float32) - pixels.mean(axis=0, dtype=np.float32)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    scores = np.einsum("ij,ij->i", centred[pairs.first], centred[pairs.second])
    assert 0.55 < _ten_fold_accuracy(scores, pairs.is_same, pairs.folds) < 0.75


@pytest.mark.parametrize("workers", [1, 2])
def test_prepared_images_are_the_drawn_ones(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On one core and in a pool; the last chunk is not full."""
    monkeypatch.setattr(synthetic.os, "cpu_count", lambda: workers)
    monkeypatch.setattr(synthetic, "_WORTH_A_POOL", 1)
    monkeypatch.setattr(synthetic, "_CHUNK", 4)
    for source in (SyntheticFaces(3, 2), SyntheticPairs(folds=2, pairs_per_fold=2))[: 3 - workers]:
        drawn = [source.image(number) for number in range(len(source))]
        source.prepare()
        monkeypatch.setattr(synthetic, "draw_face", lambda *_: pytest.fail("drawn again"))
        np.testing.assert_array_equal([source.image(number) for number in range(len(source))], drawn)
        monkeypatch.undo()


def test_lfw_tree_reads_back(tmp_path: Path) -> None:
    pairs = SyntheticPairs(folds=2, pairs_per_fold=3)
    path = write_lfw_tree(pairs, tmp_path / "lfw")
    header, *rows = [line.split("\t") for line in path.read_text().splitlines()]
    assert header == ["2", "3"]
    assert [len(row) for row in rows] == ([3] * 3 + [4] * 3) * 2
    for row, first, second in zip(rows, pairs.first, pairs.second, strict=True):
        person, number = row[0], row[1]
        other, other_number = (row[0], row[2]) if len(row) == 3 else (row[2], row[3])
        for name, shot, image in ((person, number, first), (other, other_number, second)):
            file = tmp_path / "lfw" / name / f"{name}_{int(shot):04d}.png"
            np.testing.assert_array_equal(np.asarray(Image.open(file)), pairs.image(image))


def test_identity_tree_reads_back(tmp_path: Path) -> None:
    faces = SyntheticFaces(num_identities=2, images_per_identity=3)
    assert write_identity_tree(faces, tmp_path / "train") == tmp_path / "train"
    files = sorted((tmp_path / "train").glob("*/*"))
    assert [file.parent.name for file in files] == [faces.identities[label] for label in faces.labels]
    for index, file in enumerate(files):
        np.testing.assert_array_equal(np.asarray(Image.open(file)), faces.image(index))
