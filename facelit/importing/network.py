"""Opens other people's networks, in any supported file format."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from facelit.backbones import OnnxModel
from facelit.backbones.onnx_model import read_signature
from facelit.errors import FacelitError
from facelit.export.metadata import KEY, Metadata, from_json
from facelit.importing.kinds import Feed, Kind
from facelit.importing.kinds.kind import RANGES
from facelit.importing.recognising import recognise
from facelit.importing.weights import read_weights
from facelit.inference.checkpoint import build_backbone


class ForeignNetwork(NamedTuple):
    """A network with its weights, and the known facts about it.

    Attributes:
        title: Its name in messages.
        kind: The kind of its weights; None for an ONNX and for facelit's own exports.
        module: Maps preprocessed images to embeddings (N, D); float32, eval mode.
        class_path: The import path of its class.
        init_args: The arguments it is built with.
        feed: Its preprocessing.
        assumed: Whether `feed` is a guess.
        calibration: Thresholds in the file; see `facelit.verification.calibration`.
        notes: Notes for the user.
        drawn: Whether it was trained on facelit's drawn faces.
    """

    title: str
    kind: Kind | None
    module: nn.Module
    class_path: str
    init_args: dict[str, Any]
    feed: Feed
    assumed: bool
    calibration: dict[str, Any]
    notes: list[str]
    drawn: bool = False

    @property
    def embedding_dim(self) -> int:
        """The length of an embedding, D."""
        return int(self.init_args["embedding_dim"])

    @property
    def trainable(self) -> bool:
        """Whether it has parameters to train."""
        return not isinstance(self.module, OnnxModel)


def open_network(
    path: Path | str, key: str | None = None, output: str | None = None, architecture: str | None = None
) -> ForeignNetwork:
    """Recognises a file of weights, or opens an ONNX.

    Args:
        path: The file.
        key: Which of several sets of weights in the file.
        output: Which of an ONNX's several outputs.
        architecture: The network's name in torchvision or timm.

    Raises:
        FacelitError: The file does not exist, is damaged, or of no known kind; or an option does not apply to it.
    """
    path = Path(path)
    if path.suffix.lower() == ".onnx":
        if key is not None:
            raise FacelitError(f"{path}: an ONNX file has no sets of weights: omit --key.")
        return _open_onnx(path, output)
    if output is not None:
        raise FacelitError(f"{path}: --output is for .onnx files: omit it.")
    if path.suffix.lower() == ".pt2":
        raise FacelitError(
            f"{path} is a torch.export program; facelit imports weights and .onnx. Import the weights it was made from."
        )
    weights = read_weights(path, key)
    if KEY in weights.metadata:
        return _open_export(path, weights.state, from_json(weights.metadata[KEY], path))
    found = recognise(weights, path, architecture)
    module = found.network.build().eval()
    module.load_state_dict(found.state)
    notes = []
    if weights.others:
        notes.append(f"Weights are taken from {weights.key}; there are more (--key): {', '.join(weights.others)}.")
    if found.left_out:
        shown = ", ".join(found.left_out[:3]) + (", ..." if len(found.left_out) > 3 else "")
        notes.append(f"Left out, not the network's: {shown} ({len(found.left_out)} tensors).")
    class_path = f"facelit.backbones.{found.network.backbone.__name__}"
    return ForeignNetwork(
        found.network.title,
        found.kind,
        module,
        class_path,
        found.network.init_args,
        found.kind.feed,
        found.kind.assumed,
        {},
        [*notes, *found.kind.notes],
    )


def _open_export(path: Path, state: dict[str, Tensor], metadata: Metadata) -> ForeignNetwork:
    """Opens a .safetensors that `facelit export` wrote."""
    if metadata.init_args is None:
        raise FacelitError(
            f"{path}: an export that does not say how its backbone is built; import its checkpoint's weights."
        )
    module = build_backbone({"class_path": metadata.class_path, "init_args": metadata.init_args}, str(path))
    module.load_state_dict(state)
    arguments = {"embedding_dim": metadata.embedding_dim, **metadata.init_args}
    title = f"{metadata.class_path.rpartition('.')[2]}, facelit's export of {metadata.checkpoint}"
    return ForeignNetwork(
        title,
        None,
        module.eval(),
        metadata.class_path,
        arguments,
        Feed(),
        False,
        metadata.calibration,
        [],
        metadata.drawn,
    )


def _open_onnx(path: Path, output: str | None) -> ForeignNetwork:
    module = OnnxModel.from_file(path, output).eval()
    content = module.content.numpy().tobytes()
    signature = read_signature(content, path, output)
    arguments = {"embedding_dim": module.embedding_dim, "num_bytes": module.num_bytes, "output": output}
    notes = ["An ONNX is frozen: it answers and is measured, but cannot be trained."]
    if signature.one_by_one:
        notes.append("Its batch is fixed at 1: images go through one by one, which is slow.")
    feed, assumed, title, calibration, drawn = Feed(), True, "ONNX", {}, False
    if KEY in signature.metadata:
        metadata = from_json(signature.metadata[KEY], path)
        feed, assumed, calibration, drawn = Feed(), False, metadata.calibration, metadata.drawn
        title = f"ONNX, facelit's export of {metadata.checkpoint}"
        if metadata.range == (0.0, 255.0):
            feed = _with_range(feed, "0..255")
    elif _normalises(content):
        feed, assumed = _with_range(feed, "0..255"), False
        title = "ONNX that normalises pixels itself"
    size = (int(signature.size[0]), int(signature.size[1]))
    return ForeignNetwork(
        title,
        None,
        module,
        "facelit.backbones.OnnxModel",
        arguments,
        feed._replace(size=size),
        assumed,
        calibration,
        notes,
        drawn,
    )


def _with_range(feed: Feed, name: str) -> Feed:
    return feed._replace(mean=RANGES[name].mean, std=RANGES[name].std)


def _normalises(content: bytes) -> bool:
    """Whether an ONNX begins by subtracting and scaling, as OpenCV's SFace and InsightFace's MXNet models do."""
    try:
        import onnx
    except ModuleNotFoundError:
        raise FacelitError('the package onnx is not installed: pip install "facelit[export]"') from None
    graph = onnx.load_from_string(content).graph
    weights = {one.name for one in graph.initializer}
    value = next(one.name for one in graph.input if one.name not in weights)
    seen = set(_operators_from(graph, value))
    return bool(seen & {"Sub", "Add"}) and bool(seen & {"Mul", "Div"})


def _operators_from(graph: Any, value: str) -> Iterator[str]:
    """Yields the arithmetic operators that the input passes, in order, before the first layer."""
    while True:
        users = [node for node in graph.node if value in node.input]
        if len(users) != 1 or users[0].op_type not in ("Sub", "Add", "Mul", "Div", "Cast", "Transpose", "Identity"):
            return
        yield users[0].op_type
        value = users[0].output[0]
