"""Scores of groups against definitions written out over all pairs of faces."""

import numpy as np
import pytest

from facelit.verification.clustering import score_clusters


@pytest.mark.parametrize("seed", range(8))
def test_scores_are_their_definitions(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(2, 40))
    groups, people = rng.integers(0, 7, count) - 3, rng.integers(0, 9, count)
    found = score_clusters(groups, people)
    together = same_group = same_person = 0
    precision = recall = 0.0
    for a in range(count):
        mine = [b for b in range(count) if groups[a] == groups[b]]
        precision += sum(people[a] == people[b] for b in mine) / len(mine) / count
        his = [b for b in range(count) if people[a] == people[b]]
        recall += sum(groups[a] == groups[b] for b in his) / len(his) / count
        for b in range(a):
            same_group += groups[a] == groups[b]
            same_person += people[a] == people[b]
            together += groups[a] == groups[b] and people[a] == people[b]
    assert found.pair_precision == pytest.approx(together / same_group if same_group else 1)
    assert found.pair_recall == pytest.approx(together / same_person if same_person else 1)
    assert (found.bcubed_precision, found.bcubed_recall) == pytest.approx((precision, recall))
    assert found.bcubed_f == pytest.approx(2 / (1 / precision + 1 / recall))
    assert (found.groups, found.people) == (len(set(groups)), len(set(people)))
