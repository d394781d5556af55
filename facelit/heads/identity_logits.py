"""What a softmax over identities needs from its logits, without ever holding all of them.

The softmax loss of sample i needs three numbers: its own logit z_{i, y_i}, the log-sum-exp of all others, and (for label
smoothing) the sum of all. Whatever a margin does to the own logit is then arithmetic on N numbers, and processes that hold
different identities only exchange N numbers of each kind.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

MAX_LOGITS = 2**25
"""Logits held at a time, at most: 128 MB in float32."""


class IdentityLogits(NamedTuple):
    """A batch's logits in summary; all (N,) in the embeddings' dtype.

    Attributes:
        own: z_{i, y_i}; 0 where that identity is not among those given.
        others: log sum_{j != y_i} exp(z_ij); -inf where there are no others.
        highest: max_{j != y_i} z_ij, without gradient.
        total: sum_j z_ij if asked for, else 0.
    """

    own: Tensor
    others: Tensor
    highest: Tensor
    total: Tensor


def identity_logits(
    embeddings: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None = None,
    scale: float | None = None,
    with_total: bool = False,
    max_logits: int = MAX_LOGITS,
) -> IdentityLogits:
    """Summarises ``z_ij = x_i . w_j + b_j``; or, with a scale s, ``z_ij = s * x_i . w_j / ||w_j||``.

    Up to `max_logits` logits are computed at once and kept for the backward pass. More are computed in groups of
    identities, and again in the backward pass: memory then grows with the weights alone, at a third more arithmetic.
    Arithmetic is in the embeddings' dtype, even under autocast; gradients have the dtypes of their tensors.

    Args:
        embeddings: (N, D) float32 or float64; of length 1 where a scale is given.
        weight: (C, D) a vector for each identity.
        labels: (N,) int64; numbers outside 0 to C - 1 are identities that are not among these.
        bias: (C,), without a scale only.
        scale: multiplies the cosines; None for plain scalar products.
        with_total: whether the sum of the logits is wanted.
        max_logits: how many logits to hold at a time, at most.

    Returns:
        The four figures for each sample.
    """
    with torch.autocast(embeddings.device.type, enabled=False):
        summed = _IdentityLogits.apply(embeddings, weight, bias, labels, scale, with_total, max_logits)
    return IdentityLogits(*summed)


class _Group(NamedTuple):
    """Logits of some identities, and what they were computed from."""

    logits: Tensor  # (N, c)
    directions: Tensor  # (c, D) weights in the embeddings' dtype, of length 1 where there is a scale
    lengths: Tensor | None  # (c, 1)
    columns: Tensor  # (N, 1) column of the own identity; any column if it is not in the group
    inside: Tensor  # (N, 1) whether it is
    rows: slice  # of the weights


def _groups(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> Iterator[_Group]:
    """As many identities at a time as there is room for."""
    size = len(weight)
    if size * len(x) > ctx.max_logits:  # then their normalised vectors must not take more memory than the logits either
        size = max(1, ctx.max_logits // max(x.shape))
    for start in range(0, len(weight), size):
        yield _group(ctx, x, weight, bias, labels, slice(start, min(start + size, len(weight))))


def _group(
    ctx: Any,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    rows: slice,
    logits: Tensor | None = None,
) -> _Group:
    directions, lengths = weight[rows].to(x.dtype), None
    if ctx.scale is not None:
        lengths = torch.linalg.vector_norm(directions, dim=1, keepdim=True).clamp_min(1e-12)
        directions = directions / lengths
    if logits is None:
        logits = x @ directions.T
        if ctx.scale is not None:
            logits *= ctx.scale
        if bias is not None:
            logits += bias[rows]
    columns = (labels - rows.start).unsqueeze(1)
    inside = (columns >= 0) & (columns < len(directions))
    return _Group(logits, directions, lengths, columns.clamp(0, len(directions) - 1), inside, rows)


def _take_own(group: _Group) -> Tensor:
    """The own logits (N, 1), 0 where they are in another group; -inf replaces them in this one."""
    found = group.logits.gather(1, group.columns)
    group.logits.scatter_(1, group.columns, found.masked_fill(group.inside, -torch.inf))
    return found.masked_fill(~group.inside, 0)


class _IdentityLogits(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        embeddings: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        scale: float | None,
        with_total: bool,
        max_logits: int,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        ctx.scale, ctx.max_logits, ctx.with_total = scale, max_logits, with_total
        lowest = torch.finfo(embeddings.dtype).min
        own = embeddings.new_zeros(len(embeddings), 1)
        total = torch.zeros_like(own)
        highest = torch.full_like(own, -torch.inf)
        summed = torch.zeros_like(own)  # of exp(logit - highest)
        kept: list[Tensor] = []
        for group in _groups(ctx, embeddings, weight, bias, labels):
            if with_total:
                total += group.logits.sum(dim=1, keepdim=True)
            own += _take_own(group)
            higher = torch.maximum(highest, group.logits.amax(dim=1, keepdim=True))
            base = higher.clamp_min(lowest)  # -inf - -inf is NaN
            exponentials = group.logits.sub_(base).exp_()
            summed = summed * (highest - base).exp() + exponentials.sum(dim=1, keepdim=True)
            highest = higher
            kept = [exponentials] if len(exponentials.T) == len(weight) else []
            del group, exponentials  # before the next group is made
        others = highest.clamp_min(lowest) + summed.log()
        ctx.save_for_backward(embeddings, weight, bias, labels, others, summed, *kept)
        own, others, highest, total = (x.squeeze(1) for x in (own, others, highest, total))
        ctx.mark_non_differentiable(highest)
        return own, others, highest, total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_own: Tensor, d_others: Tensor, _: Tensor, d_total: Tensor) -> tuple[Tensor | None, ...]:
        embeddings, weight, bias, labels, others, summed, *kept = ctx.saved_tensors
        d_embeddings = torch.zeros_like(embeddings) if ctx.needs_input_grad[0] else None
        d_weight = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        d_bias = torch.empty_like(bias) if bias is not None and ctx.needs_input_grad[2] else None
        with torch.autocast(embeddings.device.type, enabled=False):
            if kept:
                whole = slice(0, len(weight))
                groups = iter([_group(ctx, embeddings, weight, bias, labels, whole, logits=kept[0])])
            else:
                groups = _groups(ctx, embeddings, weight, bias, labels)
            for group in groups:
                if kept:
                    d_logits = group.logits * (d_others.unsqueeze(1) / summed.clamp_min(torch.finfo(summed.dtype).tiny))
                else:
                    _take_own(group)
                    reference = others.clamp_min(torch.finfo(others.dtype).min)
                    d_logits = group.logits.sub_(reference).exp_().mul_(d_others.unsqueeze(1))
                _add_own(group, d_logits, d_own)
                if ctx.with_total:
                    d_logits += d_total.unsqueeze(1)
                if d_bias is not None:
                    d_bias[group.rows] = d_logits.sum(dim=0)
                if ctx.scale is not None:
                    d_logits *= ctx.scale
                if d_embeddings is not None:
                    d_embeddings.addmm_(d_logits, group.directions)
                if d_weight is not None:
                    _put_weight_gradient(d_weight[group.rows], group, d_logits, embeddings)
                del group, d_logits
        return d_embeddings, d_weight, d_bias, None, None, None, None


def _add_own(group: _Group, d_logits: Tensor, d_own: Tensor) -> None:
    """Adds the own logits' gradient where the softmax over the others is zero."""
    d_logits.scatter_add_(1, group.columns, d_own.unsqueeze(1).masked_fill(~group.inside, 0))


def _put_weight_gradient(gradient: Tensor, group: _Group, d_logits: Tensor, embeddings: Tensor) -> None:
    """Fills (c, D) of the weights' gradient, in place: memory of that size is expensive to allocate."""
    exact = gradient if gradient.dtype == embeddings.dtype else torch.empty_like(gradient, dtype=embeddings.dtype)
    torch.mm(d_logits.T, embeddings, out=exact)
    if group.lengths is not None:
        # Through w / ||w||: the component orthogonal to the direction, over the length.
        along = torch.linalg.vecdot(exact, group.directions).unsqueeze(1)
        exact.addcmul_(group.directions, along, value=-1).div_(group.lengths)
    if exact is not gradient:
        gradient.copy_(exact)
