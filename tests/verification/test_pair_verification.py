"""The metric against cosines and folds written out by hand, scikit-learn, and itself on other batches and processes."""

from __future__ import annotations

import doctest
import math
import pickle
from functools import cache
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from sklearn.metrics import roc_auc_score
from torch import Tensor

from facelit.verification import MissingImagesError, PairVerification, VerificationResult, pair_verification
from two_processes import run_on_two_processes

NUM_IMAGES, NUM_PAIRS, FOLDS = 40, 120, 5
WIDTH = 6


@cache
def case() -> tuple[Tensor, np.ndarray, np.ndarray]:
    """Embeddings (unnormalised) of 40 images, of which number 7 is in no pair; pairs; is_same, both kinds in each fold."""
    rng = np.random.default_rng(0)
    person = np.arange(NUM_IMAGES) % 8
    centres, noise = rng.normal(size=(8, WIDTH)), rng.normal(size=(NUM_IMAGES, WIDTH))
    embeddings = (centres[person] + noise) * rng.uniform(0.1, 9, size=(NUM_IMAGES, 1))
    everything = rng.permutation([pair for pair in combinations(np.delete(np.arange(NUM_IMAGES), 7), 2)])
    same = person[everything[:, 0]] == person[everything[:, 1]]
    pairs = np.stack([everything[same][: NUM_PAIRS // 2], everything[~same][: NUM_PAIRS // 2]], axis=1).reshape(-1, 2)
    return torch.tensor(embeddings, dtype=torch.float32), pairs, np.arange(NUM_PAIRS) % 2 == 0


def new_metric(**options: Any) -> PairVerification:
    _, pairs, is_same = case()
    return PairVerification(pairs, is_same, FOLDS, **options)


def fed(metric: PairVerification, numbers: Any, batch: int = 7) -> PairVerification:
    embeddings = case()[0]
    for part in torch.as_tensor(numbers, dtype=torch.int64).split(batch):
        metric.update(embeddings[part], part)
    return metric


def assert_equal(found: VerificationResult, expected: VerificationResult) -> None:
    """To the last digit."""
    assert found.as_dict() == expected.as_dict()
    for name in ("fold_accuracies", "fold_thresholds", "scores"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def test_figures_are_lfws_protocol_written_out() -> None:
    embeddings, pairs, is_same = case()
    rows = embeddings.double().tolist()

    def cosine(a: list[float], b: list[float]) -> float:
        dot = math.fsum(x * y for x, y in zip(a, b, strict=True))
        return dot / math.sqrt(math.fsum(x * x for x in a)) / math.sqrt(math.fsum(x * x for x in b))

    scores = [cosine(rows[a], rows[b]) for a, b in pairs]
    size = NUM_PAIRS // FOLDS
    accuracies = []
    for fold in range(FOLDS):
        held_out = range(fold * size, (fold + 1) * size)
        others = [pair for pair in range(NUM_PAIRS) if pair not in held_out]
        correct = {t: sum((scores[p] >= t) == is_same[p] for p in others) for t in (scores[p] for p in others)}
        threshold = max(t for t, count in correct.items() if count == max(correct.values()))
        accuracies.append(sum((scores[p] >= threshold) == is_same[p] for p in held_out) / size)
    mean = sum(accuracies) / FOLDS
    result = fed(new_metric(), range(NUM_IMAGES)).compute()
    np.testing.assert_allclose(result.scores, scores, atol=1e-14)
    np.testing.assert_array_equal(result.fold_accuracies, accuracies)
    assert result.accuracy == pytest.approx(mean, abs=1e-15)
    deviation = math.sqrt(sum((accuracy - mean) ** 2 for accuracy in accuracies) / (FOLDS - 1))
    assert result.accuracy_se == pytest.approx(deviation / math.sqrt(FOLDS), abs=1e-15)
    assert result.auc == pytest.approx(roc_auc_score(is_same, scores), abs=1e-14)
    assert 0.6 < result.auc < 1


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_neither_order_nor_repetition_nor_images_of_no_pair_matter(batch: int) -> None:
    expected = fed(new_metric(), range(NUM_IMAGES)).compute()
    order = np.random.default_rng(batch).permutation(NUM_IMAGES)
    assert_equal(fed(new_metric(), [*order, *order[::-1], 3, 3], batch).compute(), expected)
    assert_equal(fed(new_metric(), np.delete(order, order.tolist().index(7)), batch).compute(), expected)


def test_pairs_labels_and_folds_may_be_tensors_or_lists() -> None:
    _, pairs, is_same = case()
    expected = fed(new_metric(), range(NUM_IMAGES)).compute()
    folds = np.arange(NUM_PAIRS) // (NUM_PAIRS // FOLDS)
    tensors = PairVerification(torch.tensor(pairs), torch.tensor(is_same), torch.tensor(folds))
    assert_equal(fed(tensors, range(NUM_IMAGES)).compute(), expected)
    lists = PairVerification(pairs.tolist(), is_same.tolist(), folds.tolist())
    assert_equal(fed(lists, range(NUM_IMAGES)).compute(), expected)


def test_numbers_may_have_gaps() -> None:
    """Only the images of pairs count, whatever their numbers."""
    embeddings, pairs, is_same = case()
    expected = fed(new_metric(), range(NUM_IMAGES)).compute()
    metric = PairVerification(pairs * 1_000_003, is_same, FOLDS)
    metric.update(embeddings, 1_000_003 * torch.arange(NUM_IMAGES))
    assert_equal(metric.compute(), expected)


def test_the_first_embedding_of_an_image_counts() -> None:
    expected = fed(new_metric(), range(NUM_IMAGES)).compute()
    metric = fed(new_metric(), range(NUM_IMAGES))
    for _ in range(3):
        metric.update(torch.full((NUM_IMAGES, WIDTH), torch.nan), torch.arange(NUM_IMAGES))
    assert_equal(metric.compute(), expected)


def test_each_distinct_image_is_held_once() -> None:
    metric = fed(new_metric(), [*range(NUM_IMAGES)] * 5)
    assert sum(map(len, metric.numbers)) == NUM_IMAGES - 1
    assert sum(map(len, metric.embeddings)) == (NUM_IMAGES - 1) * WIDTH


def test_a_missing_image_is_an_error() -> None:
    metric = fed(new_metric(), [number for number in range(NUM_IMAGES) if number not in (5, 21)])
    with pytest.raises(MissingImagesError, match="2 of 39 images were not embedded"):
        metric.compute()
    fed(metric, [5, 21])
    assert_equal(metric.compute(), fed(new_metric(), range(NUM_IMAGES)).compute())
    metric.reset()
    with (
        pytest.warns(UserWarning, match="before the ``update``"),
        pytest.raises(MissingImagesError, match="none of 39 images"),
    ):
        metric.compute()


def test_a_broken_network_is_an_error() -> None:
    metric = new_metric()
    embeddings = case()[0].clone()
    embeddings[4, 2], embeddings[7, 0], embeddings[9, 0] = torch.nan, torch.nan, torch.inf
    metric.update(embeddings, torch.arange(NUM_IMAGES))
    with pytest.raises(ValueError, match="2 embeddings are NaN or infinite"):  # 7 is in no pair
        metric.compute()


@pytest.mark.parametrize(
    ("pairs", "is_same", "folds", "message"),
    [
        ([0, 1, 2, 3], [1, 0], 2, r"shape \(num_pairs, 2\), not int64 \(4,\)"),
        ([[0.0, 1.0], [2.0, 3.0]], [1, 0], 2, "not float64"),
        ([[0, 1], [2, -3]], [1, 0], 2, "must not be negative; pairs contains -3"),
        ([[0, 1], [2, 3]], [1, 0, 1], 2, "must have the same shape"),
        ([[0, 1], [2, 3]], [1, 1], 2, "all pairs are of one kind"),
        ([[0, 1], [2, 3]], [1, 0], 10, "cannot be divided into 10 equal folds"),
    ],
)
def test_wrong_pairs_are_refused_at_once(pairs: Any, is_same: Any, folds: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PairVerification(pairs, is_same, folds)


@pytest.mark.parametrize(
    ("embeddings", "numbers", "message"),
    [
        (torch.zeros(3), torch.arange(3), r"not \(3,\) and \(3,\)"),
        (torch.zeros(3, 2), torch.arange(4), r"not \(3, 2\) and \(4,\)"),
        (torch.zeros(3, 2), torch.zeros(3), "not torch.float32 and torch.float32"),
        (torch.zeros(3, 2, dtype=torch.int64), torch.arange(3), "not torch.int64 and torch.int64"),
        (torch.zeros(3, 2), torch.arange(3), "2 dimensions, those of earlier batches 6"),
    ],
)
def test_wrong_batches_are_refused(embeddings: Tensor, numbers: Tensor, message: str) -> None:
    metric = fed(new_metric(), range(10))
    with pytest.raises(ValueError, match=message):
        metric.update(embeddings, numbers)


def test_an_empty_batch_changes_nothing() -> None:
    metric = new_metric()
    metric.update(torch.zeros(0, WIDTH), torch.zeros(0, dtype=torch.int64))
    assert_equal(
        fed(metric, range(NUM_IMAGES)).compute(), fed(new_metric(compute_on_cpu=True), range(NUM_IMAGES)).compute()
    )


def test_it_is_a_metric_like_torchmetrics_own() -> None:
    """Pickled, cloned and moved halfway; `half` leaves what is held in float32; nothing in a module's checkpoint."""
    expected = fed(new_metric(), range(NUM_IMAGES)).compute()
    metric = fed(new_metric(), range(20))
    for copy in (pickle.loads(pickle.dumps(metric)), metric.clone(), metric.half().double()):
        assert_equal(fed(copy, range(20, NUM_IMAGES)).compute(), expected)
    assert {state.dtype for state in metric.embeddings} == {torch.float32}
    assert dict(torch.nn.ModuleDict({"metric": metric}).state_dict()) == {}
    assert {state.device.type for state in metric.to("meta").embeddings} == {"meta"}


def test_forward_is_update() -> None:
    metric = fed(new_metric(), range(20))
    rest = torch.arange(20, NUM_IMAGES)
    assert metric(case()[0][rest], rest) is None
    assert_equal(metric.compute(), fed(new_metric(), range(NUM_IMAGES)).compute())


def test_two_metrics_merge() -> None:
    merged = fed(new_metric(), range(25))
    merged.merge_state(fed(new_metric(), range(20, NUM_IMAGES)))
    assert_equal(merged.compute(), fed(new_metric(), range(NUM_IMAGES)).compute())


def test_embeddings_with_gradient_and_in_half_precision_are_taken() -> None:
    embeddings = case()[0].bfloat16().requires_grad_()
    metric = new_metric()
    metric.update(embeddings, torch.arange(NUM_IMAGES, dtype=torch.int32))
    assert not metric.embeddings[0].requires_grad
    expected = new_metric()
    expected.update(embeddings.detach().double(), torch.arange(NUM_IMAGES))
    assert_equal(metric.compute(), expected.compute())


def test_plot_draws_the_roc_curve() -> None:
    metric = fed(new_metric(), range(NUM_IMAGES))
    result = metric.compute()
    figure, axes = metric.plot()
    assert isinstance(figure, Figure)
    own = Figure()
    own_axes = own.add_subplot()
    assert metric.plot(result, ax=own_axes) == (own, own_axes)
    assert "AUC" in own_axes.get_legend().get_texts()[2].get_text()
    for drawn in (axes, own_axes):
        assert any(np.array_equal(line.get_ydata(), result.roc.tar) for line in drawn.lines)
        drawn.figure.draw_without_rendering()


def shares(kind: str) -> list[list[int]]:
    """Image numbers for each of two processes."""
    everything = list(range(NUM_IMAGES))
    return {
        "padded": [everything[::2], [*everything[1::2], 0, 0]],
        "uneven": [everything[:33], everything[33:]],
        "one process without an image": [everything, []],
        "the other process without an image": [[], everything],
        "overlapping": [everything, everything],
    }[kind]


def compute_on_this_process(kind: str) -> tuple[VerificationResult, VerificationResult, str]:
    """The figures; those after the last image came late on this process; what an incomplete set ends in."""
    rank = torch.distributed.get_rank()
    own = shares(kind)[rank]
    metric = fed(new_metric(), own)
    first = metric.compute()
    metric.reset()
    late = fed(fed(metric, own[:-1]), own[-1:]).compute()
    try:
        return first, late, str(fed(new_metric(), [number for number in own if number != 11]).compute())
    except MissingImagesError as error:
        return first, late, str(error)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
@pytest.mark.parametrize(
    "kind",
    [
        "padded",
        "uneven",
        "one process without an image",
        "the other process without an image",
        "overlapping",
    ],
)
def test_two_processes_give_one_process_figures(kind: str) -> None:
    expected = fed(new_metric(), range(NUM_IMAGES)).compute()
    for first, late, error in run_on_two_processes(compute_on_this_process, kind):
        assert_equal(first, expected)
        assert_equal(late, expected)
        assert error == "1 of 39 images were not embedded"


def accumulate_after_compute() -> VerificationResult:
    """Computes in between, as a progress bar would, then goes on."""
    own = shares("uneven")[torch.distributed.get_rank()]
    metric = fed(new_metric(), own)
    metric.compute()
    fed(metric, own)
    assert sum(map(len, metric.numbers)) < NUM_IMAGES + len(own)  # its own share, not everybody's
    return metric.compute()


def test_accumulation_goes_on_after_compute() -> None:
    expected = fed(new_metric(), range(NUM_IMAGES)).compute()
    for result in run_on_two_processes(accumulate_after_compute):
        assert_equal(result, expected)


def test_the_docstrings_example_runs() -> None:
    found = doctest.testmod(pair_verification)
    assert found.attempted >= 5
    assert found.failed == 0
