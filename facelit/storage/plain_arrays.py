"""NumPy's arrays, scalars and dtypes, and bytearrays, as `facelit.storage.plain_pickle` makes them anew.

What a pickle wants called (`numpy.ndarray`, `_reconstruct`, `scalar`, ...) is looked up in a fixed list of names; none of these functions
is ever called, only what they would have been given is kept.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

_BYTEARRAYS = ("__builtin__.bytearray", "builtins.bytearray")
_NDARRAY, _DTYPE = "numpy.ndarray", "numpy.dtype"
_ROOMS = ("numpy.core", "numpy._core")  # before NumPy 2, and since
_RECONSTRUCT = tuple(f"{room}.multiarray._reconstruct" for room in _ROOMS)
_SCALAR = tuple(f"{room}.multiarray.scalar" for room in _ROOMS)
_FROM_BUFFER = tuple(f"{room}.numeric._frombuffer" for room in _ROOMS)

NAMES = frozenset({*_BYTEARRAYS, _NDARRAY, _DTYPE, *_RECONSTRUCT, *_SCALAR, *_FROM_BUFFER})
"""What a pickle may name, besides what Python's own bytes are made with."""

_KINDS = frozenset({"b1", "u1", "i1", "i2", "i4", "i8", "u2", "u4", "u8", "f2", "f4", "f8", "O8", "O4"})


class PlainDtype:
    """A dtype of numbers or bools; or of objects, whose array is a list."""

    def __init__(self, kind: str) -> None:
        self.kind = kind


class PlainArray:
    """An array, whose content follows later in a pickle.

    Attributes:
        values: A NumPy array, or a flat list of objects; None until it is known.
    """

    def __init__(self) -> None:
        self.values: Any = None


def make(name: str, arguments: object) -> object:
    """What calling `name` would give; raises ValueError where that is nothing plain."""
    if not isinstance(arguments, tuple):
        raise ValueError
    if name in _BYTEARRAYS and (
        arguments == () or (len(arguments) == 1 and isinstance(arguments[0], (bytes, bytearray)))
    ):
        return bytearray(*arguments)
    if name == _DTYPE and arguments:
        return PlainDtype(_kind(arguments[0]))
    if name in _RECONSTRUCT and arguments and arguments[0] == _NDARRAY:
        return PlainArray()
    if name in _SCALAR and len(arguments) == 2 and isinstance(arguments[0], PlainDtype):
        return _values(arguments[0], (1,), arguments[1])[0].item()
    if name in _FROM_BUFFER and len(arguments) == 4 and isinstance(arguments[1], PlainDtype):
        array = PlainArray()
        array.values = _values(arguments[1], arguments[2], arguments[0])
        return array
    raise ValueError


def fill(target: object, state: object) -> None:
    """Gives a dtype or an array its state; raises ValueError where that is nothing plain."""
    if not isinstance(state, tuple):
        raise ValueError
    if isinstance(target, PlainDtype) and len(state) >= 2 and _text(state[1]) in ("<", "|", "="):
        return
    if isinstance(target, PlainArray) and len(state) == 5 and isinstance(state[2], PlainDtype):
        target.values = _values(state[2], state[1], state[4])
        return
    raise ValueError


def _kind(name: object) -> str:
    kind = _text(name).lstrip("<|=")
    if kind not in _KINDS:
        raise ValueError
    return kind


def _text(value: object) -> str:
    """Python 2's strings are bytes."""
    if isinstance(value, bytes):
        return value.decode("ascii")
    if type(value) is not str:
        raise ValueError
    return value


def _values(dtype: PlainDtype, shape: object, data: object) -> Any:
    """An array's values, or a flat list of objects; they must be as many as the shape says."""
    if not isinstance(shape, tuple) or not all(type(length) is int and length >= 0 for length in shape):
        raise ValueError
    count = math.prod(shape)
    if dtype.kind.startswith("O"):
        if not isinstance(data, list) or len(data) != count:
            raise ValueError
        return data
    if not isinstance(data, (bytes, bytearray)) or len(data) != count * np.dtype(dtype.kind).itemsize:
        raise ValueError
    return np.frombuffer(data, dtype.kind).reshape(shape)
