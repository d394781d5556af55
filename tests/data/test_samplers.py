"""Batch plans and their split over processes."""

import itertools

import numpy as np
import pytest

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
    whole = plan.draw(LABELS, 2, np.random.default_rng([5, 3]))
    parts = [epoch(EpochSampler(plan, LABELS, 2, rank, seed=5), 3) for rank in range(2)]
    assert [first + second for first, second in zip(*parts, strict=True)] == whole.tolist()
    assert len(EpochSampler(plan, LABELS, 2, 0, seed=5)) == len(whole)


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: type(plan).__name__)
def test_order_depends_on_seed_and_epoch_alone(plan: BatchPlan) -> None:
    one = EpochSampler(plan, LABELS, 1, 0, seed=5)
    assert epoch(one, 0) == epoch(EpochSampler(plan, LABELS, 1, 0, seed=5), 0)
    assert epoch(one, 0) != epoch(one, 1)
    assert epoch(one, 0) != epoch(EpochSampler(plan, LABELS, 1, 0, seed=6), 0)


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 4, 7])
def test_shuffle_visits_each_image_once(world_size: int, batch_size: int) -> None:
    samplers = [EpochSampler(ShuffleSampler(batch_size), LABELS, world_size, rank, 0) for rank in range(world_size)]
    seen = list(itertools.chain.from_iterable(itertools.chain.from_iterable(epoch(s, 2) for s in samplers)))
    assert len(seen) == len(set(seen)) == len(LABELS) // (batch_size * world_size) * batch_size * world_size


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


def test_identity_balanced_draws_each_image_about_once() -> None:
    """With sizes that are multiples of K and P x K dividing them, an epoch is a permutation of the images."""
    labels = np.repeat(np.arange(12), 8).astype(np.int64)
    batches = IdentityBalancedSampler(3, 4).draw(labels, 1, np.random.default_rng(1))
    counts = np.bincount(batches.ravel(), minlength=len(labels))
    assert batches.shape == (8, 12)
    assert (counts == 1).mean() > 0.8
    assert counts.max() <= 3


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
