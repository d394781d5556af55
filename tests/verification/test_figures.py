"""What the pictures must show, and which pairs the hardest ones are."""

from __future__ import annotations

import re
from itertools import combinations

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text

from facelit.verification import evaluate_pairs
from facelit.verification.figures import hardest_pairs, hardest_pairs_figure, roc_figure

RED, GREY = "#c1121f", "#8a8a8a"


def made_up_result(separation, num_pairs=1200):
    is_same = np.arange(num_pairs) % 2 == 0
    scores = np.random.default_rng(0).normal(size=num_pairs) + separation * is_same
    return evaluate_pairs(scores, is_same, 10)


def legend_texts(figure: Figure) -> list[str]:
    legends = [*figure.legends, *(axes.get_legend() for axes in figure.axes)]
    return [text.get_text() for legend in legends if legend is not None for text in legend.get_texts()]


def all_texts(artist) -> str:
    return "\n".join(text.get_text() for text in artist.findobj(Text))


def marked(axes, far, tar) -> bool:
    """Whether a marker stands at this point of the ROC plane."""
    return any(
        line.get_marker() not in (None, "None", "")
        and len(line.get_xdata()) == 1
        and np.allclose([line.get_xdata()[0], line.get_ydata()[0]], [far, tar])
        for line in axes.lines
    )


def test_roc_has_a_logarithmic_axis_from_below_one_impostor_pair_to_one():
    result = made_up_result(2)
    (axes,) = roc_figure({"lfw": result}, title="step 7").axes
    low, high = axes.get_xlim()
    assert axes.get_xscale() == "log"
    assert 0 < low < 1 / result.num_impostor
    assert high == 1
    assert axes.get_title() == "step 7"
    assert "FAR" in axes.get_xlabel()
    assert "TAR" in axes.get_ylabel()


def test_each_set_is_a_curve_with_its_figures_in_the_legend():
    results = {"first": made_up_result(1), "second": made_up_result(3), "third": made_up_result(5)}
    figure = roc_figure(results)
    (axes,) = figure.axes
    texts = legend_texts(figure)
    for name, result in results.items():
        (line,) = [line for line in axes.lines if str(line.get_label()).startswith(f"{name}:")]
        np.testing.assert_array_equal(line.get_ydata(), result.roc.tar)
        positive = result.roc.far > 0
        np.testing.assert_array_equal(np.asarray(line.get_xdata())[positive], result.roc.far[positive])
        (text,) = [text for text in texts if text.startswith(f"{name}:")]
        assert f"accuracy {result.accuracy:.4f} ± {result.accuracy_se:.4f}" in text
        assert f"AUC {result.auc:.4f}" in text
    assert len({line.get_color() for line in axes.lines if ":" in str(line.get_label())}) == 3
    assert "chance" in texts


@pytest.mark.parametrize("num_pairs", [100, 1200, 6000])
def test_operating_points_stand_where_the_result_has_them(num_pairs):
    result = made_up_result(2, num_pairs)
    figure = roc_figure({"lfw": result})
    (axes,) = figure.axes
    texts = all_texts(figure)
    assert marked(axes, result.eer, 1 - result.eer)
    assert f"EER {result.eer:.3f}" in texts
    for target, point in result.tar_at_far.items():
        assert marked(axes, point.far, point.tar)
        assert f"TAR {point.tar:.3f} at FAR {target:g}" in texts
    best = result.roc.thresholds.tolist().index(result.best_threshold)
    assert marked(axes, result.roc.far[best], result.roc.tar[best])
    assert ("at FAR" in texts) == (num_pairs > 100)


def test_labels_of_a_good_network_do_not_cover_each_other():
    """All its operating points are close together, at the top."""
    is_same = np.arange(6000) % 2 == 0
    scores = np.random.default_rng(0).normal(size=6000) + 4.2 * is_same
    figure = roc_figure({"lfw": evaluate_pairs(scores, is_same, 10)})
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    (axes,) = figure.axes
    boxes = [text.get_window_extent(renderer) for text in axes.texts]
    assert len(boxes) == 4
    assert not [(one, other) for one, other in combinations(boxes, 2) if one.overlaps(other)]


def test_the_region_of_too_few_impostors_is_shaded():
    result = made_up_result(2)
    figure = roc_figure({"lfw": result})
    (patch,) = [patch for patch in figure.axes[0].patches if "fewer than 3" in str(patch.get_label())]
    right = patch.get_path().get_extents(patch.get_patch_transform()).x1
    assert right == pytest.approx(3 / result.num_impostor)
    assert any("fewer than 3 impostor pairs" in text for text in legend_texts(figure))


@pytest.mark.parametrize("separation", [-50, 0, 50])
def test_roc_of_reversed_chance_and_separable_scores_can_be_saved(separation, tmp_path):
    roc_figure({"lfw": made_up_result(separation)}).savefig(tmp_path / "roc.png")
    assert (tmp_path / "roc.png").read_bytes().startswith(b"\x89PNG")


def test_hardest_pairs_worked_by_hand():
    #         0     1     2     3     4     5     6     7
    scores = [0.9, 0.2, 0.1, 0.45, 0.8, 0.7, 0.3, 0.55]
    genuine = [True, True, True, True, False, False, False, False]
    accepts, rejects = hardest_pairs(scores, genuine, 0.5, 2)
    assert (accepts.tolist(), rejects.tolist()) == ([4, 5], [2, 1])
    # Three mistakes of each kind, so a fourth is the nearest miss: 6 (0.3) and 0 (0.9).
    accepts, rejects = hardest_pairs(scores, genuine, 0.5, 4)
    assert (accepts.tolist(), rejects.tolist()) == ([4, 5, 7, 6], [2, 1, 3, 0])
    # There are no more than four of a kind.
    assert [len(kind) for kind in hardest_pairs(scores, genuine, 0.5, 9)] == [4, 4]


def test_hardest_pairs_are_measured_from_each_pairs_own_threshold():
    scores = np.array([0.6, 0.5, 0.6, 0.5])
    genuine = np.array([False, False, True, True])
    thresholds = np.array([0.55, 0.2, 0.95, 0.55])
    accepts, rejects = hardest_pairs(scores, genuine, thresholds, 2)
    assert (accepts.tolist(), rejects.tolist()) == ([1, 0], [2, 3])


def test_hardest_pairs_are_all_mistakes_before_any_other():
    rng = np.random.default_rng(1)
    scores, genuine, thresholds = rng.normal(size=300), rng.random(300) < 0.4, rng.normal(size=300)
    wrong = (scores >= thresholds) != genuine
    accepts, rejects = hardest_pairs(scores, genuine, thresholds, 300)
    assert sorted(accepts) == np.flatnonzero(~genuine).tolist()
    assert sorted(rejects) == np.flatnonzero(genuine).tolist()
    for chosen in (accepts, rejects):
        distance = np.abs(scores - thresholds)[chosen]
        mistakes = int(wrong[chosen].sum())
        assert wrong[chosen][:mistakes].all()
        assert (np.diff(distance[:mistakes]) <= 0).all(), "most confident mistakes first"
        assert (np.diff(distance[mistakes:]) >= 0).all(), "then the nearest misses"


def plain_image(number: int) -> np.ndarray:
    return np.full((112, 112, 3), number, dtype=np.uint8)


def draw(scores, is_same, threshold=0.5, **options) -> Figure:
    first = 2 * np.arange(len(scores))
    return hardest_pairs_figure(
        plain_image, first, first + 1, np.asarray(scores), np.asarray(is_same), threshold, **options
    )


def pair_axes(panel):
    return [axes for axes in panel.axes if axes.images]


def frame_colour(axes) -> str:
    """Colour of the frame around a pair, be it a spine or a rectangle."""
    if axes.axison:
        return to_hex(axes.spines["left"].get_edgecolor())
    (frame,) = axes.patches
    return to_hex(frame.get_edgecolor())


def test_pairs_are_drawn_side_by_side_with_score_and_names():
    scores = [0.75, 0.65, 0.25, 0.35]
    names = [f"folder/Name_{number:04d}.jpg" for number in range(8)]
    figure = draw(scores, [False, False, True, True], count=2, title="lfw", names=names)
    panels = figure.subfigs
    assert len(panels) == 2
    for panel, pairs in zip(panels, [(0, 1), (2, 3)], strict=True):
        assert len(pair_axes(panel)) == 2
        for axes, pair in zip(pair_axes(panel), pairs, strict=True):
            pixels = np.asarray(axes.images[0].get_array())
            assert (pixels[:, :112] == 2 * pair).all()
            assert (pixels[:, -112:] == 2 * pair + 1).all()
            texts = all_texts(axes)
            assert f"{scores[pair]:.3f}" in texts
            assert f"Name_{2 * pair:04d}" in texts
            assert f"Name_{2 * pair + 1:04d}" in texts
            assert frame_colour(axes) == RED
        assert "nearest" not in panel.get_suptitle()
    assert "accept" in panels[0].get_suptitle()
    assert "reject" in panels[1].get_suptitle()
    assert figure.get_suptitle() == "lfw"


def test_too_few_mistakes_are_filled_up_with_grey_ones_and_the_title_says_so():
    scores = [0.9, 0.4, 0.3, 0.2, 0.1, 0.8, 0.7, 0.6]
    figure = draw(scores, [False] * 4 + [True] * 4, count=3)
    accepts, rejects = figure.subfigs
    assert [frame_colour(axes) for axes in pair_axes(accepts)] == [RED, GREY, GREY]
    assert [frame_colour(axes) for axes in pair_axes(rejects)] == [RED, GREY, GREY]
    for panel in (accepts, rejects):
        assert "nearest" in panel.get_suptitle()
        assert "2" in panel.get_suptitle()


def test_without_any_mistake_it_is_not_empty(tmp_path):
    figure = draw([0.1, 0.2, 0.8, 0.9], [False, False, True, True], count=8)
    for panel in figure.subfigs:
        assert [frame_colour(axes) for axes in pair_axes(panel)] == [GREY, GREY]
        assert "nearest" in panel.get_suptitle()
    figure.savefig(tmp_path / "hardest.png")
    assert (tmp_path / "hardest.png").read_bytes().startswith(b"\x89PNG")


def test_only_the_images_shown_are_read():
    read = []

    def image(number):
        read.append(number)
        return plain_image(0)

    first = np.arange(0, 200, 2)
    hardest_pairs_figure(image, first, first + 1, np.linspace(0, 1, 100), np.arange(100) % 2 == 0, 0.5, count=3)
    assert len(read) == 12


def test_nothing_is_cut_off_at_the_edge_of_the_picture():
    result = made_up_result(2)
    names = [f"A_Rather_Long_Name_Of_{number:04d}" for number in range(80)]
    for figure in (
        roc_figure({"lfw": result}, "title"),
        roc_figure({"weak": made_up_result(0.2), "strong": made_up_result(6), "fair": result}),
        draw(np.linspace(0, 1, 40), np.arange(40) % 2 == 0, title="title", names=names),
        draw(np.linspace(0, 1, 40), np.arange(40) % 2 == 0, count=3, names=names),
    ):
        figure.draw_without_rendering()
        canvas = figure.bbox.padded(1)
        for text in figure.findobj(Text):
            # Numbers alone are tick labels, of which those beyond the axis exist and are not drawn.
            if not re.fullmatch(r"\$.*\$|[\d.]*", text.get_text()):
                box = text.get_window_extent()
                assert all(canvas.contains(*corner) for corner in box.corners()), text.get_text()


def test_labels_of_operating_points_do_not_overlap():
    (axes,) = (figure := roc_figure({"lfw": made_up_result(3.2, 6000)})).axes
    figure.draw_without_rendering()
    boxes = {text.get_text(): text.get_window_extent() for text in axes.texts}
    assert len(boxes) == 4
    for label, box in boxes.items():
        assert not [other for other, its in boxes.items() if other != label and box.overlaps(its)]


@pytest.mark.parametrize("name", ["A$$P_0001", "$x^", "Jos\udce9"])
def test_any_name_is_shown_below_its_pair(name):
    """matplotlib takes dollar signs for formulas (two in a row are an error), and refuses bytes that are not UTF-8."""
    pairs = draw([0.4, 0.6], [False, True], count=1, title="$$ and $x^", names=[f"people/{name}.jpg"] * 4)
    pairs.draw_without_rendering()
    shown = name.encode("utf-8", "replace").decode()
    assert all_texts(pairs).count(f"{shown}\n{shown}") == 2


@pytest.mark.parametrize("names", [["A$$B"], ["A$$B", "$x^"]])
def test_any_set_name_is_shown_in_the_legend(names):
    figure = roc_figure({name: made_up_result(2, 100) for name in names}, "$x^ and $$")
    figure.draw_without_rendering()
    assert [text.split(":")[0] for text in legend_texts(figure) if ":" in text] == names


def test_errors():
    with pytest.raises(ValueError, match="at least one result"):
        roc_figure({})
    for count in (0, -1):
        with pytest.raises(ValueError, match="count"):
            hardest_pairs([0.1, 0.2], [True, False], 0.5, count)
