"""identity_logits against sums over a list of logits in float64; what it holds in memory; its precisions."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from facelit.heads.identity_logits import IdentityLogits, identity_logits

IDENTITIES, DIM = 5, 3
LABELS = torch.tensor([0, 4, 2, 2, -1, 5, -7, 12])  # the last four are not among them
ALL = 10**9
FORMS = [(None, False), (None, True), (6.0, False)]  # scale, and whether there is a bias


def make_inputs(bias: bool, length: float = 1.0) -> tuple[Tensor, Tensor, Tensor | None]:
    generator = torch.Generator().manual_seed(0)
    x = length * torch.randn(len(LABELS), DIM, generator=generator, dtype=torch.float64)
    weight = torch.randn(IDENTITIES, DIM, generator=generator, dtype=torch.float64)
    biases = torch.randn(IDENTITIES, generator=generator, dtype=torch.float64)
    return x.requires_grad_(), weight.requires_grad_(), biases.requires_grad_() if bias else None


def literal(x: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None, scale: float | None) -> list[Tensor]:
    """Own logit, log of the others' summed exponentials, the highest of them, and the sum of all."""
    rows = []
    for sample, own in zip(x, labels.tolist(), strict=True):
        logits = []
        for j, vector in enumerate(weight):
            z = (sample * vector).sum()
            z = z if scale is None else scale * z / vector.square().sum().sqrt()
            logits.append(z if bias is None else z + bias[j])
        others = [z for j, z in enumerate(logits) if j != own]
        mine = logits[own] if 0 <= own < len(logits) else 0 * sample.sum()
        highest = torch.tensor(max(z.item() for z in others), dtype=x.dtype)
        rows.append((mine, sum(z.exp() for z in others).log(), highest, sum(logits)))
    return [torch.stack(column) for column in zip(*rows, strict=True)]


@pytest.mark.parametrize(("scale", "bias"), FORMS)
@pytest.mark.parametrize("with_total", [True, False])
@pytest.mark.parametrize("max_logits", [1, 12, 20, ALL])
def test_values_and_gradients(scale: float | None, bias: bool, with_total: bool, max_logits: int) -> None:
    x, weight, biases = make_inputs(bias)
    inputs = [tensor for tensor in (x, weight, biases) if tensor is not None]
    found = identity_logits(x, weight, LABELS, biases, scale, with_total, max_logits)
    expected = literal(x, weight, LABELS, biases, scale)
    if not with_total:
        expected[3] = 0 * expected[3]
    for name, value, wanted in zip(IdentityLogits._fields, found, expected, strict=True):
        torch.testing.assert_close(value, wanted, rtol=1e-12, atol=1e-12, msg=name)
    assert not found.highest.requires_grad
    weights = torch.randn(4, len(LABELS), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    sums = [sum((w * v).sum() for w, v in zip(weights, four, strict=True)) for four in (found, expected)]
    for gradient, wanted in zip(*(torch.autograd.grad(total, inputs) for total in sums), strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(("scale", "bias"), FORMS)
@pytest.mark.parametrize("max_logits", [12, ALL])
def test_gradcheck(scale: float | None, bias: bool, max_logits: int) -> None:
    def figures(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        found = identity_logits(x, weight, LABELS, bias, scale, with_total=True, max_logits=max_logits)
        return found.own, found.others, found.total

    assert torch.autograd.gradcheck(figures, make_inputs(bias))


def test_groups_equal_the_whole_in_float32() -> None:
    """The softmax of a sample whose logits lie far apart, in every order of the groups."""
    generator = torch.Generator().manual_seed(0)
    x = (30 * torch.randn(6, 4, generator=generator)).requires_grad_()
    weight = torch.randn(40, 4, generator=generator).requires_grad_()
    labels = torch.tensor([0, 39, 7, 7, 20, 21])
    results = []
    for max_logits in (ALL, 60, 6):
        found = identity_logits(x, weight, labels, with_total=True, max_logits=max_logits)
        gradients = torch.autograd.grad((F.softplus(found.others - found.own) + 0.1 * found.total).sum(), (x, weight))
        results.append([*found, *gradients])
    for other in results[1:]:
        for value, whole in zip(other, results[0], strict=True):
            torch.testing.assert_close(value, whole, rtol=1e-5, atol=1e-4)


class LargestTensor(TorchDispatchMode):
    """Watches the elements of the largest tensor that an operation made, and of all large ones that are alive at once."""

    def __init__(self, large: int) -> None:
        super().__init__()
        self.large, self.largest, self.most_alive = large, 0, 0
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, Tensor):
                self.largest = max(self.largest, tensor.numel())
                if tensor.numel() > self.large:
                    storage = tensor.untyped_storage()
                    self._alive[storage._cdata] = StorageWeakRef(storage), tensor.numel()
        self._alive = {key: known for key, known in self._alive.items() if not known[0].expired()}
        self.most_alive = max(self.most_alive, sum(count for _, count in self._alive.values()))
        return result


@pytest.mark.parametrize("scale", [None, 4.0])
def test_no_more_logits_are_held_than_allowed(scale: float | None) -> None:
    """Logits are told from other tensors, such as gradients, by their number: 64 x 2 is the largest of these."""
    x, weight = torch.randn(64, 2, requires_grad=True), torch.randn(50, 2, requires_grad=True)
    labels = torch.randint(50, (64,))
    watches = {}
    for max_logits in (320, ALL):
        with LargestTensor(large=128) as watch:
            found = identity_logits(x, weight, labels, scale=scale, max_logits=max_logits)
            (found.others - found.own).sum().backward()
        watches[max_logits] = watch
    assert watches[320].largest == watches[320].most_alive == 320
    assert watches[ALL].largest == 64 * 50  # the watch sees them
    assert watches[ALL].most_alive <= 2 * 64 * 50


@pytest.mark.parametrize("max_logits", [12, ALL])
def test_autocast_changes_nothing(max_logits: int) -> None:
    x, weight = (tensor.detach().float().requires_grad_() for tensor in make_inputs(False)[:2])
    plain = identity_logits(x, weight, LABELS, scale=6.0, max_logits=max_logits)
    expected = torch.autograd.grad(plain.others.sum(), (x, weight))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = identity_logits(x, weight, LABELS, scale=6.0, max_logits=max_logits)
        gradients = torch.autograd.grad(mixed.others.sum(), (x, weight))
    for value, wanted in zip((*mixed, *gradients), (*plain, *expected), strict=True):
        assert value.dtype == torch.float32
        assert torch.equal(value, wanted)


@pytest.mark.parametrize(("wide", "narrow"), [(torch.float32, torch.bfloat16), (torch.float64, torch.float32)])
@pytest.mark.parametrize("scale", [None, 6.0])
@pytest.mark.parametrize("max_logits", [12, ALL])
def test_narrow_weights_are_widened(
    wide: torch.dtype, narrow: torch.dtype, scale: float | None, max_logits: int
) -> None:
    """The embeddings' precision is that of the arithmetic; each gradient has its tensor's."""
    x, weight, bias = make_inputs(scale is None)
    x, weight = x.detach().to(wide).requires_grad_(), weight.detach().to(narrow).requires_grad_()
    bias = None if bias is None else bias.detach().to(narrow).requires_grad_()
    inputs = [tensor for tensor in (x, weight, bias) if tensor is not None]
    widened = [tensor.detach().to(wide).requires_grad_() for tensor in inputs]
    gradients = []
    for tensors in (inputs, widened):
        own_bias = tensors[2] if bias is not None else None
        found = identity_logits(tensors[0], tensors[1], LABELS, own_bias, scale, True, max_logits)
        assert all(value.dtype == wide for value in found)
        gradients.append(torch.autograd.grad(sum(value.sum() for value in (found[0], found[1], found[3])), tensors))
    for tensor, gradient, expected in zip(inputs, *gradients, strict=True):
        assert gradient.dtype == tensor.dtype
        assert torch.equal(gradient, expected.to(tensor.dtype))


@pytest.mark.parametrize("max_logits", [1, ALL])
def test_a_single_identity_has_no_others(max_logits: int) -> None:
    x, weight = torch.randn(2, 3, requires_grad=True), torch.randn(1, 3, requires_grad=True)
    found = identity_logits(x, weight, torch.tensor([0, 0]), with_total=True, max_logits=max_logits)
    torch.testing.assert_close(found.own, (x @ weight.T).squeeze(1))
    torch.testing.assert_close(found.total, found.own)
    assert found.others.tolist() == found.highest.tolist() == [-math.inf, -math.inf]
    loss = F.softplus(found.others - found.own).sum()
    loss.backward()
    assert loss.item() == 0
    assert not x.grad.any()
    assert not weight.grad.any()


@pytest.mark.parametrize("size", [1e-30, 1e6, 1e18])
@pytest.mark.parametrize("max_logits", [3, ALL])
def test_extreme_logits_stay_finite(size: float, max_logits: int) -> None:
    x = torch.tensor([[size], [-size], [0.0]], requires_grad=True)
    weight = torch.tensor([[1e18], [-1e18], [0.0], [1.0]], requires_grad=True)
    found = identity_logits(x, weight, torch.tensor([0, 0, 1]), with_total=True, max_logits=max_logits)
    loss = F.softplus(found.others - found.own)
    loss.sum().backward()
    z = x.detach().double() @ weight.detach().double().T
    expected = torch.nn.functional.cross_entropy(z, torch.tensor([0, 0, 1]), reduction="none")
    torch.testing.assert_close(loss.detach().double(), expected, rtol=1e-5, atol=1e-5)
    assert x.grad.isfinite().all()
    assert weight.grad.isfinite().all()


@pytest.mark.parametrize("max_logits", [12, ALL])
def test_backward_may_run_again(max_logits: int) -> None:
    x, weight, bias = make_inputs(True)
    found = identity_logits(x, weight, LABELS, bias, with_total=True, max_logits=max_logits)
    total = (found.own + 2 * found.others + 3 * found.total).sum()
    first = torch.autograd.grad(total, (x, weight, bias), retain_graph=True)
    second = torch.autograd.grad(total, (x, weight, bias))
    for once, again in zip(first, second, strict=True):
        assert torch.equal(once, again)


def test_second_order_is_refused() -> None:
    x, weight, _ = make_inputs(False)
    found = identity_logits(x, weight, LABELS)
    (gradient,) = torch.autograd.grad(F.softplus(found.others - found.own).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


class MatrixProducts(TorchDispatchMode):
    """Counts them."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += "mm" in function.overloadpacket.__name__
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("needed", range(3))
def test_gradients_that_nobody_wants_are_not_made(needed: int) -> None:
    """One product of matrices for the embeddings' gradient, one for the vectors', none for the biases'."""
    tensors = [tensor.detach() for tensor in make_inputs(True) if tensor is not None]
    tensors[needed].requires_grad_()
    x, weight, bias = tensors
    total = identity_logits(x, weight, LABELS, bias).others.sum()
    with MatrixProducts() as products:
        total.backward()
    assert [tensor.grad is not None for tensor in tensors] == [number == needed for number in range(3)]
    assert products.count == (1 if needed < 2 else 0)
