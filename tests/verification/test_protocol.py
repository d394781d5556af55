"""The protocol against a literal double loop, scikit-learn and cases worked by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score, roc_curve

from facelit.verification import Roc, TarAtFar, VerificationResult, evaluate_pairs

GENUINE_FIRST = np.array([True] * 5 + [False] * 5)
"""One fold of ten pairs; `np.tile` repeats it."""


def literal_folds(scores, is_same, fold_of):
    """Decision 5 word by word: each fold, each candidate threshold of the others, each pair."""
    accuracies, thresholds = [], []
    for fold in sorted(set(fold_of.tolist())):
        others = [(s, g) for s, g, f in zip(scores, is_same, fold_of, strict=True) if f != fold]
        held_out = [(s, g) for s, g, f in zip(scores, is_same, fold_of, strict=True) if f == fold]
        chosen, most = math.inf, -1
        for threshold in [math.inf, *sorted({s for s, _ in others}, reverse=True)]:
            correct = sum((s >= threshold) == g for s, g in others)
            if correct > most:  # falling thresholds: of equally good ones the highest stays
                chosen, most = threshold, correct
        accuracies.append(sum((s >= chosen) == g for s, g in held_out) / len(held_out))
        thresholds.append(chosen)
    return np.array(accuracies), np.array(thresholds)


def balanced(num_pairs):
    return np.tile(GENUINE_FIRST, num_pairs // 10)


def random_scores(rng, is_same):
    return rng.normal(size=len(is_same)) + is_same


SCORES = {
    "random": random_scores,
    "tied": lambda rng, is_same: rng.integers(0, 5, len(is_same)) + is_same.astype(float),
    "cosines of float32": lambda rng, is_same: np.float32(np.tanh(random_scores(rng, is_same))),
    "separable": lambda rng, is_same: rng.random(len(is_same)) + 2 * is_same,
    "reversed": lambda rng, is_same: rng.random(len(is_same)) - 2 * is_same,
    "constant": lambda rng, is_same: np.full(len(is_same), 0.25),
    "signed zeros": lambda rng, is_same: np.where(rng.random(len(is_same)) < 0.5, 0.0, -0.0) + is_same // 2,
    "one fold apart": lambda rng, is_same: random_scores(rng, is_same) + 9 * (np.arange(len(is_same)) < 10),
}
EVERY_KIND = pytest.mark.parametrize("kind", SCORES)


@EVERY_KIND
@pytest.mark.parametrize("folds", [2, 5, 10])
def test_folds_equal_the_literal_double_loop(kind, folds):
    for seed in range(3):
        is_same = balanced(60 if folds == 2 else 100)
        scores = SCORES[kind](np.random.default_rng(seed), is_same)
        blocks = np.repeat(np.arange(folds), len(scores) // folds)
        accuracies, thresholds = literal_folds(scores, is_same, blocks)
        result = evaluate_pairs(scores, is_same, folds)
        np.testing.assert_array_equal(result.fold_accuracies, accuracies)
        np.testing.assert_array_equal(result.fold_thresholds, thresholds)
        assert result.num_folds == folds


@EVERY_KIND
def test_scattered_uneven_folds_equal_the_literal_double_loop(kind):
    for seed in range(3):
        rng = np.random.default_rng(seed)
        is_same = balanced(80)
        scores = SCORES[kind](rng, is_same)
        fold_of = rng.choice([7, -3, 40, 11], p=[0.6, 0.2, 0.15, 0.05], size=80)
        accuracies, thresholds = literal_folds(scores, is_same, fold_of)
        result = evaluate_pairs(scores, is_same, fold_of)
        np.testing.assert_array_equal(result.fold_accuracies, accuracies)
        np.testing.assert_array_equal(result.fold_thresholds, thresholds)


def test_a_fold_of_one_kind_only_is_evaluated():
    scores, is_same = np.array([0.9, 0.8, 0.1, 0.2, 0.85, 0.15]), np.array([1, 1, 0, 0, 1, 0], dtype=bool)
    accuracies, _ = literal_folds(scores, is_same, np.arange(6) // 2)
    result = evaluate_pairs(scores, is_same, [0, 0, 1, 1, 2, 2])
    np.testing.assert_array_equal(result.fold_accuracies, accuracies)


def test_a_number_of_folds_means_contiguous_equal_blocks():
    is_same = balanced(60)
    scores = random_scores(np.random.default_rng(0), is_same)
    by_number = evaluate_pairs(scores, is_same, 6)
    by_name = evaluate_pairs(scores, is_same, np.repeat([3, 5, 6, 8, 9, 11], 10))
    np.testing.assert_array_equal(by_number.fold_accuracies, by_name.fold_accuracies)
    np.testing.assert_array_equal(by_number.fold_thresholds, by_name.fold_thresholds)


def test_standard_error_is_of_the_sample():
    is_same = balanced(100)
    result = evaluate_pairs(random_scores(np.random.default_rng(1), is_same), is_same)
    mean = sum(result.fold_accuracies) / 10
    squares = sum((accuracy - mean) ** 2 for accuracy in result.fold_accuracies)
    assert result.accuracy == pytest.approx(mean, abs=1e-15)
    assert result.accuracy_se == pytest.approx(math.sqrt(squares / 9) / math.sqrt(10), abs=1e-15)
    assert result.accuracy_se > 0


@EVERY_KIND
def test_best_threshold_is_the_most_accurate_over_all_pairs(kind):
    is_same = balanced(60)
    scores = SCORES[kind](np.random.default_rng(4), is_same)
    candidates = [math.inf, *sorted(set(scores.tolist()), reverse=True)]
    accuracies = [np.mean((scores >= threshold) == is_same) for threshold in candidates]
    result = evaluate_pairs(scores, is_same, 6)
    assert result.best_accuracy == max(accuracies)
    assert result.best_threshold == candidates[int(np.argmax(accuracies))]


@EVERY_KIND
def test_auc_and_roc_equal_scikit_learn(kind):
    is_same = balanced(200)
    scores = SCORES[kind](np.random.default_rng(2), is_same)
    result = evaluate_pairs(scores, is_same)
    far, tar, thresholds = roc_curve(is_same, scores, drop_intermediate=False)
    assert result.auc == pytest.approx(roc_auc_score(is_same, scores), abs=1e-12)
    np.testing.assert_allclose(result.roc.far, far, rtol=0, atol=1e-15)
    np.testing.assert_allclose(result.roc.tar, tar, rtol=0, atol=1e-15)
    np.testing.assert_array_equal(result.roc.thresholds, thresholds)


def test_auc_equals_scikit_learn_at_the_size_of_lfw():
    is_same = np.tile(np.repeat([True, False], 300), 10)
    scores = random_scores(np.random.default_rng(3), is_same)
    result = evaluate_pairs(scores, is_same)
    assert result.auc == pytest.approx(roc_auc_score(is_same, scores), abs=1e-12)
    assert (result.num_genuine, result.num_impostor, result.num_folds) == (3000, 3000, 10)


def test_roc_runs_from_none_accepted_to_all():
    roc = evaluate_pairs([0.1, 0.4, 0.4, 0.8], [False, True, False, True], 2).roc
    assert isinstance(roc, Roc)
    np.testing.assert_array_equal(roc.far, [0, 0, 0.5, 1])
    np.testing.assert_array_equal(roc.tar, [0, 0.5, 1, 1])
    np.testing.assert_array_equal(roc.thresholds, [np.inf, 0.8, 0.4, 0.1])


@pytest.mark.parametrize(
    ("genuine", "impostor", "eer", "threshold"),
    [
        # A point of the curve: one of four impostors is accepted and one of four genuine pairs rejected.
        ([0.9, 0.8, 0.7, 0.2], [0.6, 0.3, 0.1, 0.0], 0.25, 0.6),
        # On a stretch, (1/2, 1/3) -> (1/2, 2/3): FAR is 1/2 all along, and 1 - TAR passes it.
        ([0.9, 0.5, 0.1], [0.8, 0.0], 0.5, 0.5),
        # A diagonal stretch from (0, 1/2) to (1, 1), all tied: FAR x, TAR 1/2 + x/2, so x = 1/3.
        ([0.9, 0.4], [0.4, 0.4], 1 / 3, 0.4),
        ([0.9, 0.8], [0.1, 0.2], 0.0, 0.8),
        ([0.1, 0.2], [0.9, 0.8], 1.0, 0.8),
        ([0.5, 0.5], [0.5, 0.5], 0.5, 0.5),
    ],
)
def test_eer_worked_by_hand(genuine, impostor, eer, threshold):
    is_same = np.array([True] * len(genuine) + [False] * len(impostor))
    result = evaluate_pairs([*genuine, *impostor], is_same, np.arange(len(is_same)) % 2)
    assert result.eer == pytest.approx(eer, abs=1e-15)
    if eer not in (0.0, 1.0):
        assert result.eer_threshold == threshold


def test_eer_threshold_is_exact_where_a_point_of_the_curve_has_equal_errors():
    # k of n impostors accepted, k of n genuine pairs rejected: 1 - TAR rounds otherwise than FAR for many.
    for size in range(2, 60):
        for wrong in range(1, size):
            genuine = [3.0] * (size - wrong) + [0.0] * wrong
            impostor = [2.0] * wrong + [0.0] * (size - wrong)
            is_same = [True] * size + [False] * size
            result = evaluate_pairs(genuine + impostor, is_same, np.arange(2 * size) % 2)
            assert result.eer == pytest.approx(wrong / size, abs=1e-15)
            assert result.eer_threshold == 2.0, f"{wrong} of {size}"


def impostors_and_genuine(impostor, genuine):
    scores = np.concatenate([impostor, genuine])
    is_same = np.arange(len(scores)) >= len(impostor)
    return scores, is_same, np.arange(len(scores)) % 2


def test_tar_at_far_worked_by_hand():
    # 400 impostors at 0..399: FAR 1e-2 lets four of them in, so the threshold may fall to 396, not to 395.
    genuine = [500.0, 396.5, 396.0, 395.5, 395.0, 1.0, 398.0, 2.0]
    result = evaluate_pairs(*impostors_and_genuine(np.arange(400.0), genuine))
    # 395.5 accepts no further impostor, so the largest TAR at four of them is reached there.
    assert result.tar_at_far == {1e-2: TarAtFar(tar=5 / 8, far=4 / 400, threshold=395.5, num_impostors=4)}


def test_tar_at_far_does_not_split_ties_or_interpolate():
    impostor = np.concatenate([np.arange(395.0), np.full(5, 400.0)])  # five tie at the top: FAR 0 or 5/400
    result = evaluate_pairs(*impostors_and_genuine(impostor, [500.0, 400.0, 399.0, 0.0]))
    assert result.tar_at_far[1e-2] == TarAtFar(tar=1 / 4, far=0.0, threshold=500.0, num_impostors=4)


def test_tar_at_far_is_zero_where_an_impostor_tie_leads():
    impostor = np.concatenate([np.arange(395.0), np.full(5, 900.0)])
    result = evaluate_pairs(*impostors_and_genuine(impostor, [500.0, 400.0]))
    assert result.tar_at_far[1e-2] == TarAtFar(tar=0.0, far=0.0, threshold=math.inf, num_impostors=4)


@pytest.mark.parametrize(
    ("num_impostor", "shown"),
    [(299, {}), (300, {1e-2: 3}), (600, {1e-2: 6}), (2999, {1e-2: 29}), (3000, {1e-2: 30, 1e-3: 3})],
)
def test_a_far_needs_three_impostor_pairs_behind_it(num_impostor, shown):
    impostor = np.random.default_rng(0).random(num_impostor)
    result = evaluate_pairs(*impostors_and_genuine(impostor, np.linspace(0, 1.2, 50)))
    assert {target: point.num_impostors for target, point in result.tar_at_far.items()} == shown
    for target, point in result.tar_at_far.items():
        accepted = impostor >= point.threshold
        assert accepted.sum() == point.num_impostors
        assert point.far == accepted.mean() <= target


@EVERY_KIND
def test_a_rising_transform_of_the_scores_changes_no_rate(kind):
    is_same = balanced(100)
    scores = SCORES[kind](np.random.default_rng(5), is_same).astype(np.float64)
    plain, transformed = evaluate_pairs(scores, is_same), evaluate_pairs(3 * scores + np.exp(scores), is_same)
    np.testing.assert_array_equal(plain.fold_accuracies, transformed.fold_accuracies)
    assert plain.auc == transformed.auc
    assert plain.eer == transformed.eer


@EVERY_KIND
def test_order_within_folds_changes_nothing(kind):
    rng = np.random.default_rng(6)
    is_same = balanced(100)
    scores = SCORES[kind](rng, is_same)
    order = np.concatenate([10 * fold + rng.permutation(10) for fold in range(10)])
    plain, shuffled = evaluate_pairs(scores, is_same), evaluate_pairs(scores[order], is_same[order])
    assert plain.as_dict() == shuffled.as_dict()
    np.testing.assert_array_equal(plain.fold_accuracies, shuffled.fold_accuracies)
    np.testing.assert_array_equal(plain.fold_thresholds, shuffled.fold_thresholds)


def test_order_across_folds_changes_accuracy():
    """Folds are as the pairs file orders them: a shuffle of all pairs is another protocol."""
    rng = np.random.default_rng(7)
    is_same = balanced(100)
    scores = random_scores(rng, is_same) + np.repeat(np.arange(10) * 0.3, 10)
    order = rng.permutation(100)
    plain, shuffled = evaluate_pairs(scores, is_same), evaluate_pairs(scores[order], is_same[order])
    assert not np.array_equal(plain.fold_accuracies, shuffled.fold_accuracies)


def test_lists_tensors_and_float32_are_taken_as_float64():
    is_same = balanced(20)
    scores = np.random.default_rng(8).normal(size=20).astype(np.float32)
    expected = evaluate_pairs(scores.astype(np.float64), is_same, 2)
    for given in (scores, torch.from_numpy(scores), scores.tolist()):
        result = evaluate_pairs(given, is_same.tolist(), 2)
        assert result.as_dict() == expected.as_dict()
        assert result.roc.thresholds.dtype == np.float64
    tensors = evaluate_pairs(torch.from_numpy(scores), torch.from_numpy(is_same), torch.arange(20) // 10)
    assert tensors.as_dict() == expected.as_dict()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_tensors_of_any_dtype_with_gradient_are_taken(dtype):
    is_same = balanced(20)
    scores = torch.randn(20, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    expected = evaluate_pairs(scores.detach().double().numpy(), is_same, 2)
    assert evaluate_pairs(scores, torch.from_numpy(is_same), 2).as_dict() == expected.as_dict()


def test_a_fraction_of_a_fold_is_refused():
    with pytest.raises(TypeError):
        evaluate_pairs(np.arange(20.0), balanced(20), 2.5)


def test_inputs_are_left_as_they_are():
    is_same = balanced(20)
    scores = np.random.default_rng(9).normal(size=20)
    before = scores.copy()
    evaluate_pairs(scores, is_same, 2)
    np.testing.assert_array_equal(scores, before)


@pytest.mark.parametrize(
    ("scores", "is_same", "folds", "message"),
    [
        (np.zeros(9), balanced(10), 2, r"\(9,\).*\(10,\)"),
        (np.zeros((5, 2)), balanced(10), 2, r"\(N,\)"),
        ([math.nan, *[0.0] * 7, math.inf, -math.inf], balanced(10), 2, "3 of 10 scores are NaN or infinite"),
        (np.zeros(10), np.ones(10, dtype=bool), 2, "one kind"),
        (np.zeros(10), np.zeros(10, dtype=bool), 2, "one kind"),
        ([], [], 2, "one kind"),
        (np.zeros(10), balanced(10), 1, "at least 2"),
        (np.zeros(10), balanced(10), 0, "at least 2"),
        (np.zeros(10), balanced(10), -2, "at least 2"),
        (np.zeros(10), balanced(10), 3, "10 pairs"),
        (np.zeros(10), balanced(10), 20, "10 pairs"),
        (np.zeros(10), balanced(10), np.zeros(10, dtype=int), "two folds"),
        (np.zeros(10), balanced(10), np.arange(9), "10 pairs"),
    ],
)
def test_errors(scores, is_same, folds, message):
    with pytest.raises(ValueError, match=message):
        evaluate_pairs(scores, is_same, folds)


def test_summary_and_dict_hold_the_figures():
    is_same = np.tile(np.repeat([True, False], 300), 10)
    result = evaluate_pairs(random_scores(np.random.default_rng(10), is_same), is_same)
    expected = {
        "accuracy": result.accuracy,
        "accuracy_se": result.accuracy_se,
        "auc": result.auc,
        "eer": result.eer,
        "threshold": result.best_threshold,
        "tar_at_far_1e-2": result.tar_at_far[1e-2].tar,
        "tar_at_far_1e-3": result.tar_at_far[1e-3].tar,
    }
    assert result.as_dict() == expected
    assert all(type(value) is float for value in result.as_dict().values())
    line = result.summary()
    assert "\n" not in line
    for part in (
        f"accuracy {result.accuracy:.4f} ± {result.accuracy_se:.4f}",
        f"AUC {result.auc:.4f}",
        f"EER {result.eer:.4f}",
        f"TAR@FAR=1e-2 {result.tar_at_far[1e-2].tar:.2f}",
        "(30 impostors)",
        "TAR@FAR=1e-3",
        "(3 impostors)",
        f"threshold {result.best_threshold:.3f}",
    ):
        assert part in line


def test_summary_leaves_out_what_is_not_shown():
    result = evaluate_pairs(np.arange(20.0), balanced(20), 2)
    assert "TAR" not in result.summary()
    assert not any(key.startswith("tar") for key in result.as_dict())


def test_result_is_frozen():
    result = evaluate_pairs(np.arange(20.0), balanced(20), 2)
    assert isinstance(result, VerificationResult)
    with pytest.raises(AttributeError):
        result.accuracy = 1.0


@pytest.mark.lfw
def test_raw_pixels_on_the_last_two_folds_of_lfw(lfw):
    """The baseline that a network must beat: cosine of grey-scale crops, each less its own mean."""
    first, second, is_same = [], [], []
    for line in (lfw / "pairs.txt").read_text().splitlines()[1:][4800:]:
        *names, last = line.split()
        is_same.append(len(names) == 2)
        first.append(grey_direction(lfw, names[0], names[1]))
        second.append(grey_direction(lfw, names[0] if len(names) == 2 else names[2], last))
    scores = (np.stack(first) * np.stack(second)).sum(axis=1)
    result = evaluate_pairs(scores, is_same, 2)
    assert (result.num_genuine, result.num_impostor) == (600, 600)
    assert result.accuracy == pytest.approx(0.627, abs=0.005)
    assert result.auc == pytest.approx(0.682, abs=0.005)
    assert list(result.tar_at_far) == [1e-2]


def grey_direction(lfw: Path, name: str, number: str) -> np.ndarray:
    with Image.open(lfw / "aligned_112" / name / f"{name}_{int(number):04d}.jpg") as image:
        pixels = np.asarray(image.convert("L"), dtype=np.float64).ravel()
    return (pixels - pixels.mean()) / np.linalg.norm(pixels - pixels.mean())
