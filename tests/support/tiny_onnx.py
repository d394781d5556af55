"""ONNX files of a mean and a product: images to (batch, 4) embeddings that are easily computed by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np

MATRIX = np.arange(12, dtype=np.float32).reshape(3, 4) - 5


def write_onnx(
    path: Path,
    batch: int | None = None,
    outputs: int = 1,
    inputs: int = 1,
    channels: int = 3,
    uint8: bool = False,
    channels_last: bool = False,
    normalise: bool = False,
    flatten: bool = True,
) -> Path:
    """Each channel's mean times `MATRIX`; with `normalise` of (x - 127.5) / 128."""
    from onnx import TensorProto, helper, numpy_helper

    shape = [batch or "n", 112, 112, channels] if channels_last else [batch or "n", channels, 112, 112]
    kind = TensorProto.UINT8 if uint8 else TensorProto.FLOAT
    takes = [helper.make_tensor_value_info("image", kind, shape)]
    takes += [helper.make_tensor_value_info("second", TensorProto.FLOAT, [1])] * (inputs - 1)
    matrix = MATRIX if channels == 3 else MATRIX[:channels]
    constants = {"matrix": matrix, "half": np.float32(127.5), "factor": np.float32(1 / 128)}
    nodes, value = [], "image"

    def add(operator: str, *others: str, **attributes: object) -> None:
        nonlocal value
        nodes.append(helper.make_node(operator, [value, *others], [f"v{len(nodes)}"], **attributes))
        value = f"v{len(nodes) - 1}"

    if uint8:
        add("Cast", to=TensorProto.FLOAT)
    if channels_last:
        add("Transpose", perm=[0, 3, 1, 2])
    if normalise:
        add("Sub", "half")
        add("Mul", "factor")
    add("GlobalAveragePool")
    if flatten:
        add("Flatten")
        add("MatMul", "matrix")
    nodes.append(helper.make_node("Identity", [value], ["embedding"]))
    nodes += [helper.make_node("Identity", [value], [f"other{number}"]) for number in range(outputs - 1)]
    names = ["embedding", *(f"other{number}" for number in range(outputs - 1))]
    gives = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names]
    graph = helper.make_graph(
        nodes, "tiny", takes, gives, [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    path.write_bytes(model.SerializeToString())
    return path
