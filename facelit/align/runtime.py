"""What detectors are run by: OpenCV, and onnxruntime on one thread of a CPU or on a GPU."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from facelit.align.detection import Device
from facelit.errors import FacelitError

INSTALL = 'pip install "facelit[align]"'


def load_package(name: str) -> Any:
    """A package of the extra `align`.

    Raises:
        FacelitError: It cannot be imported.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise FacelitError(f"the face detector cannot be loaded ({error}): {INSTALL}") from None


def open_session(path: Path | str, device: Device) -> Any:
    """An onnxruntime session for a network.

    Raises:
        FacelitError: onnxruntime is not installed or knows no GPU, or the file holds no network that it can run.
    """
    onnxruntime = load_package("onnxruntime")
    provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}[device]
    if provider not in onnxruntime.get_available_providers():
        raise FacelitError(
            "option device: this onnxruntime has no CUDA. Install onnxruntime-gpu in its place, or leave the option out."
        )
    options = onnxruntime.SessionOptions()
    # Several threads wait for each other longer than they compute: processes share the cores better.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=[provider])
    except Exception as error:  # onnxruntime has a class of its own for each status
        reason = str(error).strip().partition("\n")[0]
        raise FacelitError(f"{path}: onnxruntime cannot run this file ({reason}).") from None
