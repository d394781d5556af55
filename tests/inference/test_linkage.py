"""Average linkage in blocks against scikit-learn's, and with groups that are known."""

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.cluster import AgglomerativeClustering

from facelit.inference import linkage
from facelit.inference.linkage import link_faces


def faces(seed: int, people: int = 15, spread: float = 0.8) -> npt.NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    owner = rng.integers(0, people, 90)
    rows = rng.standard_normal((people, 20))[owner] + spread * rng.standard_normal((90, 20))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def parts(groups: npt.NDArray[np.int64]) -> set[frozenset[int]]:
    return {frozenset(np.flatnonzero(groups == group).tolist()) for group in np.unique(groups)}


@pytest.mark.parametrize("cut", [-0.2, 0.1, 0.4, 0.7, 0.99])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_groups_are_those_of_scikit_learn(monkeypatch: pytest.MonkeyPatch, cut: float, seed: int) -> None:
    monkeypatch.setattr(linkage, "_SCORES", 500)
    rows = faces(seed)
    found = link_faces(rows, cut, np.zeros(90, np.int64))
    sk = AgglomerativeClustering(None, metric="cosine", linkage="average", distance_threshold=1 - cut)
    assert parts(found) == parts(sk.fit(rows.astype(np.float64)).labels_)
    assert found[np.sort(np.unique(found, return_index=True)[1])].tolist() == list(range(1, found.max() + 1))


def test_known_groups_keep_their_numbers_and_stay_apart() -> None:
    """Against one pair at a time, literally: the most alike two groups that are not both known."""
    for seed in range(4):
        rows = faces(seed, people=6)
        known = np.zeros(90, np.int64)
        known[:40] = np.random.default_rng(seed).integers(2, 9, 40)
        groups = [(n, np.flatnonzero(known == n).tolist()) for n in range(2, 9)] + [(0, [i]) for i in range(40, 90)]
        while True:
            alike = {
                (a, b): np.mean(rows[groups[a][1]].astype(np.float64) @ rows[groups[b][1]].T)
                for a in range(len(groups))
                for b in range(a)
                if not (groups[a][0] and groups[b][0])
            }
            if not alike or max(alike.values()) < 0.3:
                break
            a, b = max(alike, key=alike.__getitem__)
            groups[b] = (groups[a][0] or groups[b][0], groups[a][1] + groups[b][1])
            del groups[a]
        found = link_faces(rows, 0.3, known)
        assert parts(found) == {frozenset(members) for _, members in groups}
        assert (found[:40] == known[:40]).all()
        assert {n: frozenset(m) for n, m in groups if n} == {
            n: frozenset(np.flatnonzero(found == n).tolist()) for n in range(2, 9)
        }


def test_equal_faces_are_one_group() -> None:
    rows = np.repeat(faces(0)[:3], 30, axis=0)
    assert link_faces(rows, 0.999, np.zeros(90, np.int64)).tolist() == np.repeat([1, 2, 3], 30).tolist()
    assert link_faces(rows[:1], 0.5, np.zeros(1, np.int64)).tolist() == [1]
