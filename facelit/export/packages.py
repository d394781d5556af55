"""Imports the packages of the extra `facelit[export]`, or says how to install them."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from facelit.errors import FacelitError


def require(*names: str) -> Any:
    """Imports packages and returns the first.

    Raises:
        FacelitError: One is not installed.
    """
    try:
        first, *_ = [import_module(name) for name in names]
        return first
    except ModuleNotFoundError as error:
        missing = (error.name or names[0]).partition(".")[0]
        raise FacelitError(f'the package {missing} is not installed: pip install "facelit[export]"') from None
