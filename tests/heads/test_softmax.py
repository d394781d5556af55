"""SoftmaxHead against its own definition in float64."""

import pytest
import torch

from facelit.heads import SoftmaxHead


def reference(x: torch.Tensor, labels: torch.Tensor, head: SoftmaxHead, smoothing: float) -> tuple[float, float]:
    """Cross entropy with a smoothed target, and accuracy, written out."""
    logits = x.double() @ head.weight.double().T
    if head.bias is not None:
        logits = logits + head.bias.double()
    log_p = logits - logits.exp().sum(dim=1, keepdim=True).log()
    target = torch.full_like(log_p, smoothing / logits.shape[1])
    target[range(len(labels)), labels] += 1 - smoothing
    accuracy = sum(int(row.argmax()) == int(y) for row, y in zip(logits, labels, strict=True)) / len(labels)
    return -(target * log_p).sum(dim=1).mean().item(), accuracy


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_matches_cross_entropy(bias: bool, smoothing: float) -> None:
    torch.manual_seed(0)
    head = SoftmaxHead(5, 4, bias=bias, label_smoothing=smoothing)
    x = torch.randn(9, 4, requires_grad=True)
    labels = torch.randint(0, 5, (9,))
    loss, metrics = head(x, labels)
    expected, accuracy = reference(x.detach(), labels, head, smoothing)
    assert loss.item() == pytest.approx(expected, abs=1e-6)
    assert metrics["loss_softmax"].item() == loss.item()
    assert metrics["identity_accuracy"].item() == pytest.approx(accuracy)
    assert metrics["embedding_norm"].item() == pytest.approx(x.norm(dim=1).mean().item())
    assert not any(value.requires_grad for value in metrics.values())
    loss.backward()
    assert x.grad.abs().sum() > 0


def test_logits_are_float32_under_autocast() -> None:
    torch.manual_seed(0)
    head = SoftmaxHead(5, 4)
    x, labels = torch.randn(9, 4), torch.randint(0, 5, (9,))
    plain = head(x, labels).loss
    with torch.autocast("cpu", torch.bfloat16):
        mixed = head(x, labels).loss
        assert head.logits(x.bfloat16()).dtype == torch.float32
    assert torch.equal(plain, mixed)
    halved = head.bfloat16()(x.bfloat16(), labels).loss
    assert halved.dtype == torch.float32
    assert halved.item() == pytest.approx(plain.item(), abs=0.05)


@pytest.mark.parametrize("label", [-1, 5])
def test_label_out_of_range_is_named(label: int) -> None:
    with pytest.raises(ValueError, match=f"label {label} .*num_identities=5"):
        SoftmaxHead(5, 4)(torch.randn(2, 4), torch.tensor([0, label]))


@pytest.mark.parametrize("options", [{"num_identities": 0}, {"embedding_dim": 0}, {"label_smoothing": 1.5}])
def test_arguments_are_checked(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        SoftmaxHead(**{"num_identities": 3, "embedding_dim": 2, **options})
