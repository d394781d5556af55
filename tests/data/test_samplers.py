"""Batch plans and their split over processes."""

import itertools

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from facelit.data.samplers import (
    BatchPlan,
    EpochSampler,
    IdentityBalancedSampler,
    RandomTripletSampler,
    ShuffleSampler,
)
from facelit.errors import FacelitError

LABELS = np.repeat(np.arange(10), [1, 2, 3, 4, 5, 6, 7, 8, 9, 1]).astype(np.int64)
LABELS = np.random.default_rng(0).permutation(LABELS)
PLANS = [ShuffleSampler(4), IdentityBalancedSampler(2, 3), RandomTripletSampler(40, 3)]


def epoch(sampler: EpochSampler, number: int) -> list[list[int]]:
    sampler.set_epoch(number)
    return [request.indices.tolist() for request in sampler]


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: type(plan).__name__)
def test_processes_share_the_batches_of_one(plan: BatchPlan) -> None:
    """The parts of two processes, joined, are what a plan lays out for that world size; orders repeat by seed."""
    whole = [batch.tolist() for batch in plan.draw(LABELS, 2, np.random.default_rng([5, 3]))]
    parts = [epoch(EpochSampler(plan, LABELS, 2, rank, seed=5), 3) for rank in range(2)]
    assert [first + second for first, second in zip(*parts, strict=True)] == whole
    assert len(EpochSampler(plan, LABELS, 2, 0, seed=5)) == len(whole)


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: type(plan).__name__)
def test_order_depends_on_seed_and_epoch_alone(plan: BatchPlan) -> None:
    one = EpochSampler(plan, LABELS, 1, 0, seed=5)
    assert epoch(one, 0) == epoch(EpochSampler(plan, LABELS, 1, 0, seed=5), 0)
    assert epoch(one, 0) != epoch(one, 1)
    assert epoch(one, 0) != epoch(EpochSampler(plan, LABELS, 1, 0, seed=6), 0)


@pytest.mark.parametrize("dtype", ["int8", "uint16", "int32", "uint64"])
@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: type(plan).__name__)
def test_labels_of_any_integer_dtype_give_the_same_order(plan: BatchPlan, dtype: str) -> None:
    narrow = EpochSampler(plan, LABELS.astype(dtype), 2, 1, seed=5)
    assert epoch(narrow, 3) == epoch(EpochSampler(plan, LABELS, 2, 1, seed=5), 3)
    assert all(request.indices.dtype == np.int64 for request in narrow)


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: type(plan).__name__)
def test_requests_tell_the_size_of_the_global_batch(plan: BatchPlan) -> None:
    parts = [list(EpochSampler(plan, LABELS, 3, rank, seed=5)) for rank in range(3)]
    for requests in zip(*parts, strict=True):
        total = sum(len(request.indices) for request in requests)
        assert [request.global_size for request in requests] == [total] * 3


def test_labels_are_not_copied() -> None:
    assert EpochSampler(ShuffleSampler(4), LABELS, 1, 0, seed=5).labels is LABELS


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 4, 7])
def test_shuffle_visits_each_image_once(world_size: int, batch_size: int) -> None:
    samplers = [EpochSampler(ShuffleSampler(batch_size), LABELS, world_size, rank, 0) for rank in range(world_size)]
    seen = list(itertools.chain.from_iterable(itertools.chain.from_iterable(epoch(s, 2) for s in samplers)))
    assert sorted(seen) == list(range(len(LABELS)))


@pytest.mark.parametrize(
    ("num_images", "batch_size", "world_size", "sizes"),
    [
        (24, 4, 2, [8, 8, 8]),
        (25, 4, 2, [8, 8, 5, 4]),  # 9 left: not 8 and 1
        (31, 4, 2, [8, 8, 8, 7]),
        (31, 8, 1, [8, 8, 8, 7]),  # the same global batches on one process
        (9, 2, 4, [5, 4]),
        (10, 1, 4, [4, 6]),  # halves of 6 would leave a process without an image
        (5, 1, 4, [5]),
    ],
)
def test_shuffle_shares_what_is_left(num_images: int, batch_size: int, world_size: int, sizes: list[int]) -> None:
    labels = np.zeros(num_images, np.int64)
    plan = ShuffleSampler(batch_size)
    assert [len(batch) for batch in plan.draw(labels, world_size, np.random.default_rng(0))] == sizes
    assert plan.num_batches(labels, world_size) == len(sizes)


@pytest.mark.parametrize("drop_last", [False, True])
def test_shuffle_keeps_the_order_that_it_had(drop_last: bool) -> None:
    """Whole batches are rows of numpy's permutation: runs of earlier versions resume into the same order."""
    plan, rng = ShuffleSampler(5, drop_last), np.random.default_rng([7, 2])
    order = rng.permutation(40)
    drawn = list(plan.draw(np.zeros(40, np.int64), 2, np.random.default_rng([7, 2])))
    assert np.array_equal(drawn, order.reshape(4, 10))


def test_drop_last_leaves_out_what_fills_no_batch() -> None:
    plan = ShuffleSampler(4, drop_last=True)
    epochs = [list(plan.draw(LABELS, 2, np.random.default_rng(seed))) for seed in range(2)]  # 46 images
    for batches in epochs:
        assert [len(batch) for batch in batches] == [8] * 5 == [8] * plan.num_batches(LABELS, 2)
        assert len(set(np.concatenate(batches))) == 40
    assert set(np.concatenate(epochs[0])) != set(np.concatenate(epochs[1]))


@pytest.mark.parametrize("world_size", [1, 2])
def test_identity_balanced_batches(world_size: int) -> None:
    """P distinct identities x K images on each process, distinct over the global batch; nearly every image is used."""
    plan = IdentityBalancedSampler(2, 3)
    batches = plan.draw(LABELS, world_size, np.random.default_rng(0))
    for batch in batches:
        groups = LABELS[batch].reshape(-1, 3)
        assert (groups == groups[:, :1]).all()
        assert len(set(groups[:, 0])) == 2 * world_size
    usable = set(np.flatnonzero(np.isin(LABELS, [1, 2, 3, 4, 5, 6, 7, 8])))
    assert set(batches.ravel()) <= usable
    over_epochs = [plan.draw(LABELS, world_size, np.random.default_rng(seed)).ravel() for seed in range(6)]
    assert set(np.concatenate(over_epochs)) == usable


def test_identity_balanced_draws_each_image_once() -> None:
    """With sizes that are multiples of K and P x K dividing them, an epoch is a permutation of the images."""
    labels = np.repeat(np.arange(12), 8).astype(np.int64)
    batches = IdentityBalancedSampler(3, 4).draw(labels, 1, np.random.default_rng(1))
    assert batches.shape == (8, 12)
    assert sorted(batches.ravel()) == list(range(len(labels)))


def test_identity_balanced_spreads_an_identity_over_the_epoch() -> None:
    """Three groups of each of 12 identities in 9 batches of 4: each third of the epoch has all of them."""
    labels = np.repeat(np.arange(12), 6)
    batches = labels[IdentityBalancedSampler(4, 2).draw(labels, 1, np.random.default_rng(1))]
    for third in np.split(batches[:, ::2], 3):
        assert sorted(third.ravel()) == list(range(12))


def test_identity_balanced_mixes_identities() -> None:
    """Over epochs an identity meets every other one, and its images meet in all pairs."""
    labels = np.repeat(np.arange(8), 4)
    batches = [IdentityBalancedSampler(2, 2).draw(labels, 1, np.random.default_rng(seed)) for seed in range(150)]
    images = np.concatenate(batches)
    met = {frozenset(pair) for row in labels[images] for pair in itertools.combinations(row, 2) if len(set(pair)) == 2}
    assert len(met) == 8 * 7 // 2
    groups = {frozenset(group) for group in images.reshape(-1, 2).tolist()}
    assert len(groups) == 8 * (4 * 3 // 2)


@settings(max_examples=150, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 25), min_size=1, max_size=14),
    identities=st.integers(1, 4),
    images=st.integers(2, 4),
    world_size=st.integers(1, 3),
    seed=st.integers(0, 2**20),
)
@example([100, 2, 2, 2], 2, 2, 1, 0)  # one identity with nearly all the images: the others fill up
@example([8] * 6, 3, 4, 2, 0)  # every identity in every batch
@example([9, 2, 1, 4], 3, 4, 1, 0)
def test_identity_balanced_keeps_its_promises(
    sizes: list[int], identities: int, images: int, world_size: int, seed: int
) -> None:
    per_batch = identities * world_size
    assume(sum(size >= 2 for size in sizes) >= per_batch and max(sizes) >= images)
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    plan = IdentityBalancedSampler(identities, images)
    batches = plan.draw(labels, world_size, np.random.default_rng(seed))
    groups = [-(-size // images) if size >= 2 else 0 for size in sizes]
    num_batches = max(1, sum(groups) // per_batch)
    assert (
        batches.shape == (num_batches, per_batch * images) == (plan.num_batches(labels, world_size), per_batch * images)
    )
    drawn = labels[batches].reshape(num_batches, per_batch, images)
    assert (drawn == drawn[:, :, :1]).all()
    assert all(len(set(row)) == per_batch for row in drawn[:, :, 0].tolist())

    # Groups: all that there are, but for at most one a batch and a rest that fills none; more only to fill gaps.
    draws = np.bincount(drawn[:, :, 0].ravel(), minlength=len(sizes))
    own = np.minimum(groups, num_batches)
    assert (draws[np.array(sizes) < 2] == 0).all()
    missing = sum(own) - num_batches * per_batch
    assert np.maximum(own - draws, 0).sum() == max(missing, 0) < per_batch
    assert np.maximum(draws - own, 0).sum() == max(-missing, 0)

    # Images: those of an identity as often as each other; none twice in a group, if there are K.
    times = np.bincount(batches.ravel(), minlength=len(labels))
    for identity, size in enumerate(sizes):
        own_times = times[labels == identity]
        assert own_times.max(initial=0) - own_times.min(initial=own_times.max(initial=0)) <= 1
        assert own_times.sum() == draws[identity] * images
        if size >= images:
            for group in batches.reshape(-1, images)[drawn[:, :, 0].ravel() == identity]:
                assert len(set(group.tolist())) == images


def test_random_triplets_reach_every_image() -> None:
    """Anchor and positive are different images of one identity; the last identity and the last image take part."""
    triplets = RandomTripletSampler(6000, 10).draw(LABELS, 1, np.random.default_rng(0)).reshape(-1, 3)
    anchor, positive, negative = LABELS[triplets].T
    assert (anchor == positive).all()
    assert (triplets[:, 0] != triplets[:, 1]).all()
    assert (anchor != negative).all()
    several = np.flatnonzero(np.bincount(LABELS)[LABELS] >= 2)
    assert set(triplets[:, 0]) == set(triplets[:, 1]) == set(several)
    assert set(triplets[:, 2]) == set(range(len(LABELS)))


def test_resume_skips_what_was_done_and_only_that() -> None:
    sampler = EpochSampler(ShuffleSampler(4), LABELS, 1, 0, seed=1)
    third, fourth = epoch(sampler, 3), epoch(sampler, 4)
    sampler.resume(epoch=3, batches_done=5)
    assert epoch(sampler, 3) == third[5:]
    assert epoch(sampler, 4) == fourth
    sampler.resume(epoch=3, batches_done=len(sampler))
    assert [request.indices.tolist() for request in sampler] == fourth


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (ShuffleSampler(8), ShuffleSampler(4)),
        (IdentityBalancedSampler(4, 2), IdentityBalancedSampler(2, 2)),
        (RandomTripletSampler(40, 4), RandomTripletSampler(40, 2)),
    ],
    ids=lambda plan: type(plan).__name__,
)
def test_plans_with_the_same_order_options_have_the_same_order(one: BatchPlan, two: BatchPlan) -> None:
    """One process with all of the batch, or two with half of it each."""
    orders = [
        [batch.tolist() for batch in plan.draw(LABELS, n, np.random.default_rng(0))] for plan, n in ((one, 1), (two, 2))
    ]
    assert orders[0] == orders[1]
    assert one.order_options(1) == two.order_options(2)
    assert one.order_options(2) != two.order_options(2)


def test_a_plan_of_ones_own_names_its_attributes() -> None:
    class Reversed(RandomTripletSampler):
        order_options = BatchPlan.order_options

    plan = Reversed(40, 4)
    plan.order = object()
    assert plan.order_options(3) == {"number of processes": 3, "n_triplets": 40, "triplets_per_batch": 4}


@pytest.mark.parametrize(
    ("plan", "named"),
    [
        (ShuffleSampler(1000), "batch_size"),
        (IdentityBalancedSampler(9, 3), "identities_per_batch"),
        (IdentityBalancedSampler(2, 10), "images_per_identity"),
        (RandomTripletSampler(5, 10), "n_triplets"),
    ],
)
def test_too_much_for_the_data_names_the_option(plan: BatchPlan, named: str) -> None:
    with pytest.raises(FacelitError, match=named):
        EpochSampler(plan, LABELS, 1, 0, seed=0)
