"""Other projects' parameter names and shapes, written down from their checkpoints, and their forward passes in plain functions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]
State = dict[str, Tensor]

BOTTLENECKS = [(2, 64, 5, 2), (4, 128, 1, 2), (2, 128, 6, 1), (4, 128, 1, 2), (2, 128, 2, 1)]


def _bn(shapes: Shapes, name: str, channels: int, affine: bool = True) -> None:
    if affine:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (channels,)
    shapes[f"{name}.running_mean"] = shapes[f"{name}.running_var"] = (channels,)
    shapes[f"{name}.num_batches_tracked"] = ()


def iresnet_shapes(blocks: Sequence[int]) -> Shapes:
    """arcface_torch's iresnet."""
    s: Shapes = {"conv1.weight": (64, 3, 3, 3), "prelu.weight": (64,)}
    _bn(s, "bn1", 64)
    inputs = 64
    for group, (count, outputs) in enumerate(zip(blocks, (64, 128, 256, 512), strict=True), start=1):
        for number in range(count):
            name = f"layer{group}.{number}"
            _bn(s, f"{name}.bn1", inputs)
            s[f"{name}.conv1.weight"] = (outputs, inputs, 3, 3)
            _bn(s, f"{name}.bn2", outputs)
            s[f"{name}.prelu.weight"] = (outputs,)
            s[f"{name}.conv2.weight"] = (outputs, outputs, 3, 3)
            _bn(s, f"{name}.bn3", outputs)
            if number == 0:
                s[f"{name}.downsample.0.weight"] = (outputs, inputs, 1, 1)
                _bn(s, f"{name}.downsample.1", outputs)
            inputs = outputs
    _bn(s, "bn2", 512)
    s["fc.weight"], s["fc.bias"] = (512, 512 * 49), (512,)
    _bn(s, "features", 512)
    return s


def ir_shapes(blocks: Sequence[int]) -> Shapes:
    """AdaFace's IR networks."""
    s: Shapes = {"input_layer.0.weight": (64, 3, 3, 3), "input_layer.2.weight": (64,)}
    _bn(s, "input_layer.1", 64)
    inputs, place = 64, 0
    for count, outputs in zip(blocks, (64, 128, 256, 512), strict=True):
        for _ in range(count):
            name = f"body.{place}"
            if inputs != outputs:
                s[f"{name}.shortcut_layer.0.weight"] = (outputs, inputs, 1, 1)
                _bn(s, f"{name}.shortcut_layer.1", outputs)
            _bn(s, f"{name}.res_layer.0", inputs)
            s[f"{name}.res_layer.1.weight"] = (outputs, inputs, 3, 3)
            _bn(s, f"{name}.res_layer.2", outputs)
            s[f"{name}.res_layer.3.weight"] = (outputs,)
            s[f"{name}.res_layer.4.weight"] = (outputs, outputs, 3, 3)
            _bn(s, f"{name}.res_layer.5", outputs)
            inputs, place = outputs, place + 1
    _bn(s, "output_layer.0", 512)
    s["output_layer.3.weight"], s["output_layer.3.bias"] = (512, 512 * 49), (512,)
    _bn(s, "output_layer.4", 512, affine=False)
    return s


def mbf_shapes() -> Shapes:
    """arcface_torch's mbf: blocks (1, 4, 6, 2), scale 2."""
    s: Shapes = {}

    def conv(name: str, outputs: int, inputs: int, size: int, linear: bool = False) -> None:
        s[f"{name}.layers.0.weight"] = (outputs, inputs, size, size)
        _bn(s, f"{name}.layers.1", outputs)
        if not linear:
            s[f"{name}.layers.2.weight"] = (outputs,)

    def bottleneck(name: str, inputs: int, hidden: int, outputs: int) -> None:
        conv(f"{name}.layers.0", hidden, inputs, 1)
        conv(f"{name}.layers.1", hidden, 1, 3)
        conv(f"{name}.layers.2", outputs, hidden, 1, linear=True)

    conv("layers.0", 128, 3, 3)
    conv("layers.1", 128, 2, 3)
    bottleneck("layers.2", 128, 128, 128)
    for number in range(4):
        bottleneck(f"layers.3.layers.{number}", 128, 128, 128)
    bottleneck("layers.4", 128, 256, 256)
    for number in range(6):
        bottleneck(f"layers.5.layers.{number}", 256, 256, 256)
    bottleneck("layers.6", 256, 512, 256)
    for number in range(2):
        bottleneck(f"layers.7.layers.{number}", 256, 256, 256)
    conv("conv_sep", 512, 256, 1)
    conv("features.layers.0", 512, 1, 7, linear=True)
    s["features.layers.2.weight"] = (512, 512)
    _bn(s, "features.layers.3", 512)
    return s


def foamliu_shapes() -> Shapes:
    """github.com/foamliu/MobileFaceNet."""
    s: Shapes = {"conv1.0.weight": (64, 3, 3, 3), "conv2.0.weight": (512, 128, 1, 1)}
    s["dw_conv.depthwise.weight"], s["dw_conv.pointwise.weight"] = (64, 1, 3, 3), (64, 64, 1, 1)
    s["gdconv.depthwise.weight"] = (512, 1, 7, 7)
    s["conv3.weight"], s["conv3.bias"] = (128, 512, 1, 1), (128,)
    norms = {"conv1.1": 64, "conv2.1": 512, "dw_conv.bn1": 64, "dw_conv.bn2": 64, "gdconv.bn": 512, "bn": 128}
    for name, channels in norms.items():
        _bn(s, name, channels)
    inputs, place = 64, 0
    for expansion, outputs, count, _ in BOTTLENECKS:
        for _ in range(count):
            hidden, name = inputs * expansion, f"features.{place}.conv"
            s[f"{name}.0.0.weight"] = (hidden, inputs, 1, 1)
            _bn(s, f"{name}.0.1", hidden)
            s[f"{name}.1.0.weight"] = (hidden, 1, 3, 3)
            _bn(s, f"{name}.1.1", hidden)
            s[f"{name}.2.weight"] = (outputs, hidden, 1, 1)
            _bn(s, f"{name}.3", outputs)
            inputs, place = outputs, place + 1
    return s


def xiaoccer_shapes() -> Shapes:
    """github.com/Xiaoccer/MobileFaceNet_Pytorch."""
    s: Shapes = {}
    for name, shape, linear in (
        ("conv1", (64, 3, 3, 3), False),
        ("dw_conv1", (64, 1, 3, 3), False),
        ("conv2", (512, 128, 1, 1), False),
        ("linear7", (512, 1, 7, 6), True),
        ("linear1", (128, 512, 1, 1), True),
    ):
        s[f"{name}.conv.weight"] = shape
        _bn(s, f"{name}.bn", shape[0])
        if not linear:
            s[f"{name}.prelu.weight"] = (shape[0],)
    inputs, place = 64, 0
    for expansion, outputs, count, _ in BOTTLENECKS:
        for _ in range(count):
            hidden, name = inputs * expansion, f"blocks.{place}.conv"
            s[f"{name}.0.weight"], s[f"{name}.3.weight"] = (hidden, inputs, 1, 1), (hidden, 1, 3, 3)
            s[f"{name}.6.weight"] = (outputs, hidden, 1, 1)
            s[f"{name}.2.weight"] = s[f"{name}.5.weight"] = (hidden,)
            _bn(s, f"{name}.1", hidden)
            _bn(s, f"{name}.4", hidden)
            _bn(s, f"{name}.7", outputs)
            inputs, place = outputs, place + 1
    return s


def inception_shapes() -> Shapes:
    """facenet-pytorch's InceptionResnetV1, with the classifier of VGGFace2."""
    s: Shapes = {"last_linear.weight": (512, 1792), "logits.weight": (8631, 512), "logits.bias": (8631,)}
    _bn(s, "last_bn", 512)

    def conv(name: str, inputs: int, outputs: int, height: int, width: int) -> None:
        s[f"{name}.conv.weight"] = (outputs, inputs, height, width)
        _bn(s, f"{name}.bn", outputs)

    def chain(name: str, *layers: tuple[int, int, int, int]) -> None:
        for number, layer in enumerate(layers):
            conv(f"{name}.{number}", *layer)

    conv("conv2d_1a", 3, 32, 3, 3)
    conv("conv2d_2a", 32, 32, 3, 3)
    conv("conv2d_2b", 32, 64, 3, 3)
    conv("conv2d_3b", 64, 80, 1, 1)
    conv("conv2d_4a", 80, 192, 3, 3)
    conv("conv2d_4b", 192, 256, 3, 3)
    for number in range(5):
        name = f"repeat_1.{number}"
        conv(f"{name}.branch0", 256, 32, 1, 1)
        chain(f"{name}.branch1", (256, 32, 1, 1), (32, 32, 3, 3))
        chain(f"{name}.branch2", (256, 32, 1, 1), (32, 32, 3, 3), (32, 32, 3, 3))
        s[f"{name}.conv2d.weight"], s[f"{name}.conv2d.bias"] = (256, 96, 1, 1), (256,)
    conv("mixed_6a.branch0", 256, 384, 3, 3)
    chain("mixed_6a.branch1", (256, 192, 1, 1), (192, 192, 3, 3), (192, 256, 3, 3))
    for number in range(10):
        name = f"repeat_2.{number}"
        conv(f"{name}.branch0", 896, 128, 1, 1)
        chain(f"{name}.branch1", (896, 128, 1, 1), (128, 128, 1, 7), (128, 128, 7, 1))
        s[f"{name}.conv2d.weight"], s[f"{name}.conv2d.bias"] = (896, 256, 1, 1), (896,)
    chain("mixed_7a.branch0", (896, 256, 1, 1), (256, 384, 3, 3))
    chain("mixed_7a.branch1", (896, 256, 1, 1), (256, 256, 3, 3))
    chain("mixed_7a.branch2", (896, 256, 1, 1), (256, 256, 3, 3), (256, 256, 3, 3))
    for name in [*(f"repeat_3.{number}" for number in range(5)), "block8"]:
        conv(f"{name}.branch0", 1792, 192, 1, 1)
        chain(f"{name}.branch1", (1792, 192, 1, 1), (192, 192, 1, 3), (192, 192, 3, 1))
        s[f"{name}.conv2d.weight"], s[f"{name}.conv2d.bias"] = (1792, 384, 1, 1), (1792,)
    return s


def on_meta(shapes: Shapes) -> State:
    """Without memory."""
    return {name: torch.empty(shape, device="meta", dtype=_dtype(name)) for name, shape in shapes.items()}


def random_state(shapes: Shapes, seed: int = 0) -> State:
    """Values under which a signal goes through a deep network without dying."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(7)
        elif name.endswith("running_var"):
            state[name] = torch.rand(shape, generator=generator) + 0.5
        elif len(shape) > 1:
            state[name] = torch.randn(shape, generator=generator) / math.sqrt(math.prod(shape[1:]))
        elif name.endswith("weight"):
            state[name] = torch.rand(shape, generator=generator) + 0.2
        else:
            state[name] = torch.randn(shape, generator=generator) * 0.1
    return state


def _dtype(name: str) -> torch.dtype:
    return torch.int64 if name.endswith("num_batches_tracked") else torch.float32


class _Net:
    """A state as functions of its layers' names."""

    def __init__(self, state: State, eps: float = 1e-5) -> None:
        self.w, self.eps = state, eps

    def conv(self, x: Tensor, name: str, stride: int = 1, padding: int | tuple[int, int] = 0) -> Tensor:
        weight = self.w[f"{name}.weight"]
        groups = x.shape[1] // weight.shape[1]
        return F.conv2d(x, weight, self.w.get(f"{name}.bias"), stride, padding, groups=groups)

    def bn(self, x: Tensor, name: str) -> Tensor:
        mean, var = self.w[f"{name}.running_mean"], self.w[f"{name}.running_var"]
        shape = (1, -1) + (1,) * (x.ndim - 2)
        y = (x - mean.view(shape)) / (var.view(shape) + self.eps).sqrt()
        if f"{name}.weight" in self.w:
            y = y * self.w[f"{name}.weight"].view(shape) + self.w[f"{name}.bias"].view(shape)
        return y

    def prelu(self, x: Tensor, name: str) -> Tensor:
        return torch.where(x > 0, x, x * self.w[f"{name}.weight"].view(1, -1, 1, 1))


def iresnet(state: State, x: Tensor, blocks: Sequence[int]) -> Tensor:
    n = _Net(state)
    x = n.prelu(n.bn(n.conv(x, "conv1", padding=1), "bn1"), "prelu")
    for group, count in enumerate(blocks, start=1):
        for number in range(count):
            name, stride = f"layer{group}.{number}", 1 if number else 2
            y = n.bn(n.conv(n.bn(x, f"{name}.bn1"), f"{name}.conv1", padding=1), f"{name}.bn2")
            y = n.bn(n.conv(n.prelu(y, f"{name}.prelu"), f"{name}.conv2", stride, 1), f"{name}.bn3")
            x = y + (x if number else n.bn(n.conv(x, f"{name}.downsample.0", 2), f"{name}.downsample.1"))
    x = n.bn(x, "bn2").flatten(1) @ state["fc.weight"].T + state["fc.bias"]
    return n.bn(x, "features")


def ir(state: State, x: Tensor, blocks: Sequence[int]) -> tuple[Tensor, Tensor]:
    """AdaFace's: the embedding divided by its length, and the length."""
    n = _Net(state)
    x = n.prelu(n.bn(n.conv(x, "input_layer.0", padding=1), "input_layer.1"), "input_layer.2")
    place = 0
    for count in blocks:
        for number in range(count):
            name, stride = f"body.{place}", 1 if number else 2
            short = x[:, :, ::stride, ::stride]
            if f"{name}.shortcut_layer.0.weight" in state:
                short = n.bn(n.conv(x, f"{name}.shortcut_layer.0", stride), f"{name}.shortcut_layer.1")
            y = n.bn(n.conv(n.bn(x, f"{name}.res_layer.0"), f"{name}.res_layer.1", padding=1), f"{name}.res_layer.2")
            y = n.prelu(y, f"{name}.res_layer.3")
            x = short + n.bn(n.conv(y, f"{name}.res_layer.4", stride, 1), f"{name}.res_layer.5")
            place += 1
    x = n.bn(x, "output_layer.0").flatten(1) @ state["output_layer.3.weight"].T + state["output_layer.3.bias"]
    x = n.bn(x, "output_layer.4")
    length = x.square().sum(1, keepdim=True).sqrt()
    return x / length, length


def mbf(state: State, x: Tensor) -> Tensor:
    n = _Net(state)

    def conv(x: Tensor, name: str, stride: int = 1, padding: int = 0) -> Tensor:
        y = n.bn(n.conv(x, f"{name}.layers.0", stride, padding), f"{name}.layers.1")
        return n.prelu(y, f"{name}.layers.2") if f"{name}.layers.2.weight" in state else y

    def bottleneck(x: Tensor, name: str, stride: int) -> Tensor:
        y = conv(conv(x, f"{name}.layers.0"), f"{name}.layers.1", stride, 1)
        return conv(y, f"{name}.layers.2")

    x = conv(conv(x, "layers.0", 2, 1), "layers.1", 1, 1)
    for place, repetitions in ((2, 4), (4, 6), (6, 2)):
        x = bottleneck(x, f"layers.{place}", 2)
        for number in range(repetitions):
            x = x + bottleneck(x, f"layers.{place + 1}.layers.{number}", 1)
    x = conv(conv(x, "conv_sep"), "features.layers.0").flatten(1)
    return n.bn(x @ state["features.layers.2.weight"].T, "features.layers.3")


def _mobilefacenet_bottlenecks(x: Tensor, block: Callable[[Tensor, int, int], Tensor]) -> Tensor:
    place = 0
    for _, _, count, stride in BOTTLENECKS:
        for number in range(count):
            y = block(x, place, 1 if number else stride)
            x = x + y if y.shape == x.shape and (number or stride == 1) else y
            place += 1
    return x


def foamliu(state: State, x: Tensor) -> Tensor:
    n = _Net(state)

    def block(x: Tensor, place: int, stride: int) -> Tensor:
        name = f"features.{place}.conv"
        y = n.bn(n.conv(x, f"{name}.0.0"), f"{name}.0.1").clamp(0, 6)
        y = n.bn(n.conv(y, f"{name}.1.0", stride, 1), f"{name}.1.1").clamp(0, 6)
        return n.bn(n.conv(y, f"{name}.2"), f"{name}.3")

    x = n.bn(n.conv(x, "conv1.0", 2, 1), "conv1.1").clamp(0, 6)
    x = n.bn(n.conv(x, "dw_conv.depthwise", 1, 1), "dw_conv.bn1").clamp(min=0)
    x = n.bn(n.conv(x, "dw_conv.pointwise"), "dw_conv.bn2").clamp(min=0)
    x = _mobilefacenet_bottlenecks(x, block)
    x = n.bn(n.conv(x, "conv2.0"), "conv2.1").clamp(0, 6)
    return n.bn(n.conv(n.bn(n.conv(x, "gdconv.depthwise"), "gdconv.bn"), "conv3"), "bn").flatten(1)


def xiaoccer(state: State, x: Tensor) -> Tensor:
    n = _Net(state)

    def conv(x: Tensor, name: str, stride: int = 1, padding: int = 0) -> Tensor:
        y = n.bn(n.conv(x, f"{name}.conv", stride, padding), f"{name}.bn")
        return n.prelu(y, f"{name}.prelu") if f"{name}.prelu.weight" in state else y

    def block(x: Tensor, place: int, stride: int) -> Tensor:
        name = f"blocks.{place}.conv"
        y = n.prelu(n.bn(n.conv(x, f"{name}.0"), f"{name}.1"), f"{name}.2")
        y = n.prelu(n.bn(n.conv(y, f"{name}.3", stride, 1), f"{name}.4"), f"{name}.5")
        return n.bn(n.conv(y, f"{name}.6"), f"{name}.7")

    x = _mobilefacenet_bottlenecks(conv(conv(x, "conv1", 2, 1), "dw_conv1", 1, 1), block)
    return conv(conv(conv(x, "conv2"), "linear7"), "linear1").flatten(1)


def inception(state: State, x: Tensor) -> Tensor:
    """facenet-pytorch's: the embedding divided by its length."""
    n = _Net(state, eps=1e-3)

    def conv(x: Tensor, name: str, stride: int = 1, padding: int | tuple[int, int] = 0) -> Tensor:
        return n.bn(n.conv(x, f"{name}.conv", stride, padding), f"{name}.bn").clamp(min=0)

    def residual(x: Tensor, name: str, branches: list[Tensor], scale: float) -> Tensor:
        return n.conv(torch.cat(branches, 1), f"{name}.conv2d") * scale + x

    x = conv(conv(conv(x, "conv2d_1a", 2), "conv2d_2a"), "conv2d_2b", 1, 1)
    x = conv(conv(conv(F.max_pool2d(x, 3, 2), "conv2d_3b"), "conv2d_4a"), "conv2d_4b", 2)
    for number in range(5):
        b = f"repeat_1.{number}"
        first = conv(x, f"{b}.branch0")
        second = conv(conv(x, f"{b}.branch1.0"), f"{b}.branch1.1", 1, 1)
        third = conv(conv(conv(x, f"{b}.branch2.0"), f"{b}.branch2.1", 1, 1), f"{b}.branch2.2", 1, 1)
        x = residual(x, b, [first, second, third], 0.17).clamp(min=0)
    second = conv(conv(conv(x, "mixed_6a.branch1.0"), "mixed_6a.branch1.1", 1, 1), "mixed_6a.branch1.2", 2)
    x = torch.cat([conv(x, "mixed_6a.branch0", 2), second, F.max_pool2d(x, 3, 2)], 1)
    for number in range(10):
        b = f"repeat_2.{number}"
        second = conv(conv(x, f"{b}.branch1.0"), f"{b}.branch1.1", 1, (0, 3))
        branches = [conv(x, f"{b}.branch0"), conv(second, f"{b}.branch1.2", 1, (3, 0))]
        x = residual(x, b, branches, 0.10).clamp(min=0)
    first = conv(conv(x, "mixed_7a.branch0.0"), "mixed_7a.branch0.1", 2)
    second = conv(conv(x, "mixed_7a.branch1.0"), "mixed_7a.branch1.1", 2)
    third = conv(conv(conv(x, "mixed_7a.branch2.0"), "mixed_7a.branch2.1", 1, 1), "mixed_7a.branch2.2", 2)
    x = torch.cat([first, second, third, F.max_pool2d(x, 3, 2)], 1)
    for b in [*(f"repeat_3.{number}" for number in range(5)), "block8"]:
        second = conv(conv(x, f"{b}.branch1.0"), f"{b}.branch1.1", 1, (0, 1))
        branches = [conv(x, f"{b}.branch0"), conv(second, f"{b}.branch1.2", 1, (1, 0))]
        x = residual(x, b, branches, 1.0 if b == "block8" else 0.2)
        x = x if b == "block8" else x.clamp(min=0)
    x = n.bn(x.mean((2, 3)) @ state["last_linear.weight"].T, "last_bn")
    return x / x.square().sum(1, keepdim=True).sqrt()
