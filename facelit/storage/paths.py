"""Paths as people write them: with `~` and `$VAR`."""

from __future__ import annotations

import os
import re

from facelit.errors import FacelitError

_LEFT = re.compile(r"(?:^|[/\\])\$(?:(\w+)|\{(\w+)\})")
"""A variable at the start of a path or of a part of it."""


def expand_path(text: str) -> str:
    """A path with `~`, `~user`, `$VAR` and `${VAR}` replaced, as a shell would; one that exists as it stands stays as it is.

    Raises:
        FacelitError: A variable is not set.
    """
    if not ("$" in text or text.startswith("~")) or os.path.lexists(text):
        return text
    expanded = os.path.expandvars(os.path.expanduser(text))
    left = _LEFT.search(expanded)
    if left:
        raise FacelitError(
            f"{text}: there is no environment variable {left[1] or left[2]}. Set it, or write the path out."
        )
    return expanded
