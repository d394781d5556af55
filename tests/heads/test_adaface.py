"""AdaFaceHead against eq. 7 to 10 of Kim et al. (CVPR 2022) and what their code does with the norms, in plain Python."""

import math
import statistics
from typing import Any

import pytest
import torch
from torch import Tensor

from facelit.heads import AdaFaceHead, CosFaceHead
from literal_softmax import OwnCosine, assert_equals_literal, batch_at, literal_loss

IDENTITIES, DIM = 5, 4
LABELS = torch.tensor([0, 1, 1, 4, 3, 2])
COSINES = {
    "easy": [0.999, 0.99, 0.97, 0.9, 0.95, 0.999],
    "middling": [0.5, 0.3, 0.1, 0.0, -0.1, 0.7],
    "hard": [-0.97, -0.9, -0.95, -0.999, -0.99999, -0.87],
}
LENGTHS = {
    "alike": [20.0, 21.0, 19.5, 20.2, 18.0, 22.0],
    "far apart": [1.0, 90.0, 5.0, 40.0, 60.0, 3.0],
    "beyond the bounds": [1e-4, 5e3, 10.0, 1e3, 1e-2, 99.0],
}


class Norms:
    """What the authors' code keeps of the norms, in Python's floats."""

    def __init__(self, momentum: float = 0.01, mean: float = 20.0, deviation: float = 100.0) -> None:
        self.momentum, self.mean, self.deviation = momentum, mean, deviation

    def see(self, norms: list[float]) -> None:
        """A batch in training: it counts before its own norms are judged."""
        norms = [min(max(norm, 0.001), 100.0) for norm in norms]
        self.mean = self.momentum * statistics.fmean(norms) + (1 - self.momentum) * self.mean
        self.deviation = self.momentum * statistics.stdev(norms) + (1 - self.momentum) * self.deviation

    def judge(self, norm: float, concentration: float = 0.333) -> float:
        """Eq. 8: the norm's z-score, times h, from -1 to 1; 1e-3 keeps the denominator from 0."""
        score = (min(max(norm, 0.001), 100.0) - self.mean) / (self.deviation + 1e-3)
        return min(max(score * concentration, -1.0), 1.0)


def adaface(norms: Norms, lengths: list[float], margin: float = 0.4, concentration: float = 0.333) -> OwnCosine:
    """Eq. 7, 9, 10: cos(theta + g_angle) - g_add, the angle kept from 0 to pi."""

    def own_cosine(cosine: Tensor, i: int) -> Tensor:
        quality = norms.judge(lengths[i], concentration)
        g_angle, g_add = -margin * quality, margin * quality + margin
        return (cosine.acos() + g_angle).clamp(0, math.pi).cos() - g_add

    return own_cosine


def make_head(**options: Any) -> AdaFaceHead:
    torch.manual_seed(0)
    head = AdaFaceHead(IDENTITIES, DIM, **options).double()
    with torch.no_grad():
        head.weight.copy_(torch.randn(IDENTITIES, DIM) * torch.tensor([0.1, 1, 2, 3, 10]).unsqueeze(1))
    return head


@pytest.mark.parametrize("cosines", COSINES)
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize(
    "options", [{}, {"margin": 0.3, "concentration": 2.0, "momentum": 1.0, "label_smoothing": 0.1}]
)
def test_loss_and_gradients(cosines: str, lengths: str, options: dict[str, float]) -> None:
    head = make_head(**options)
    norms = Norms(options.get("momentum", 0.01))
    norms.see(LENGTHS[lengths])
    x = batch_at(COSINES[cosines], head, LABELS, LENGTHS[lengths])
    own_cosine = adaface(norms, LENGTHS[lengths], options.get("margin", 0.4), options.get("concentration", 0.333))
    # Gradients by embeddings of length 1e-4 are about 1e6.
    assert_equals_literal(head, x, LABELS, own_cosine, rtol=1e-7, atol=2e-6 if lengths != "beyond the bounds" else 1e-3)


def test_the_cases_reach_all_branches() -> None:
    """Qualities at both bounds and between; angles at both bounds and between."""
    norms = Norms(1.0)
    norms.see(LENGTHS["far apart"])
    qualities = [norms.judge(length, 2.0) for length in LENGTHS["far apart"]]
    assert min(qualities) == -1
    assert max(qualities) == 1
    assert any(abs(quality) < 1 for quality in qualities)
    angles = [
        math.acos(cosine) - 0.3 * quality
        for cosines in COSINES.values()
        for cosine, quality in zip(cosines, qualities, strict=True)
    ]
    assert min(angles) < 0 < math.pi < max(angles)


@pytest.mark.parametrize("momentum", [0.01, 0.3])
def test_running_figures(momentum: float) -> None:
    """Batches of several sizes; validation neither moves them nor judges by its own batch."""
    head, norms = make_head(momentum=momentum), Norms(momentum)
    assert (head.norm_mean.item(), head.norm_std.item()) == (20, 100)
    generator = torch.Generator().manual_seed(0)
    for size in (6, 2, 4, 6, 3):
        lengths = (torch.rand(size, generator=generator) * 50).tolist()
        x = batch_at(COSINES["middling"][:size], head, LABELS[:size], lengths)
        loss = head(x, LABELS[:size]).loss
        norms.see(lengths)
        expected = literal_loss(x, head.weight, LABELS[:size], None, 64.0, adaface(norms, lengths))
        assert loss.item() == pytest.approx(expected.item(), rel=1e-7)
        assert head.norm_mean.item() == pytest.approx(norms.mean, rel=1e-7)
        assert head.norm_std.item() == pytest.approx(norms.deviation, rel=1e-7)
        assert torch.equal(head.eval()(x, LABELS[:size]).loss, loss)
        assert head.train().norm_mean.item() == pytest.approx(norms.mean, rel=1e-7)


def test_a_batch_of_one_tells_no_deviation() -> None:
    head = make_head(momentum=0.5)
    x = batch_at([0.5], head, LABELS[:1], [10.0]).requires_grad_()
    loss = head(x, LABELS[:1]).loss
    loss.backward()
    assert (head.norm_mean.item(), head.norm_std.item()) == (15, 100)
    norms = Norms(mean=15.0)
    expected = literal_loss(x, head.weight, LABELS[:1], None, 64.0, adaface(norms, [10.0]))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-7)
    assert x.grad.isfinite().all()


def test_equal_norms_have_the_middling_margin() -> None:
    """A deviation of 0 divides nothing by 0: quality 0, which is CosFace with the same margin."""
    head = make_head(momentum=1.0)
    x = batch_at(COSINES["middling"], head, LABELS, [7.0] * 6)
    x[:] = x / x.norm(dim=1, keepdim=True) * 7
    torch.manual_seed(0)
    cosface = CosFaceHead(IDENTITIES, DIM, margin=0.4).double()
    cosface.weight.data.copy_(head.weight)
    assert head(x, LABELS).loss.item() == pytest.approx(cosface(x, LABELS).loss.item(), rel=1e-9)
    assert head.norm_std.item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_running_figures_stay_float32(dtype: torch.dtype) -> None:
    """In bfloat16 a hundredth of the way from 20 to 18 is no way at all."""
    torch.manual_seed(0)
    head, norms = AdaFaceHead(IDENTITIES, DIM).to(dtype), Norms()
    assert head.weight.dtype == dtype
    for _ in range(50):
        x = torch.nn.functional.normalize(torch.randn(6, DIM), dim=1) * torch.tensor(
            [16.0, 17, 18, 19, 20, 18]
        ).unsqueeze(1)
        assert head(x, LABELS).loss.dtype == torch.float32
        norms.see([16.0, 17, 18, 19, 20, 18])
    assert head.norm_mean.item() == pytest.approx(norms.mean, rel=1e-5)
    assert head.norm_std.item() == pytest.approx(norms.deviation, rel=1e-5)
    assert AdaFaceHead(IDENTITIES, DIM).double().norm_mean.dtype == torch.float64
    assert head.to("meta").norm_mean.device.type == "meta"


def test_state_dict_holds_the_running_figures() -> None:
    head = make_head()
    head(torch.randn(6, DIM, dtype=torch.float64) * 50, LABELS)
    other = make_head()
    other.load_state_dict(head.state_dict())
    assert other.norm_mean == head.norm_mean != 20
    assert other.norm_std == head.norm_std != 100


@pytest.mark.parametrize("options", [{"margin": -0.1}, {"concentration": 0.0}, {"momentum": 0.0}, {"momentum": 1.1}])
def test_arguments_are_checked(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        AdaFaceHead(3, 2, **options)
