"""Margin heads against their papers' formulas in float64, and against pytorch-metric-learning.

[1] Wang et al.: CosFace, CVPR 2018. [2] Deng et al.: ArcFace, CVPR 2019. [3] Liu et al.: SphereFace, CVPR 2017.
"""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from facelit.heads import AdaFaceHead, ArcFaceHead, CombinedMarginHead, CosFaceHead, MarginHead
from facelit.heads.identity import IdentityHead
from facelit.heads.margin import combined_margin
from literal_softmax import OwnCosine, assert_equals_literal, batch_at, falling_cosine, literal_loss

IDENTITIES, DIM = 5, 4
LABELS = torch.tensor([0, 1, 1, 4, 3, 2])
LENGTHS = [1.0, 0.01, 30.0, 500.0, 1.0, 7.0]
COSINES = {
    "easy": [0.99999, 0.99, 0.97, 0.9, 0.95, 0.999],
    "middling": [0.5, 0.3, 0.1, 0.0, -0.1, 0.7],
    "hard": [-0.5, -0.9, -0.95, -0.999, -0.99999, -0.87],  # arccos(-0.878) + 0.5 = pi
}


def arcface(margin: float) -> OwnCosine:
    """Eq. 3 of [2]: cos(theta + m); past pi it goes on falling."""
    return lambda cosine, i: falling_cosine(cosine.acos() + margin)


def cosface(margin: float) -> OwnCosine:
    """Eq. 4 of [1]: cos(theta) - m."""
    return lambda cosine, i: cosine - margin


def combined(m1: float, m2: float, m3: float) -> OwnCosine:
    """Eq. 4 of [2]: cos(m1 theta + m2) - m3; past pi it goes on falling."""
    return lambda cosine, i: falling_cosine(m1 * cosine.acos() + m2) - m3


CASES: dict[str, tuple[Callable[..., MarginHead], dict[str, Any], OwnCosine]] = {
    "arcface": (ArcFaceHead, {}, arcface(0.5)),
    "arcface, m=0.3": (ArcFaceHead, {"margin": 0.3, "scale": 30.0}, arcface(0.3)),
    "arcface, m=0": (ArcFaceHead, {"margin": 0.0}, cosface(0)),
    "cosface": (CosFaceHead, {}, cosface(0.35)),
    "cosface, m=0.2": (CosFaceHead, {"margin": 0.2, "scale": 10.0}, cosface(0.2)),
    "combined": (CombinedMarginHead, {}, combined(1.0, 0.3, 0.2)),
    "sphereface": (CombinedMarginHead, {"m1": 4.0, "m2": 0.0, "m3": 0.0, "scale": 20.0}, combined(4.0, 0.0, 0.0)),
    "all three": (CombinedMarginHead, {"m1": 1.35, "m2": 0.7, "m3": 0.1}, combined(1.35, 0.7, 0.1)),
}


def make_head(make: Callable[..., MarginHead], **options: Any) -> MarginHead:
    """In float64, its vectors far from length 1."""
    torch.manual_seed(0)
    head = make(IDENTITIES, DIM, **options).double()
    with torch.no_grad():
        head.weight.copy_(torch.randn(IDENTITIES, DIM) * torch.tensor([0.1, 1, 2, 3, 10]).unsqueeze(1))
    return head


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("inputs", COSINES)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_and_gradients(name: str, inputs: str, smoothing: float) -> None:
    make, options, own_cosine = CASES[name]
    head = make_head(make, label_smoothing=smoothing, **options)
    x = batch_at(COSINES[inputs], head, LABELS, LENGTHS)
    assert_equals_literal(head, x, LABELS, own_cosine, rtol=1e-7, atol=2e-6)


@pytest.mark.parametrize("name", ["arcface", "cosface", "combined"])
@pytest.mark.parametrize("inputs", COSINES)
def test_float32(name: str, inputs: str) -> None:
    """At a cosine of 0.99999 an angle is known to a thousandth: hence the tolerance, for gradients of about 10."""
    make, options, own_cosine = CASES[name]
    head = make_head(make, **options).float()
    x = batch_at(COSINES[inputs], head, LABELS, [1.0] * 6)
    assert_equals_literal(head, x, LABELS, own_cosine, rtol=1e-4, atol=1e-3 if inputs == "middling" else 5e-2)


@pytest.mark.parametrize("name", CASES)
def test_the_margin_works_in_eval_mode_too(name: str) -> None:
    make, options, own_cosine = CASES[name]
    head = make_head(make, **options).eval()
    assert_equals_literal(head, batch_at(COSINES["middling"], head, LABELS, LENGTHS), LABELS, own_cosine, atol=2e-6)


@pytest.mark.parametrize("make", [ArcFaceHead, CosFaceHead, CombinedMarginHead, AdaFaceHead])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("side", [1, -1])
def test_gradient_by_the_embedding_is_bounded_however_near_the_vector(
    make: Callable[..., MarginHead], dtype: torch.dtype, side: int
) -> None:
    """An own logit changes with the angle by at most scale * m1, another by scale; so does the loss of unit embeddings."""
    head = make_head(make).to(dtype)
    for angle in [0.0, *(10.0**-k for k in range(1, 12))]:
        own = head.weight[0].detach().double()
        across = batch_at([0.0], head, LABELS[:1], [1.0])
        x = side * math.cos(angle) * own / own.norm() + math.sin(angle) * across
        x = x.to(dtype).requires_grad_()
        loss = head(x, LABELS[:1]).loss
        loss.backward()
        assert loss.isfinite()
        assert x.grad.norm().item() <= 2 * head.scale * 1.02
        assert head.weight.grad.isfinite().all()
        head.zero_grad()


MARGINS = [
    (1.0, 0.0, 0.0),
    (1.0, 0.0, 0.35),
    (1.0, 0.5, 0.0),
    (1.0, 0.3, 0.2),
    (1.35, 0.7, 0.1),
    (4.0, 0.0, 0.0),
    (2.5, 3.5, 0),
]


@pytest.mark.parametrize("margins", MARGINS)
def test_combined_margin_falls_all_the_way(margins: tuple[float, float, float]) -> None:
    m1, m2, m3 = margins
    theta = torch.linspace(0, math.pi, 1001, dtype=torch.float64)[1:-1]
    found = combined_margin(theta.cos(), *margins)
    expected = torch.stack([falling_cosine(m1 * angle + m2) - m3 for angle in theta])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    plain = m1 * theta + m2 <= math.pi
    torch.testing.assert_close(found[plain], ((m1 * theta + m2).cos() - m3)[plain], rtol=0, atol=1e-9)
    assert (found.diff() < 0).all()
    assert found.diff().abs().max() <= m1 * math.pi / 1000 * 1.001  # no jump, at k pi neither


@pytest.mark.parametrize("half_turns", [1, 2, 3])
def test_combined_margin_is_continuous_at_half_turns(half_turns: int) -> None:
    m1, m2 = 4.0, 0.5
    theta = (half_turns * math.pi - m2) / m1 + torch.tensor([-1e-7, 0.0, 1e-7], dtype=torch.float64)
    assert combined_margin(theta.cos(), m1, m2, 0.1).tolist() == pytest.approx([1 - 2 * half_turns - 0.1] * 3, abs=1e-9)


@pytest.mark.parametrize("margins", MARGINS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_combined_margin_at_the_ends(margins: tuple[float, float, float], dtype: torch.dtype) -> None:
    """Cosines of -1 and 1, and what rounding makes of them: the value within 1e-4 of an angle, a finite gradient."""
    m1, m2, m3 = margins
    cosines = torch.tensor([1, 1 + 3e-7, 1 - 1e-9, -1, -1 - 3e-7, -1 + 1e-9], dtype=dtype).requires_grad_()
    found = combined_margin(cosines, *margins)
    expected = [
        (falling_cosine(torch.tensor(m1 * theta + m2, dtype=torch.float64)) - m3).item()
        for theta in (0, 0, 0, math.pi, math.pi, math.pi)
    ]
    assert found.tolist() == pytest.approx(expected, abs=1.1e-4 * m1)
    assert torch.equal(found, combined_margin(cosines.detach(), *margins))
    (gradient,) = torch.autograd.grad(found.sum(), cosines)
    assert gradient.isfinite().all()
    assert (gradient >= 0).all()
    assert gradient.abs().max() <= 1.01e4 * m1


@pytest.mark.parametrize("margins", MARGINS)
def test_combined_margin_gradcheck(margins: tuple[float, float, float]) -> None:
    m1, m2, _ = margins
    theta = torch.linspace(0.05, math.pi - 0.05, 40, dtype=torch.float64)
    turn = (m1 * theta + m2) / math.pi
    cosines = theta[(turn - turn.round()).abs() > 1e-3].cos().requires_grad_()
    assert torch.autograd.gradcheck(lambda c: combined_margin(c, *margins), cosines)


@pytest.mark.parametrize("make", [ArcFaceHead, CosFaceHead, CombinedMarginHead, AdaFaceHead])
def test_margin_ramp(make: Callable[..., MarginHead]) -> None:
    """The first batch has no margin, the fifth all of it; what is not trained on does not count."""
    head = make_head(make, margin_ramp=4, scale=8.0)
    whole = make_head(make, scale=8.0)
    x = batch_at(COSINES["middling"], head, LABELS, LENGTHS)
    for step in range(6):
        whole.load_state_dict(head.state_dict())  # AdaFace's running figures, too
        cosines = torch.nn.functional.cosine_similarity(x, head.weight[LABELS]).detach()
        lowered = whole.train().add_margin(cosines, x.norm(dim=1)).detach()
        own = cosines + min(step / 4, 1) * (lowered - cosines)
        expected = literal_loss(x, head.weight, LABELS, None, 8.0, lambda cosine, i, own=own: own[i])
        assert head(x, LABELS).loss.item() == pytest.approx(expected.item(), rel=1e-7)
        with torch.no_grad():
            before = {name: value.clone() for name, value in head.eval().state_dict().items()}
            head(x, LABELS)
        head(x, LABELS)
        assert all(torch.equal(value, before[name]) for name, value in head.train().state_dict().items())
    assert head.batches_seen.item() == 6


def test_margin_ramp_goes_on_after_a_restart() -> None:
    head, x = make_head(ArcFaceHead, margin_ramp=10), torch.randn(6, DIM, dtype=torch.float64)
    for _ in range(3):
        head(x, LABELS)
    resumed = make_head(ArcFaceHead, margin_ramp=10)
    resumed.load_state_dict(head.state_dict())
    assert resumed.batches_seen.item() == 3
    assert torch.equal(resumed(x, LABELS).loss, head(x, LABELS).loss)
    assert not torch.equal(resumed(x, LABELS).loss, make_head(ArcFaceHead, margin_ramp=10)(x, LABELS).loss)


def test_margin_ramp_does_not_count_without_gradients() -> None:
    head = make_head(ArcFaceHead, margin_ramp=10)
    with torch.no_grad():
        head(torch.randn(6, DIM, dtype=torch.float64), LABELS)
    assert head.batches_seen.item() == 0


@pytest.mark.parametrize(
    ("make", "options", "named"),
    [
        (ArcFaceHead, {"margin": -0.1}, "margin"),
        (CosFaceHead, {"margin": -0.1}, "margin"),
        (CosFaceHead, {"margin": math.nan}, "margin"),
        (CombinedMarginHead, {"m1": 0.9}, "m1"),
        (CombinedMarginHead, {"m2": -0.1}, "m2"),
        (CombinedMarginHead, {"m3": -0.1}, "m3"),
        (ArcFaceHead, {"scale": 0.0}, "scale"),
        (ArcFaceHead, {"margin_ramp": -1}, "margin_ramp"),
        (ArcFaceHead, {"label_smoothing": 1.1}, "label_smoothing"),
        (ArcFaceHead, {"sample_rate": 0.0}, "sample_rate"),
        (ArcFaceHead, {"sample_rate": 1.1}, "sample_rate"),
    ],
)
def test_arguments_are_checked(make: Callable[..., MarginHead], options: dict[str, float], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        make(3, 2, **options)


class CosineHead(IdentityHead):
    """A margin head without one."""

    scale = 20.0


def compare_with_metric_learning(head: IdentityHead, other: Any, x: Tensor, gradients: bool = True) -> None:
    """Their vectors are columns."""
    with torch.no_grad():
        other.W = torch.nn.Parameter(head.weight.T.clone())
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    loss, expected = head(ours, LABELS).loss, other(theirs, LABELS)
    torch.testing.assert_close(loss, expected, rtol=1e-8, atol=1e-7)
    loss.backward()
    expected.backward()
    if gradients:
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-7, atol=1e-6)
        torch.testing.assert_close(head.weight.grad, other.W.grad.T, rtol=1e-7, atol=1e-6)


@pytest.mark.parametrize("inputs", ["easy", "middling"])
def test_equals_metric_learning_where_the_formula_is_the_same(inputs: str) -> None:
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    x = batch_at(COSINES[inputs], make_head(ArcFaceHead), LABELS, LENGTHS)
    sizes = (IDENTITIES, DIM)
    for margin in (0.5, 0.3):  # theirs is in degrees
        arcface = losses.ArcFaceLoss(*sizes, margin=math.degrees(margin), scale=64)
        compare_with_metric_learning(make_head(ArcFaceHead, margin=margin), arcface, x)
    compare_with_metric_learning(make_head(CosFaceHead), losses.CosFaceLoss(*sizes, margin=0.35, scale=64), x)
    compare_with_metric_learning(make_head(CosineHead), losses.NormalizedSoftmaxLoss(*sizes, temperature=1 / 20.0), x)


def test_past_pi_the_logit_falls_on_where_metric_learning_has_a_line() -> None:
    """Theirs is cos(theta) - m sin(m) there: no continuation, and it falls ever more slowly. The others are the same."""
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    x = batch_at([-0.5, -0.6, -0.7, -0.8, -0.95, -0.85], make_head(ArcFaceHead), LABELS, [1.0] * 6)
    arcface = losses.ArcFaceLoss(IDENTITIES, DIM, margin=math.degrees(0.5), scale=64)
    before = x[torch.tensor([0, 1, 2, 3, 5])]
    with torch.no_grad():
        arcface.W.copy_(make_head(ArcFaceHead).weight.T)
        keep = torch.tensor([0, 1, 2, 3, 5])
        ours = make_head(ArcFaceHead)(before, LABELS[keep]).loss
        torch.testing.assert_close(ours, arcface(before, LABELS[keep]), rtol=1e-8, atol=1e-7)
        beyond, label = x[4:5], LABELS[4:5]
        theta = math.acos(-0.95)
        difference = make_head(ArcFaceHead)(beyond, label).loss - arcface(beyond, label)
    expected = 64 * ((math.cos(theta) - 0.5 * math.sin(0.5)) - (-math.cos(theta + 0.5) - 2))
    assert difference.item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("inputs", COSINES)
def test_sphereface_equals_metric_learnings_large_margin_loss(inputs: str) -> None:
    """Theirs has no normalisation: the same for vectors of length 1. It too falls on past pi."""
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    head = make_head(CombinedMarginHead, m1=4.0, m2=0.0, m3=0.0, scale=10.0)
    with torch.no_grad():
        head.weight /= head.weight.norm(dim=1, keepdim=True)
    x = batch_at(COSINES[inputs], head, LABELS, [1.0] * 6)
    other = losses.LargeMarginSoftmaxLoss(IDENTITIES, DIM, margin=4, scale=10.0)
    compare_with_metric_learning(head, other, x, gradients=False)
