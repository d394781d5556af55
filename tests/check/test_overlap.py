"""Who is also in a verification set, by face, and each set's own pairs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import gumbel_r

from facelit.check import overlap as overlap_module
from facelit.check.faces import embed_faces
from facelit.check.overlap import THRESHOLD, find_overlap, nearest, strangers_threshold
from facelit.check.scan import scan_images
from facelit.check.verification_set import VerificationSet, read_verification_sets
from facelit.errors import FacelitError
from facelit.storage.open import open_store
from numbered_people import People, Vectors, axis, unit


def test_the_nearest_are_those_of_the_whole_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlap_module, "_BLOCK", 4)
    rng = np.random.default_rng(4)
    ones, others = unit(rng, 11), unit(rng, 9)
    best, scores = nearest(ones, others)
    np.testing.assert_array_equal(best, (ones @ others.T).argmax(1))
    np.testing.assert_allclose(scores, (ones @ others.T).max(1), atol=1e-6)
    best, scores = nearest(ones, ones, is_same_set=True)
    plain = ones @ ones.T
    plain[np.eye(11, dtype=bool)] = -2
    np.testing.assert_array_equal(best, plain.argmax(1))


def test_people_under_two_names_do_not_lift_the_threshold() -> None:
    rng = np.random.default_rng(7)
    strangers = unit(rng, 400, 32)
    again = strangers[:4] + 0.02 * rng.normal(size=(4, 32)).astype(np.float32)
    both = np.concatenate([strangers, again / np.linalg.norm(again, axis=1, keepdims=True)])
    highest = (strangers @ strangers.T - 2 * np.eye(400)).max(1)
    expected = gumbel_r(*gumbel_r.fit(highest)).ppf(0.99)
    assert strangers_threshold(both) == pytest.approx(expected, abs=0.03)
    assert np.quantile((both @ both.T - 2 * np.eye(404)).max(1), 0.99) > expected + 0.1  # what it would be
    assert strangers_threshold(strangers) <= np.quantile(highest, 0.99) + 1e-6


def tree_of(people: People, root: Path, means: Vectors) -> Path:
    for number, mean in enumerate(means):
        people.add(root / f"person_{number:03d}" / f"person_{number:03d}_0001.png", mean)
    return root


def test_the_threshold_is_measured_on_sets_with_enough_people(people: People, tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    means = unit(rng, 120, 8)
    many = VerificationSet("many", *_set_of(tree_of(people, tmp_path / "many", means)))
    few = VerificationSet("few", *_set_of(tree_of(people, tmp_path / "few", means[:99])))
    store = open_store(tree_of(people, tmp_path / "data", unit(rng, 30, 8)))
    faces = embed_faces(store, np.arange(30), people.embed)
    plain = means @ means.T - 2 * np.eye(120)
    found = find_overlap(faces, many, people.embed, None)
    assert found is not None
    assert (found.threshold, found.measured) == (pytest.approx(strangers_threshold(means)), True)
    assert found.threshold <= np.quantile(plain.max(1), 0.99) + 1e-6
    np.testing.assert_allclose(found.scores, (faces.means @ means.T).max(1), atol=1e-6)
    assert found.found.tolist() == (found.scores >= found.threshold).tolist()
    for one, given, expected in ((few, None, THRESHOLD), (many, 0.7, 0.7)):
        found = find_overlap(faces, one, people.embed, given)
        assert found is not None
        assert (found.threshold, found.measured) == (expected, False)
    assert find_overlap(faces, VerificationSet("names", ["A"]), people.embed, None) is None


def _set_of(root: Path) -> tuple[object, ...]:
    store = open_store(root)
    return list(store.identities), store, np.arange(len(store)), scan_images(store)


def pairs_file(path: Path, first: str, second: str) -> str:
    path.write_text(f"1\t1\n{first}\t1\t2\n{first}\t1\t{second}\t1\n")
    return path.name


@pytest.mark.parametrize(
    ("pairs", "named"),
    [
        (["a.txt", "b.txt"], [{"A1", "A2"}, {"B1"}]),
        (["a.txt", "none"], [{"A1", "A2"}, {"B1", "B2", "B3"}]),
        (["none", "b.txt"], [{"A1", "A2", "A3"}, {"B1"}]),
        ([], [{"A1", "A2", "A3"}, {"B1", "B2", "B3"}]),
        (["both.txt"], [{"A3"}, {"B3"}]),
    ],
)
def test_each_set_has_its_own_pairs(people: People, tmp_path: Path, pairs: list[str], named: list[set[str]]) -> None:
    for name in ("A1", "A2", "A3", "B1", "B2", "B3"):
        people.add(tmp_path / name[0] / name / f"{name}_0001.png", axis(0))
    pairs_file(tmp_path / "a.txt", "A1", "A2")
    pairs_file(tmp_path / "b.txt", "B1", "absent")
    pairs_file(tmp_path / "both.txt", "A3", "B3")
    sets = read_verification_sets(["A", "B"], pairs, jobs=1)
    assert [set(one.people) for one in sets] == named
    for one in sets:
        assert {one.store.identities[label] for label in one.store.labels[one.rows]} == set(one.people)


@pytest.mark.parametrize(
    ("against", "pairs", "message"),
    [
        (["A", "B"], ["a.txt"], r"B \(option against\) has none of the people in a\.txt \(with several sets, --pairs"),
        (["A", "B", "A"], ["a.txt", "none"], r"2 pairs files for 3 set\(s\)"),
        (["A", "names.txt"], ["a.txt", "a.txt"], r"names\.txt is not a folder of people\. Write none"),
        (["A"], ["absent.txt"], r"absent\.txt \(option pairs\)"),
    ],
)
def test_pairs_that_do_not_fit(
    people: People, tmp_path: Path, against: list[str], pairs: list[str], message: str
) -> None:
    for name in ("A1", "A2", "B1"):
        people.add(tmp_path / name[0] / name / f"{name}_0001.png", axis(0))
    pairs_file(tmp_path / "a.txt", "A1", "A2")
    (tmp_path / "names.txt").write_text("A1\n")
    with pytest.raises(FacelitError, match=message):
        read_verification_sets(against, pairs, jobs=1)
