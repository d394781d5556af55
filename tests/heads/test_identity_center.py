"""Center loss beside any identity loss: in Python, and from the command line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from jsonargparse import ActionConfigFile
from torch import Tensor

from facelit.cli.lightning_cli import FacelitParser
from facelit.cli.training import main
from facelit.errors import FacelitError
from facelit.heads import (
    AdaFaceHead,
    ArcFaceHead,
    CenterLossHead,
    CenterTerm,
    CombinedMarginHead,
    CosFaceHead,
    Head,
    IdentityHead,
    SoftmaxHead,
)
from facelit.optim import CenterSGD
from tiny_run import make_run

IDENTITIES, DIM = 5, 4
LABELS = torch.tensor([0, 1, 1, 4, 3, 1])
HEADS = [SoftmaxHead, ArcFaceHead, CosFaceHead, CombinedMarginHead, AdaFaceHead]


def make_head(make: Callable[..., IdentityHead], **options: Any) -> IdentityHead:
    torch.manual_seed(0)
    return make(IDENTITIES, DIM, **options).double()


def make_embeddings() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return (3 * torch.randn(len(LABELS), DIM, generator=generator, dtype=torch.float64)).requires_grad_()


@pytest.mark.parametrize("make", HEADS)
@pytest.mark.parametrize("weight", [0.0, 0.25])
def test_the_term_is_added(make: Callable[..., IdentityHead], weight: float) -> None:
    """To the loss and to the gradient, of embeddings as they are; centers get no gradient."""
    plain, head = make_head(make), make_head(make, center=CenterTerm(weight, alpha=0.5))
    assert torch.equal(plain.weight, head.weight)
    centers = head.center_loss.centers
    x = make_embeddings()
    identity_loss, metrics = plain(x, LABELS)
    distances = [(x[i] - centers[y]).square().sum() for i, y in enumerate(LABELS.tolist())]
    center_loss = sum(distances) / 2 / len(distances)
    expected = identity_loss + weight * center_loss
    loss, all_metrics = head(x, LABELS)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    gradient, wanted = (torch.autograd.grad(value, x)[0] for value in (loss, expected))
    torch.testing.assert_close(gradient, wanted)
    assert centers.grad is None
    assert {name: all_metrics[name] for name in metrics} == metrics
    assert set(all_metrics) - set(metrics) == {"loss_center", "center_distance", "alpha"}
    assert all_metrics["loss_center"].item() == pytest.approx(center_loss.item())
    mean_distance = sum(distance.item() ** 0.5 for distance in distances) / len(distances)
    assert all_metrics["center_distance"].item() == pytest.approx(mean_distance)
    assert all_metrics["alpha"].item() == 0.5


@pytest.mark.parametrize("make", HEADS)
def test_centers_move_by_eq_4(make: Callable[..., IdentityHead]) -> None:
    """Over two micro-batches at once; not in validation, and whatever the term's weight."""
    head = make_head(make, center=CenterTerm(weight=0.0, alpha=0.3))
    optimizer = head.make_optimizer()
    assert isinstance(optimizer, CenterSGD)
    before = head.center_loss.centers.detach().clone()
    x = make_embeddings()
    for part in (slice(0, 2), slice(2, 6)):
        head(x[part], LABELS[part]).loss.backward()
    head.eval()(x, LABELS).loss.backward()
    optimizer.step()
    expected = before.clone()
    for j in range(IDENTITIES):
        own = [x[i].detach() for i, y in enumerate(LABELS.tolist()) if y == j]
        if own:
            expected[j] -= 0.3 * sum(before[j] - row for row in own) / (1 + len(own))
    torch.testing.assert_close(head.center_loss.centers.detach(), expected)
    assert not torch.equal(expected, before)


@pytest.mark.parametrize("make", HEADS)
def test_without_a_term_there_are_no_centers(make: Callable[..., IdentityHead]) -> None:
    head = make_head(make)
    assert head.make_optimizer() is None
    assert head.center_loss is None
    assert not any("center" in name for name in head.state_dict())
    assert "center_loss.centers" not in head.identity_parameters()
    with_term = make_head(make, center=CenterTerm())
    assert with_term.identity_parameters()["center_loss.centers"] is with_term.center_loss.centers
    assert set(with_term.identity_parameters()) <= set(with_term.state_dict())


def test_center_loss_head_is_softmax_with_the_term() -> None:
    head = make_head(CenterLossHead, weight=0.2, alpha=0.3, bias=False, label_smoothing=0.1)
    other = make_head(SoftmaxHead, bias=False, label_smoothing=0.1, center=CenterTerm(0.2, 0.3))
    assert head.state_dict().keys() == other.state_dict().keys()
    for name, value in head.state_dict().items():
        assert torch.equal(value, other.state_dict()[name])
    x = make_embeddings()
    (loss, metrics), (expected, other_metrics) = head(x, LABELS), other(x, LABELS)
    assert torch.equal(loss, expected)
    assert metrics == other_metrics


@pytest.mark.parametrize(
    "options", [{"weight": -1.0}, {"weight": float("nan")}, {"alpha": 0.0}, {"alpha": float("nan")}]
)
def test_the_term_is_checked(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        CenterTerm(**options)


@pytest.fixture(scope="module")
def parser() -> FacelitParser:
    """Of the head alone: that of the whole program takes a second to be made."""
    parser = FacelitParser(allow_abbrev=False)
    parser.add_argument("--config", action=ActionConfigFile)
    parser.add_subclass_arguments(Head, "model.head")
    return parser


@pytest.mark.parametrize("in_file", [None, {}, {"weight": 0.01}, {"weight": 0.01, "alpha": 0.25}])
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], "that of the file"),
        (["--model.head.center.weight", "0.001"], {"weight": 0.001}),
        (["--model.head.center.alpha", "0.5"], {"alpha": 0.5}),
        (["--model.head.center", "{weight: 0.002, alpha: 0.1}"], {"weight": 0.002, "alpha": 0.1}),
        (["--model.head.center.weight", "0.001", "--model.head.center", "null"], None),
        (["--model.head", "CosFaceHead", "--model.head.center.weight", "1"], {"weight": 1.0}),
    ],
)
def test_options(
    parser: FacelitParser, tmp_path: Path, options: list[str], in_file: dict[str, float] | None, expected: Any
) -> None:
    """The command line goes before the file, key by key; without either there is no center loss."""
    path = tmp_path / "arcface.yaml"
    head = {"class_path": "facelit.heads.ArcFaceHead", "init_args": {"center": in_file}}
    path.write_text(yaml.safe_dump({"model": {"head": head}}))
    sizes = ["--model.head.num_identities", "3", "--model.head.embedding_dim", "2"]
    config = parser.parse_args(["--config", str(path), *options, "--model.head.margin", "0.3", *sizes])
    made = parser.instantiate_classes(config).model.head
    assert made.margin == 0.3
    assert made.scale == 64.0
    if expected == "that of the file":
        expected = in_file
    elif expected is not None:
        expected = (in_file or {}) | expected
    assert made.center == (None if expected is None else CenterTerm(**expected))
    assert (made.center_loss is None) == (expected is None)


@pytest.mark.parametrize("option", ["weight=-1", "weight=much", "alpha=0", "wieght=1"])
def test_a_slip_is_named(parser: FacelitParser, option: str) -> None:
    head = ["--model.head=ArcFaceHead", "--model.head.num_identities=3", "--model.head.embedding_dim=2"]
    with pytest.raises((FacelitError, ValueError), match=option.split("=")[0]):
        parser.instantiate_classes(parser.parse_args([*head, f"--model.head.center.{option}"]))


def test_training_from_the_command_line(tmp_path: Path) -> None:
    """The checkpoint loads safely, and what it says of the term makes the network again for validation."""
    config = str(make_run(tmp_path, head="ArcFaceHead", trainer__max_epochs=1, trainer__limit_train_batches=2))
    main(["fit", "--config", config, "--model.head.center.weight", "0.01", "--model.head.center.alpha", "0.25"])
    (path,) = tmp_path.glob("**/last.ckpt")
    checkpoint = torch.load(path, weights_only=True)
    settings = checkpoint["hyper_parameters"]["head"]["init_args"]["center"]
    assert dict(settings) == {"weight": 0.01, "alpha": 0.25, "normalized": False}
    assert checkpoint["state_dict"]["head.center_loss.centers"].shape == (8, 16)
    assert checkpoint["state_dict"]["head.batches_seen"].item() == 2
    main(["validate", "--config", config, "--ckpt_path", str(path)])
