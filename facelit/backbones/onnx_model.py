"""An ONNX graph as a backbone: frozen, run by onnxruntime (extra `facelit[export]`)."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from facelit.errors import FacelitError


class OnnxModel(nn.Module):
    """Embeds with somebody's ONNX file. It cannot be trained.

    The file's bytes are a buffer of the module, so that a checkpoint holds the network itself and not a path. onnxruntime runs
    graphs of known operators and no code of the file's.

    Args:
        embedding_dim: the length of an embedding, D.
        num_bytes: how long the file is; `from_file` fills it in.
        output: the name of the output that is the embedding; the only one where not given.

    Attributes:
        embedding_dim: the length of an embedding.
        content: (num_bytes,) uint8, the file.
    """

    def __init__(self, embedding_dim: int, num_bytes: int, output: str | None = None) -> None:
        super().__init__()
        self.embedding_dim = embedding_dim
        self.num_bytes = num_bytes
        self.output = output
        self.content: Tensor
        self.register_buffer("content", torch.zeros(num_bytes, dtype=torch.uint8))
        # Whoever uses a backbone asks its parameters for their device and dtype.
        self.anchor = nn.Parameter(torch.zeros(1), requires_grad=False)
        self._session: Any = None

    @classmethod
    def from_file(cls, path: Path | str, output: str | None = None) -> OnnxModel:
        """Reads an ONNX file.

        Args:
            path: The file; weights that lie in files beside it (ONNX's external data) are taken in.
            output: The name of the output that is the embedding; the only one where not given.

        Raises:
            FacelitError: The file is absent or damaged, is not a network from one image input to one embedding, or onnxruntime is
                not installed.
        """
        path = Path(path)
        if not path.is_file():
            raise FacelitError(f"file not found: {path}")
        content = _with_its_weights(path)
        signature = read_signature(content, path, output)
        model = cls(signature.embedding_dim, len(content), output)
        model.content.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
        return model

    def forward(self, images: Tensor) -> Tensor:
        """Embeds images as the file takes them.

        Args:
            images: (N, 3, H, W) floating point; rounded where the file takes integers, and laid out as it takes them.

        Returns:
            (N, D), without gradient.

        Raises:
            FacelitError: in training, or if onnxruntime cannot run the file.
        """
        if self.training and torch.is_grad_enabled():
            raise FacelitError(
                "OnnxModel is frozen: an ONNX graph cannot be trained. Import the PyTorch weights that it was made from."
            )
        signature = self._open()
        batch = images.detach().float().cpu()
        if signature.channels_last:
            batch = batch.permute(0, 2, 3, 1)
        if signature.dtype == np.uint8:
            batch = batch.round().clamp(0, 255)
        array = np.ascontiguousarray(batch.numpy(), dtype=signature.dtype)
        step = 1 if signature.one_by_one else max(1, len(array))
        rows = [signature.run(array[start : start + step]) for start in range(0, len(array), step)]
        embeddings = np.concatenate(rows) if rows else np.zeros((0, self.embedding_dim), np.float32)
        return torch.from_numpy(np.asarray(embeddings, np.float32)).to(images.device, self.anchor.dtype)

    def _open(self) -> Signature:
        if self._session is None:
            self._session = read_signature(self.content.cpu().numpy().tobytes(), "this checkpoint's ONNX", self.output)
        return self._session  # type: ignore[no-any-return]  # onnxruntime has no types

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """Other weights are another session."""
        super()._load_from_state_dict(*args, **kwargs)
        self._session = None

    def __getstate__(self) -> dict[str, Any]:
        """For copies: a session cannot be copied, and is opened anew."""
        return {**self.__dict__, "_session": None}


class Signature:
    """An open ONNX file: what goes in and what comes out.

    Attributes:
        size: height and width of the images; 112 where the file leaves them open.
        channels_last: whether images are (N, H, W, 3).
        dtype: of the input, numpy's.
        one_by_one: whether the file's batch is fixed at 1.
        embedding_dim: the length of an embedding.
        metadata: the file's own texts by name.
    """

    def __init__(self, session: Any, path: Path | str, output: str | None) -> None:
        self.session = session
        self._path = path
        inputs, outputs = session.get_inputs(), session.get_outputs()
        if len(inputs) != 1:
            takes = ", ".join(one.name for one in inputs)
            raise FacelitError(
                f"{path}: this ONNX takes {len(inputs)} inputs ({takes}); a face network takes one image."
            )
        names = [one.name for one in outputs]
        if output is None and len(outputs) != 1:
            raise FacelitError(
                f"{path}: this ONNX has {len(outputs)} outputs ({', '.join(names)}): say which is the embedding, --output NAME."
            )
        if output is not None and output not in names:
            raise FacelitError(f"{path}: this ONNX has no output {output}: {', '.join(names)}.")
        self._input, self._output = inputs[0].name, output or names[0]
        self.metadata: dict[str, str] = dict(session.get_modelmeta().custom_metadata_map)
        self._read_input(inputs[0])
        self.embedding_dim = self._try_out()

    def run(self, images: Any) -> Any:
        """Embeds images as the file takes them, (N, ...) to float (N, D)."""
        try:
            return self.session.run([self._output], {self._input: images})[0]
        except Exception as error:  # onnxruntime has a dozen of its own
            raise FacelitError(f"{self._path}: onnxruntime cannot run this file ({_first_line(error)}).") from None

    def _read_input(self, described: Any) -> None:
        shape, kind = described.shape, described.type
        kinds = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}
        if len(shape) != 4 or 3 not in (shape[1], shape[3]) or kind not in kinds:
            raise FacelitError(
                f"{self._path}: its input is {kind} {shape}; a face network takes (batch, 3, height, width) or"
                " (batch, height, width, 3), float or uint8."
            )
        self.dtype = kinds[kind]
        self.channels_last = shape[1] != 3
        sides = shape[1:3] if self.channels_last else shape[2:4]
        self.size = tuple(side if isinstance(side, int) and side > 0 else 112 for side in sides)
        batch = shape[0]
        if isinstance(batch, int) and batch > 1:
            raise FacelitError(
                f"{self._path}: its batch is fixed at {batch} images: export it again with a batch axis of any length."
            )
        self.one_by_one = batch == 1

    def _try_out(self) -> int:
        """Runs the graph once: what it says of its output's shape is often left open."""
        count = 1 if self.one_by_one else 3
        height, width = self.size
        shape = (count, height, width, 3) if self.channels_last else (count, 3, height, width)
        found = np.asarray(self.run(np.zeros(shape, self.dtype)))
        if found.ndim != 2 or found.shape[0] != count or found.shape[1] < 2:
            raise FacelitError(
                f"{self._path}: {count} images give an output of shape {found.shape}; an embedding is (batch, numbers). Is its"
                " batch fixed inside the graph, or is this another kind of network?"
            )
        return int(found.shape[1])


def _with_its_weights(path: Path) -> bytes:
    """An ONNX file's content, with the weights that it leaves to files beside it: those would not go along into a checkpoint."""
    content = path.read_bytes()
    try:
        onnx: Any = import_module("onnx")
        model = onnx.load_model_from_string(content)
    except Exception:  # no such package, or no such file: onnxruntime, which reads it next, says what is the matter
        return content
    helper = onnx.external_data_helper
    places = {
        entry.value
        for weights in model.graph.initializer
        if helper.uses_external_data(weights)
        for entry in weights.external_data
        if entry.key == "location"
    }
    if not places:
        return content
    try:
        helper.load_external_data_for_model(model, str(path.parent))
        whole: bytes = model.SerializeToString()
    except Exception as error:
        raise FacelitError(
            f"{path}: its weights lie in {', '.join(sorted(places)[:3])}, which cannot be read beside it or taken in ({_first_line(error)})."
        ) from None
    return whole


def read_signature(content: bytes, path: Path | str, output: str | None = None) -> Signature:
    """Opens an ONNX file in onnxruntime, on the CPU.

    Args:
        content: The file.
        path: Where it was read from, for messages.
        output: The name of the output that is the embedding; the only one where not given.

    Raises:
        FacelitError: It is damaged, is not a network from one image input to one embedding, or onnxruntime is not installed.
    """
    try:
        onnxruntime: Any = import_module("onnxruntime")
    except ModuleNotFoundError:
        raise FacelitError(
            f'{path}: the package onnxruntime is not installed, which runs ONNX files: pip install "facelit[export]"'
        ) from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # remarks on the graph are for its authors
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a dozen of its own
        raise FacelitError(
            f"{path}: not an ONNX file with its weights, or a damaged one ({_first_line(error)})."
        ) from None
    return Signature(session, path, output)


def _first_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text[:160] or type(error).__name__
