"""CenterLoss against eq. 2 of Wen et al. (ECCV 2016) as a dense sum under autograd."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from facelit.heads import ArcFaceHead, CenterLoss, CenterLossHead, CenterTerm, IdentityHead, SoftmaxHead
from facelit.optim import CenterSGD


def dense_loss(x: Tensor, labels: Tensor, centers: Tensor) -> Tensor:
    mask = F.one_hot(labels, len(centers)).double()  # (N, C)
    squared = (x.unsqueeze(1) - centers.unsqueeze(0)).square().sum(dim=2)  # (N, C)
    return (mask * squared).sum() / 2 / len(x)


def make_batch(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(10, 4, generator=generator), torch.randint(0, 6, (10,), generator=generator)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_value_and_gradient(seed: int, scale: float) -> None:
    torch.manual_seed(seed)
    loss = CenterLoss(6, 4)
    x, labels = make_batch(seed)
    x.requires_grad_()
    value = loss(x, labels)
    (scale * value).backward()
    dense = x.detach().double().requires_grad_()
    expected = dense_loss(dense, labels, loss.centers.double())
    (scale * expected).backward()
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(x.grad.double(), dense.grad, atol=1e-7, rtol=1e-5)
    assert loss.centers.grad is None


def test_of_normalised_embeddings() -> None:
    """Value, gradient, distances, and where the centers go: all of them see directions only."""
    torch.manual_seed(0)
    head = CenterLossHead(6, 4, weight=1.0, alpha=0.5, normalized=True).double()
    loss = head.center_loss
    assert loss is not None
    optimizer, centers = head.make_optimizer(), loss.centers.clone()
    x, labels = make_batch(0)
    x = x.double().requires_grad_()
    value = loss(x, labels)
    value.backward()
    unit = x.detach().requires_grad_()
    expected = dense_loss(unit / unit.norm(dim=1, keepdim=True), labels, centers)
    expected.backward()
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)
    torch.testing.assert_close(x.grad, unit.grad)
    unit = (unit / unit.norm(dim=1, keepdim=True)).detach()
    torch.testing.assert_close(loss.distances(x, labels), (unit - centers[labels]).norm(dim=1))
    assert loss(100 * x, labels).item() == pytest.approx(value.item())
    optimizer.step()
    for identity in range(6):
        own = unit[labels == identity]
        moved = centers[identity] - 0.5 * (centers[identity] - own).sum(dim=0) / (1 + len(own))
        torch.testing.assert_close(loss.centers[identity], moved)


def test_gradcheck() -> None:
    loss = CenterLoss(6, 4).double()
    x, labels = make_batch(0)
    assert torch.autograd.gradcheck(lambda e: loss(e, labels), x.double().requires_grad_())
    assert torch.autograd.gradgradcheck(lambda e: loss(e, labels), x.double().requires_grad_())


def test_float32_under_autocast() -> None:
    torch.manual_seed(0)
    loss = CenterLoss(6, 4)
    x, labels = make_batch(0)
    plain = loss(x, labels)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(loss(x, labels), plain)
        half = loss(x.bfloat16(), labels)
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(dense_loss(x.bfloat16().double(), labels, loss.centers.double()).item())


def test_centers_start_like_caffes_xavier_filler() -> None:
    torch.manual_seed(0)
    centers = CenterLoss(4000, 12).centers
    bound = (3 / 12) ** 0.5
    assert bound * 0.99 < centers.abs().max() <= bound
    assert centers.mean().item() == pytest.approx(0, abs=0.01)
    assert centers.var().item() == pytest.approx(bound**2 / 3, rel=0.03)  # uniform
    assert isinstance(centers, torch.nn.Parameter)
    assert not centers.requires_grad


def test_centers_keep_their_precision() -> None:
    torch.manual_seed(0)
    loss = CenterLoss(6, 4)
    before = loss.centers.clone()
    for narrow in (loss.half(), loss.bfloat16(), torch.nn.Sequential(loss).half()[0]):
        assert torch.equal(narrow.centers, before)
    assert loss.double().centers.dtype == torch.float64
    assert loss.to("meta").centers.device.type == "meta"


@pytest.mark.parametrize("label", [-1, 6])
def test_label_out_of_range_is_named(label: int) -> None:
    with pytest.raises(ValueError, match=f"label {label} .*num_identities=6"):
        CenterLoss(6, 4)(torch.randn(2, 4), torch.tensor([0, label]))


@pytest.mark.parametrize("shape", [(2, 1), (2, 5), (1, 4), (4,)])
def test_wrong_shape_is_not_broadcast(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="shape"):
        CenterLoss(6, 4)(torch.randn(shape), torch.tensor([0, 1]))


def test_head_adds_the_weighted_losses() -> None:
    torch.manual_seed(0)
    head = CenterLossHead(6, 4, weight=0.1, alpha=0.25)
    x, labels = make_batch(0)
    x.requires_grad_()
    loss, metrics = head(x, labels)
    softmax = F.cross_entropy(x @ head.weight.T + head.bias, labels)
    center = dense_loss(x.double(), labels, head.center_loss.centers.double())
    assert loss.item() == pytest.approx((softmax + 0.1 * center).item(), rel=1e-6)
    assert metrics["loss_softmax"].item() == pytest.approx(softmax.item())
    assert metrics["loss_center"].item() == pytest.approx(center.item(), rel=1e-6)
    distances = [float((x[i] - head.center_loss.centers[y]).detach().norm()) for i, y in enumerate(labels)]
    assert metrics["center_distance"].item() == pytest.approx(sum(distances) / len(distances), rel=1e-5)
    assert metrics["alpha"].item() == 0.25
    assert set(metrics) >= {"identity_accuracy", "embedding_norm"}
    assert not any(value.requires_grad for value in metrics.values())


def test_embeddings_on_their_centers_give_no_nan() -> None:
    head = CenterLossHead(6, 4)
    labels = torch.arange(6)
    x = head.center_loss.centers.detach().clone().requires_grad_()
    loss, metrics = head(x, labels)
    loss.backward()
    assert metrics["loss_center"] == metrics["center_distance"] == 0
    assert x.grad.isfinite().all()


def test_head_makes_the_centers_optimizer() -> None:
    torch.manual_seed(0)
    head = CenterLossHead(6, 4, weight=0.0, alpha=0.25)
    optimizer = head.make_optimizer()
    assert isinstance(optimizer, CenterSGD)
    before = head.center_loss.centers.detach().clone()
    x = torch.randn(1, 4, requires_grad=True)
    head(x, torch.tensor([2])).loss.backward()
    optimizer.step()
    expected = before.clone()
    expected[2] -= 0.25 * (before[2] - x[0].detach()) / 2
    torch.testing.assert_close(head.center_loss.centers.detach(), expected)


@pytest.mark.parametrize("make", [CenterLossHead, lambda c, d: ArcFaceHead(c, d, center=CenterTerm(alpha=0.25))])
def test_a_head_shows_its_centers(make: Callable[[int, int], IdentityHead]) -> None:
    head = make(6, 4)
    assert isinstance(head.centers, torch.nn.Parameter)
    assert head.centers.shape == (6, 4)
    before = head.centers.detach().clone()
    optimizer = head.make_optimizer()
    head(torch.randn(1, 4, requires_grad=True), torch.tensor([2])).loss.backward()
    optimizer.step()
    assert (head.centers != before).any(dim=1).tolist() == [False, False, True, False, False, False]
    assert "centers" not in head.state_dict()
    assert torch.equal(head.state_dict()["center_loss.centers"], head.centers)


@pytest.mark.parametrize("make", [SoftmaxHead, ArcFaceHead])
def test_a_head_without_center_loss_has_no_centers(make: type[IdentityHead]) -> None:
    head = make(6, 4)
    assert not hasattr(head, "centers")
    with pytest.raises(AttributeError, match=rf"{make.__name__} has no centers: give it center=CenterTerm\("):
        _ = head.centers
    with pytest.raises(AttributeError, match="no attribute 'centres'"):
        _ = head.centres


def test_state_dict_holds_the_centers() -> None:
    state = CenterLossHead(6, 4).state_dict()
    assert set(state) == {"weight", "bias", "center_loss.centers"}


@pytest.mark.parametrize("options", [{"weight": -1.0}, {"alpha": 0.0}, {"num_identities": 0}])
def test_arguments_are_checked(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        CenterLossHead(**{"num_identities": 3, "embedding_dim": 2, **options})
