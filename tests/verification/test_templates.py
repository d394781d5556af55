"""Templates, listed pairs and galleries against plain loops in float64."""

import random
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.metrics import roc_auc_score

from facelit.errors import FacelitError
from facelit.verification import search, templates
from facelit.verification.intervals import Estimate, mean_rate, rate_with_interval
from facelit.verification.search import SearchFigures, search_gallery
from facelit.verification.template_evaluation import ListedTemplates, identify_templates, verify_templates
from facelit.verification.template_report import identification_lines, templates_figure, tsv_rows, verification_lines
from facelit.verification.templates import (
    ListedPairs,
    TemplateRows,
    count_listed_pairs,
    image_weights,
    pool_templates,
)
from ijb_layout import Layout, literal_search, literal_tar, literal_template, make_layout

LAYOUT = make_layout()
NAMES = sorted(LAYOUT.points)
IDS = sorted({template for _, template, _ in LAYOUT.media})


@pytest.fixture(scope="module")
def embeddings() -> npt.NDArray[np.float32]:
    """Of various lengths; those of one subject are alike."""
    rng = np.random.default_rng(3)
    subject = np.array([(int(name.split(".")[0]) - 1) // 6 for name in NAMES])
    rows = rng.standard_normal((8, 12))[subject] + 1.1 * rng.standard_normal((len(NAMES), 12))
    return (rows * rng.uniform(0.5, 3, (len(NAMES), 1))).astype(np.float32)


def rows_of(layout: Layout, order: random.Random | None = None) -> TemplateRows:
    media = list(layout.media)
    if order:
        order.shuffle(media)
    return TemplateRows(
        np.array([IDS.index(template) for _, template, _ in media]),
        np.array([medium for _, _, medium in media]),
        np.array([NAMES.index(name) for name, _, _ in media]),
    )


def pairs_of(layout: Layout) -> ListedPairs:
    first, second, label = zip(*layout.pairs, strict=True)
    places = [np.array([IDS.index(t) for t in column], np.int32) for column in (first, second)]
    return ListedPairs(*places, np.array(label) == 1)


def listed(rows: list[tuple[int, int]]) -> ListedTemplates:
    return ListedTemplates(np.array([IDS.index(t) for t, _ in rows]), np.array([subject for _, subject in rows]))


def literal_weights(weighting: str, embeddings: npt.NDArray[np.float32]) -> dict[str, float]:
    found = {}
    for name, row in zip(NAMES, embeddings.astype(np.float64), strict=True):
        length = float(np.sqrt((row**2).sum()))
        score = float(np.float32(LAYOUT.scores[name]))
        found[name] = {"norm_score": score, "norm": 1.0, "score": score / length, "equal": 1 / length}[weighting]
    return found


def pooled(embeddings: npt.NDArray[np.float32], weighting: Any = "norm_score", rows: TemplateRows | None = None) -> Any:
    scores = np.array([LAYOUT.scores[name] for name in NAMES], np.float32)
    weights = image_weights(embeddings, scores, weighting)
    return pool_templates(embeddings, weights, rows or rows_of(LAYOUT), len(IDS))


@pytest.mark.parametrize("block", [1, 5, 8192])
@pytest.mark.parametrize("weighting", ["norm_score", "norm", "score", "equal"])
def test_media_are_averaged_then_summed(
    monkeypatch: pytest.MonkeyPatch, embeddings: npt.NDArray[np.float32], weighting: str, block: int
) -> None:
    monkeypatch.setattr(templates, "_ROWS", block)
    weights = literal_weights(weighting, embeddings)
    by_name = dict(zip(NAMES, embeddings, strict=True))
    expected = [literal_template(LAYOUT.media, template, by_name, weights) for template in IDS]
    np.testing.assert_allclose(pooled(embeddings, weighting), expected, atol=1e-6)


def test_the_order_of_rows_changes_nothing_and_a_template_without_images_is_zeros(
    embeddings: npt.NDArray[np.float32],
) -> None:
    shuffled = rows_of(LAYOUT, random.Random(1))
    np.testing.assert_array_equal(pooled(embeddings), pooled(embeddings, rows=shuffled))
    lost = IDS.index(1000)  # of image 1.png only
    usable = np.array([name != "1.png" for name in NAMES])
    without = pooled(np.where(usable[:, None], embeddings, np.nan), rows=shuffled.usable(usable))
    assert np.flatnonzero(~without.any(axis=1)).tolist() == [lost]
    by_name = dict(zip(NAMES, embeddings, strict=True))
    media = [row for row in LAYOUT.media if row[0] != "1.png"]
    expected = literal_template(media, 100, by_name, literal_weights("norm_score", embeddings))
    np.testing.assert_allclose(without[IDS.index(100)], expected, atol=1e-6)  # the video has one frame less


def test_verification_is_that_of_a_loop_over_pairs(embeddings: npt.NDArray[np.float32]) -> None:
    rows = pooled(embeddings)
    found = verify_templates(rows, np.array(IDS), pairs_of(LAYOUT))
    by_id = dict(zip(IDS, rows.astype(np.float64), strict=True))
    scores = [(float(np.dot(by_id[a], by_id[b])), label) for a, b, label in LAYOUT.pairs]
    genuine, impostor = ([score for score, label in scores if label == kind] for kind in (1, 0))
    assert (found.curve.num_genuine, found.curve.num_impostor) == (len(genuine), len(impostor))
    assert list(found.at_far) == [1e-1, 1e-2]
    for target, point in found.at_far.items():
        assert point.tar.value == literal_tar(genuine, impostor, target)
        assert point.accepted == sum(score >= point.threshold for score in impostor)
        assert point.tar.low < point.tar.value < point.tar.high
    labels = [label for _, label in scores]
    assert found.auc == pytest.approx(roc_auc_score(labels, [score for score, _ in scores]), abs=1e-5)
    assert (found.num_templates, found.num_people) == (54, 8)  # people: what genuine pairs join
    assert "1:1  " in verification_lines(found)[0]


def test_the_order_of_pairs_and_templates_changes_no_figure(embeddings: npt.NDArray[np.float32]) -> None:
    rows, pairs, ids = pooled(embeddings), pairs_of(LAYOUT), np.array(IDS)
    expected = verify_templates(rows, ids, pairs)
    rng = np.random.default_rng(0)
    order, moved = rng.permutation(len(pairs.first)), rng.permutation(len(ids))
    place = np.argsort(moved).astype(np.int32)
    other = ListedPairs(place[pairs.second[order]], place[pairs.first[order]], pairs.is_same[order])
    found = verify_templates(rows[moved], ids[moved], other)
    assert found.as_dict() == expected.as_dict()


def test_each_pair_counts_for_the_groups_of_both(
    monkeypatch: pytest.MonkeyPatch, embeddings: npt.NDArray[np.float32]
) -> None:
    """The jackknife's counts, against pairs without anybody of a group; in blocks of seven pairs."""
    monkeypatch.setattr(templates, "_PAIRS", 7)
    rows, pairs = pooled(embeddings), pairs_of(LAYOUT)
    subject_of = dict(LAYOUT.probes) | {t: s for gallery in LAYOUT.galleries.values() for t, s in gallery}
    group_of = np.array([subject_of[template] % 3 for template in IDS])
    counts = count_listed_pairs(rows, pairs, group_of)
    for group in range(3):
        outside = (group_of[pairs.first] != group) & (group_of[pairs.second] != group)
        kept = ListedPairs(pairs.first[outside], pairs.second[outside], pairs.is_same[outside])
        without = count_listed_pairs(rows, kept, np.zeros_like(group_of))
        assert (
            abs((counts.genuine - counts.genuine_of[group]) - without.genuine).sum() <= 2
        )  # rounded into the next bin
        assert abs((counts.impostor - counts.impostor_of[group]) - without.impostor).sum() <= 4


@pytest.mark.parametrize("held", [1, 1 << 22])
def test_identification_is_that_of_a_loop_over_probes(
    monkeypatch: pytest.MonkeyPatch, embeddings: npt.NDArray[np.float32], held: int
) -> None:
    monkeypatch.setattr(search, "_SCORES", held)
    rows = pooled(embeddings)
    galleries = {name: listed(gallery) for name, gallery in LAYOUT.galleries.items()}
    found = identify_templates(rows, galleries, listed(LAYOUT.probes))
    by_id = dict(zip(IDS, rows.astype(np.float64), strict=True))
    expected = {name: literal_search(one, LAYOUT.probes, by_id) for name, one in LAYOUT.galleries.items()}
    for name, gallery in found.galleries.items():
        literal = expected[name]
        assert (gallery.num_enrolled, gallery.num_mated, gallery.num_strangers) == (3, 18, 30)
        assert {k: rate.value for k, rate in gallery.ranks.items()} == {k: literal.rank(k) for k in (1, 5, 10)}
        assert list(gallery.at_fpir) == [1e-1]  # 30 strangers say nothing of 1e-2
        assert gallery.at_fpir[1e-1].tpir.value == literal.tpir(1e-1)
        limits = [*sorted(literal.strangers, reverse=True), -1.0]
        assert gallery.fpir.tolist() == pytest.approx([n / 30 for n in range(31)])
        own = [score if rank == 1 else -1.0 for rank, score in zip(literal.ranks, literal.own, strict=True)]
        assert gallery.tpir.tolist() == pytest.approx([np.mean([score > limit for score in own]) for limit in limits])
        assert gallery.tpir[3] == pytest.approx(gallery.at_fpir[1e-1].tpir.value)
    one, two = expected.values()
    assert found.ranks[1].value == (one.rank(1) + two.rank(1)) / 2 < 1
    assert found.tpir[1e-1].value == (one.tpir(1e-1) + two.tpir(1e-1)) / 2
    lines = "\n".join(identification_lines(found))
    assert "G1: 3 people enrolled, 18 searches for them, 30 for strangers" in lines
    assert "TPIR at FPIR 0.01 takes 300 searches for strangers in each gallery; there are 30." in lines


def test_a_template_of_zeros_is_never_accepted_and_never_found() -> None:
    """In a gallery of two people, too, where the last rank is the second."""
    rows = np.eye(4, dtype=np.float32)[[0, 1, 0, 3]]
    rows[3] = 0
    pairs = ListedPairs(np.array([0, 1, 3], np.int32), np.array([2, 3, 2], np.int32), np.array([True, True, False]))
    counts = count_listed_pairs(rows, pairs, np.zeros(4, np.int64))
    assert (counts.genuine[0], counts.genuine[-1], counts.impostor[0]) == (1, 1, 1)
    people = np.array([5, 7])
    outcomes = search_gallery(rows[[2, 3]], people, rows[[0, 1]], people)
    figures = SearchFigures(outcomes, np.zeros(8, np.int64))
    assert (figures.rank(1).value, figures.rank(10).value) == (0.5, 0.5)
    outcomes = search_gallery(rows[[2, 0]], people, rows[[0, 3]], people)
    assert SearchFigures(outcomes, np.zeros(8, np.int64)).rank(10).value == 0.5
    assert search_gallery(rows[[3]], np.array([1]), rows[[0, 1]], people).strangers.tolist() == [-np.inf]


def test_equal_scores_count_against_a_search() -> None:
    rows = np.eye(3, dtype=np.float32)
    outcomes = search_gallery(rows[[0]], np.array([4]), rows[[0, 0, 1]], np.array([4, 2, 9]))
    assert outcomes.rank.tolist() == [2]
    assert outcomes.found.tolist() == [-np.inf]


def test_a_mean_leaves_a_group_out_of_both() -> None:
    one = Estimate(0.8, {0: 0.7, 1: 0.9}, 100, 10)
    two = Estimate(0.6, {1: 0.5, 2: 0.65}, 50, 5)
    expected = rate_with_interval(0.7, [(0.7 + 0.6) / 2, (0.9 + 0.5) / 2, (0.8 + 0.65) / 2], 150, 15)
    assert mean_rate([one, two]) == pytest.approx(expected)


def test_probes_of_other_subjects_only_are_refused(embeddings: npt.NDArray[np.float32]) -> None:
    strangers = [(template, subject) for template, subject in LAYOUT.probes if subject > 5]
    with pytest.raises(FacelitError, match="gallery G1: none of the 12 probes is of a subject in it"):
        identify_templates(pooled(embeddings), {"G1": listed(LAYOUT.galleries["G1"])}, listed(strangers))


def test_the_picture_and_the_rows_show_what_was_measured(embeddings: npt.NDArray[np.float32]) -> None:
    rows = pooled(embeddings)
    verification = verify_templates(rows, np.array(IDS), pairs_of(LAYOUT))
    galleries = {name: listed(gallery) for name, gallery in LAYOUT.galleries.items()}
    identification = identify_templates(rows, galleries, listed(LAYOUT.probes))
    titles = [
        [axes.get_title().split(";")[0] for axes in templates_figure(*parts, "").axes]
        for parts in ((verification, identification), (verification, None), (None, identification))
    ]
    assert titles == [["ROC", "DET", "Identification"], ["ROC", "DET"], ["Identification"]]
    written = list(tsv_rows(verification, identification))
    point = verification.at_far[1e-2]
    row = ("1:1", "", "TAR at FAR", "0.01", *(f"{number:.6f}" for number in point.tar), f"{point.threshold:.6f}")
    assert row in written
    assert [row[1] for row in written if row[2] == "rank"] == ["mean"] * 3 + ["G1"] * 3 + ["G2"] * 3
    assert {len(row) for row in written} == {8}
