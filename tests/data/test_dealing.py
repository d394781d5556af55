"""Dealing, against slow literal counts."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facelit.data.dealing import images_per_identity, pick, separate_duplicates, shuffled, shuffled_by_identity


@pytest.mark.parametrize("count", [0, 1, 5, 2**20 + 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.uint64])
def test_images_are_counted(count: int, dtype: type) -> None:
    labels = np.random.default_rng(0).choice([0, 2, 7], size=count).astype(dtype)
    found = images_per_identity(labels)
    expected = Counter(labels.tolist())
    assert found.tolist() == [expected[label] for label in range(max(expected, default=-1) + 1)]


def test_shuffled_is_numpys_permutation() -> None:
    assert np.array_equal(shuffled(1000, np.random.default_rng(3)), np.random.default_rng(3).permutation(1000))


def test_shuffled_by_identity() -> None:
    """Identities in order; within one, every order comes up about equally often."""
    labels = np.array([3, 0, 3, 1, 3], np.uint8)
    orders = Counter()
    for seed in range(600):
        order = shuffled_by_identity(labels, np.random.default_rng(seed)).tolist()
        assert order[:2] == [1, 3]
        orders[tuple(order[2:])] += 1
    assert len(orders) == 6
    assert all(60 < times < 140 for times in orders.values())


@settings(deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=8), st.data())
def test_pick_takes_no_more_than_there_are(amounts: list[int], data: st.DataObject) -> None:
    count = data.draw(st.integers(0, sum(amounts))) if sum(amounts) else 0
    if sum(amounts):
        picked = pick(np.array(amounts), count, np.random.default_rng(0))
        assert picked.sum() == count
        assert (picked <= amounts).all()
        assert (picked >= 0).all()


@settings(max_examples=200, deadline=None)
@given(
    num_batches=st.integers(1, 8),
    per_batch=st.integers(1, 8),
    dense=st.booleans(),
    sort=st.booleans(),
    seed=st.integers(0, 2**20),
)
def test_twins_part(num_batches: int, per_batch: int, dense: bool, sort: bool, seed: int) -> None:
    """From any arrangement, even that of all of an identity's groups side by side."""
    rng = np.random.default_rng(seed)
    total = num_batches * per_batch
    kinds = per_batch if dense else 2 * per_batch  # dense: every identity is in every batch
    draws = pick(np.full(kinds, num_batches), total, rng)
    identities = np.repeat(np.arange(len(draws)), draws)
    groups = np.arange(total) if sort else rng.permutation(total)
    groups = groups.reshape(num_batches, per_batch)
    separate_duplicates(groups, identities, rng)
    assert sorted(groups.ravel()) == list(range(total))
    assert all(len(set(row)) == per_batch for row in identities[groups].tolist())


def test_no_twins_no_change() -> None:
    groups = np.array([[0, 3], [2, 1]])
    separate_duplicates(groups, np.array([0, 0, 1, 1]), np.random.default_rng(0))
    assert groups.tolist() == [[0, 3], [2, 1]]
