"""The losses of the identity heads as their papers write them: sample by sample, identity by identity, in float64."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from facelit.heads import IdentityHead

OwnCosine = Callable[[Tensor, int], Tensor]
"""What stands in the place of the own cosine, scalar, of sample number i."""


def literal_loss(
    x: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None = None,
    scale: float | None = None,
    own_cosine: OwnCosine = lambda cosine, i: cosine,
    smoothing: float = 0.0,
    among: Sequence[int] | None = None,
) -> Tensor:
    """Mean cross entropy between softmax and (smoothed) target, over the identities `among`."""
    among = range(len(weight)) if among is None else among
    losses = []
    for i, own in enumerate(labels.tolist()):
        logits = []
        for j in among:
            product = (x[i] * weight[j]).sum()
            if scale is None:
                logits.append(product if bias is None else product + bias[j])
            else:
                cosine = product / (x[i].square().sum().sqrt() * weight[j].square().sum().sqrt())
                logits.append(scale * (own_cosine(cosine, i) if j == own else cosine))
        log_sum = sum(logit.exp() for logit in logits).log()
        for j, logit in zip(among, logits, strict=True):
            target = smoothing / len(among) + (1 - smoothing) * (j == own)
            losses.append(target * (log_sum - logit))
    return sum(losses) / len(labels)


def falling_cosine(phi: Tensor) -> Tensor:
    """cos(phi) up to pi; from there on it falls by 2 every half turn, as SphereFace's psi does."""
    half_turns = math.floor(phi.item() / math.pi)
    return (-1) ** half_turns * phi.cos() - 2 * half_turns


def batch_at(cosines: Sequence[float], head: IdentityHead, labels: Tensor, lengths: Sequence[float]) -> Tensor:
    """Embeddings of given lengths and cosines to the vectors of their own identities, float64 (N, D).

    Their sides turn so that the other identities are met at various angles.
    """
    weight = head.weight.detach().double()
    generator = torch.Generator().manual_seed(5)
    rows = []
    for cosine, label, length in zip(cosines, labels.tolist(), lengths, strict=True):
        own = weight[label] / weight[label].norm()
        side = torch.randn(weight.shape[1], generator=generator, dtype=torch.float64)
        side -= (side * own).sum() * own
        rows.append(length * (cosine * own + math.sqrt(1 - cosine**2) * side / side.norm()))
    return torch.stack(rows)


def loss_and_gradients(loss: Tensor, inputs: Sequence[Tensor | None]) -> tuple[Tensor, list[Tensor]]:
    """The detached loss and its gradients by those inputs that there are."""
    return loss.detach(), list(torch.autograd.grad(loss, [x for x in inputs if x is not None]))


def assert_equals_literal(
    head: IdentityHead,
    x: Tensor,
    labels: Tensor,
    own_cosine: OwnCosine = lambda cosine, i: cosine,
    rtol: float = 1e-7,
    atol: float = 1e-7,
) -> None:
    """Compares a head (of whatever precision) with the reference: loss, and gradients by embeddings, vectors and biases."""
    x = x.detach().to(head.weight.dtype).requires_grad_()
    loss, gradients = loss_and_gradients(head(x, labels).loss, [x, head.weight, head.bias])
    exact = [None if t is None else t.detach().double().requires_grad_() for t in (x, head.weight, head.bias)]
    literal = literal_loss(exact[0], exact[1], labels, exact[2], head.scale, own_cosine, head.label_smoothing)
    expected, expected_gradients = loss_and_gradients(literal, exact)
    torch.testing.assert_close(loss.double(), expected, rtol=rtol, atol=atol)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient.double(), wanted, rtol=rtol, atol=atol)
