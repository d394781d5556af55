"""All pairs and all searches against loops that are written out; intervals against people literally left out."""

from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.metrics import roc_auc_score

from facelit.errors import FacelitError
from facelit.verification import all_pairs, search
from facelit.verification.all_pairs import AllPairs, count_pairs
from facelit.verification.evaluation import PeopleEvaluation, check_people, evaluate_people, far_name
from facelit.verification.evaluation_report import recommendation, report_lines, trade_off_figure
from facelit.verification.intervals import rate_with_interval, wilson
from facelit.verification.pair_drawing import deal_people, name_keys
from facelit.verification.search import Identification, choose_enrolled, search_people

NUM_PEOPLE = 23


@pytest.fixture(scope="module")
def people() -> npt.NDArray[np.int64]:
    """One to seven images of each, not in order."""
    rng = np.random.default_rng(1)
    counts = rng.integers(1, 8, NUM_PEOPLE)
    return rng.permutation(np.repeat(np.arange(NUM_PEOPLE), counts))


@pytest.fixture(scope="module")
def embeddings(people: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    rng = np.random.default_rng(2)
    rows = rng.standard_normal((NUM_PEOPLE, 12))[people] + rng.standard_normal((len(people), 12))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def found(embeddings: npt.NDArray[np.float32], people: npt.NDArray[np.int64]) -> PeopleEvaluation:
    return evaluate_people(embeddings, people, names(NUM_PEOPLE), names(len(people)), (1e-1, 1e-2, 1e-3, 1e-6))


def names(count: int) -> list[str]:
    return [f"name {number}" for number in range(count)]


def literal_scores(embeddings: Any, people: Any) -> tuple[list[float], list[float]]:
    """Genuine and impostor scores, in float64, pair by pair."""
    genuine, impostor = [], []
    for a, b in combinations(range(len(people)), 2):
        score = float(np.dot(embeddings[a].astype(np.float64), embeddings[b].astype(np.float64)))
        (genuine if people[a] == people[b] else impostor).append(score)
    return genuine, impostor


def literal_tar(genuine: list[float], impostor: list[float], target: float) -> float:
    """Of every score as a threshold, the largest TAR whose FAR is at most the target."""
    accepted, wrongly = np.array(genuine), np.array(impostor)
    rates = [0.0]
    for limit in {*genuine, *impostor}:
        if (wrongly >= limit).sum() <= target * len(impostor) + 1e-9:
            rates.append(float((accepted >= limit).mean()))
    return max(rates)


def test_verification_is_that_of_a_literal_loop(
    found: PeopleEvaluation, embeddings: npt.NDArray[np.float32], people: npt.NDArray[np.int64]
) -> None:
    genuine, impostor = literal_scores(embeddings, people)
    assert (found.curve.num_genuine, found.curve.num_impostor) == (len(genuine), len(impostor))
    assert set(found.at_far) == {1e-1, 1e-2, 1e-3}  # of 1e-6 nothing is known
    for target, point in found.at_far.items():
        assert point.tar.value == literal_tar(genuine, impostor, target)
        accepted = sum(score >= point.threshold for score in impostor)
        assert point.accepted == accepted <= target * len(impostor)
        assert point.far.value == accepted / len(impostor)
        assert sum(score >= point.threshold - 1e-5 for score in impostor) > target * len(impostor) - 1
    labels = [1] * len(genuine) + [0] * len(impostor)
    assert found.auc == pytest.approx(roc_auc_score(labels, genuine + impostor), abs=1e-6)
    scores = np.array(genuine + impostor)
    gaps = [abs(np.mean(scores[len(genuine) :] >= t) - np.mean(scores[: len(genuine)] < t)) for t in scores]
    limit = scores[int(np.argmin(gaps))]
    assert found.eer.value == pytest.approx(np.mean(scores[len(genuine) :] >= limit), abs=min(gaps) + 1e-3)
    assert found.accuracy.num_genuine == len(genuine)
    assert 0.9 * len(genuine) < found.accuracy.num_impostor <= len(genuine)  # as far as a fold has them


@pytest.mark.parametrize("tile", [1, 5, 64])
def test_blocks_count_each_pair_once(
    monkeypatch: pytest.MonkeyPatch, embeddings: npt.NDArray[np.float32], people: npt.NDArray[np.int64], tile: int
) -> None:
    """For each group, too: the pairs that somebody of it is in."""
    monkeypatch.setattr(all_pairs, "_TILE", tile)
    monkeypatch.setattr(all_pairs, "BINS", 2**10)  # of which each block makes a list
    group_of = np.arange(NUM_PEOPLE) % 4
    counts = count_pairs(embeddings, people, group_of)
    expected = np.zeros((2, 5), np.int64)
    for a, b in combinations(range(len(people)), 2):
        kind = int(people[a] == people[b])
        expected[kind, [4, *{int(group_of[people[a]]), int(group_of[people[b]])}]] += 1
    assert [counts.impostor.sum(), counts.genuine.sum()] == expected[:, 4].tolist()
    assert counts.impostor_of.sum(axis=1).tolist() == expected[0, :4].tolist()
    assert counts.genuine_of.sum(axis=1).tolist() == expected[1, :4].tolist()
    whole = count_pairs(embeddings, people, np.zeros(NUM_PEOPLE, np.int64))
    # Blocks of other shapes round otherwise: a score may fall into the next bin.
    assert np.abs(np.cumsum(whole.impostor - counts.impostor)).sum() <= 5
    assert np.abs(np.cumsum(whole.genuine - counts.genuine)).sum() <= 5


def test_two_people_with_one_picture_pass_no_threshold() -> None:
    """Where too many impostor pairs score 1, the threshold is above 1, as what it accepts says."""
    rows = np.eye(4, dtype=np.float32)[[0, 0, 1, 1]]
    owners = np.array([0, 1, 2, 2])
    point = AllPairs(count_pairs(rows, owners, np.zeros(3, np.int64)), 3).at_far(1e-2)
    assert point.threshold > 1
    assert (point.tar.value, point.accepted) == (0.0, 0)


def test_intervals_leave_each_group_out_literally(
    embeddings: npt.NDArray[np.float32], people: npt.NDArray[np.int64]
) -> None:
    group_of = np.arange(NUM_PEOPLE) % 6
    several = int((np.bincount(people) > 1).sum())
    point = AllPairs(count_pairs(embeddings, people, group_of), several).at_far(0.05)
    tars, fars = [], []
    for group in range(6):
        kept = group_of[people] != group
        genuine, impostor = literal_scores(embeddings[kept], people[kept])
        tars.append(literal_tar(genuine, impostor, 0.05))
        fars.append(sum(score >= point.threshold for score in impostor) / len(impostor))
    genuine, impostor = literal_scores(embeddings, people)
    for rate, without, trials in ((point.tar, tars, len(genuine)), (point.far, fars, len(impostor))):
        variance = 5 / 6 * sum((one - np.mean(without)) ** 2 for one in without)
        worth = min(trials, rate.value * (1 - rate.value) / variance)
        # Student's 97.5 % quantile at 5 degrees of freedom, from a table.
        for end in (rate.low, rate.high):
            assert abs(end - rate.value) == pytest.approx(2.5706 * np.sqrt(end * (1 - end) / worth), rel=1e-3)


def test_wilson_and_rates_without_a_mistake() -> None:
    assert wilson(8 / 10, 10, 1.96) == pytest.approx((0.4902, 0.9433), abs=1e-4)  # a published example
    perfect = rate_with_interval(1.0, [1.0] * 20, 100_000, people=30)
    assert perfect.high == pytest.approx(1.0)
    assert perfect.low == pytest.approx(1 / (1 + 2.093**2 / 30), abs=1e-4)  # 30 people, not 100,000 pairs
    assert rate_with_interval(0.5, [0.5] * 20, 10, people=30)[1:] == pytest.approx(wilson(0.5, 10, 2.093), abs=1e-3)


def test_intervals_cover_the_truth() -> None:
    """200 sets of 40 people with a true TAR of 0.8, whose pairs of one person all come out alike: about 95 % of them."""
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(200):
        accepted = rng.random(40) < 0.8
        groups = np.arange(40) % 20
        without = [float(accepted[groups != group].mean()) for group in range(20)]
        rate = rate_with_interval(float(accepted.mean()), without, 40 * 100, 40)
        inside += rate.low <= 0.8 <= rate.high
    assert 180 <= inside <= 199


@pytest.mark.parametrize("enrolled", [1, 3])
def test_identification_is_that_of_a_literal_loop(
    monkeypatch: pytest.MonkeyPatch,
    embeddings: npt.NDArray[np.float32],
    people: npt.NDArray[np.int64],
    enrolled: int,
) -> None:
    monkeypatch.setattr(search, "_SCORES", 100)
    keys = name_keys(names(len(people)), 3)
    part_of = deal_people(np.bincount(people), name_keys(names(NUM_PEOPLE), 3), 5)
    in_gallery = choose_enrolled(people, keys, enrolled)
    own = {p: [i for i in np.argsort(keys) if people[i] == p] for p in range(NUM_PEOPLE)}
    for images in own.values():
        assert in_gallery[images].tolist() == [
            place < max(1, min(enrolled, len(images) - 1)) for place in range(len(images))
        ]
    mean = {p: embeddings[[i for i in own[p] if in_gallery[i]]].astype(np.float64).mean(axis=0) for p in own}
    template = {p: row / np.linalg.norm(row) for p, row in mean.items()}

    def score(image: int, person: int) -> float:
        return float(template[person] @ embeddings[image].astype(np.float64))

    mated = [i for i in range(len(people)) if not in_gallery[i] and len(own[people[i]]) > 1]
    found = Identification(
        search_people(embeddings, people, in_gallery, part_of), people, part_of, np.arange(NUM_PEOPLE) % 7
    )
    assert found.num_mated == len(mated)
    for k in (1, 2, 5):
        hits = [1 + sum(score(i, p) >= score(i, people[i]) for p in own if p != people[i]) <= k for i in mated]
        assert found.rank(k).value == np.mean(hits)
    strangers, genuine = [], []
    for part in range(5):
        gallery = [p for p in own if part_of[p] != part]
        strangers += [max(score(i, p) for p in gallery) for i in range(len(people)) if part_of[people[i]] == part]
        for i in mated:
            if part_of[people[i]] != part:
                best = max(gallery, key=lambda p, i=i: score(i, p))  # type: ignore[misc]
                genuine.append(score(i, best) if best == people[i] else -1.0)
    assert found.num_strangers == len(strangers) == len(people)
    point = found.at_fpir(0.1)
    assert point is not None
    allowed = int(0.1 * len(strangers))
    limit = sorted(strangers, reverse=True)[allowed]
    assert point.threshold == pytest.approx(limit, abs=1e-6)
    assert point.accepted == allowed
    assert point.tpir.value == np.mean([score > limit for score in genuine])
    assert found.at_fpir(1e-3) is None


def test_what_is_drawn_depends_on_names_not_on_their_order(
    found: PeopleEvaluation, embeddings: npt.NDArray[np.float32], people: npt.NDArray[np.int64]
) -> None:
    rng = np.random.default_rng(9)
    images, persons = rng.permutation(len(people)), rng.permutation(NUM_PEOPLE)
    new_number = np.argsort(persons)
    other = evaluate_people(
        embeddings[images],
        new_number[people[images]],
        [names(NUM_PEOPLE)[p] for p in persons],
        [names(len(people))[i] for i in images],
        (1e-1, 1e-2, 1e-3),
    )
    assert other.ranks == found.ranks
    assert other.at_fpir == found.at_fpir
    assert {k: p.tar for k, p in other.at_far.items()} == {k: p.tar for k, p in found.at_far.items()}
    assert other.accuracy.accuracy == found.accuracy.accuracy


def test_report_and_picture(found: PeopleEvaluation) -> None:
    lines = report_lines(found)
    assert any(line.startswith(f"  0.01          {found.at_far[0.01].tar.value:.4f} [") for line in lines)
    assert any("FPIR at most 0.01   takes 300 searches for strangers; there are" in line for line in lines)
    text = recommendation(found.at_far[1e-2], found)
    assert f"{found.curve.num_impostor:,} impostor pairs of 23 people" in text
    roc, det = trade_off_figure(found, "").axes
    assert (roc.get_xscale(), det.get_yscale()) == ("log", "log")
    far, tar = roc.lines[0].get_data()
    for point in found.at_far.values():
        assert tar[np.isclose(far, point.far.value)].max() == pytest.approx(point.tar.value)


def test_names_of_thresholds(found: PeopleEvaluation) -> None:
    assert [far_name(far) for far in (1e-2, 5e-4, 1e-6, 0.1)] == ["far_1e-2", "far_5e-4", "far_1e-6", "far_1e-1"]
    entry = found.calibration_entry(7, True)
    assert set(entry["thresholds"]) == {"best_accuracy", "far_1e-1", "far_1e-2", "far_1e-3"}
    assert (entry["step"], entry["flip_average"], entry["images"]) == (7, True, found.num_images)
    best = entry["thresholds"]["best_accuracy"]
    assert best["tar"] > 1 - best["far"] - 0.5 > 0


@pytest.mark.parametrize(
    ("counts", "far", "message"),
    [
        ([5], None, "found 1 person with photos; an evaluation compares several"),
        ([0, 0], None, "found no people with photos"),
        ([1, 1, 1], None, "each of its 3 people has one photo"),
        ([9, 1, 1], None, "3 people, 1 of them with two photos or more, are too few"),
        ([2, 2, 2, 2], 1e-3, r"24 impostor pairs say nothing of a FAR of 0.001: .* Ask for 0.2 or more \(--far\)"),
    ],
)
def test_too_few(counts: list[int], far: float | None, message: str) -> None:
    with pytest.raises(FacelitError, match=message) as caught:
        check_people("folder", counts, far)
    assert "\n" not in str(caught.value)
