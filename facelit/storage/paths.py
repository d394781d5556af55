"""Paths as people write them: with `~` and `$VAR`."""

from __future__ import annotations

import os
import re

from facelit.errors import FacelitError

_WITH_DEFAULT = re.compile(r"\$\{(\w+)(:?)-([^{}]*)\}")
_LEFT = re.compile(r"(?:^|[/\\])\$(?:(\w+)|\{(\w+)|\()")
"""What stays of a variable at the start of a path or of a part of it; `$(` would start a command."""
_FIRST = re.compile(r"\$\{?(\w+)")
_USER = re.compile(r"~(\w[\w.-]*)[/\\]")


def expand_path(text: str) -> str:
    """A path with `~`, `~user`, `$VAR`, `${VAR}`, `${VAR:-else}` and `${VAR-else}` replaced; one that exists as it stands stays as it is.

    As a shell would, except that `~` counts in a variable's value, too, and that what cannot be replaced is an error: a folder of that
    name, or one in `/`, is never meant.

    Raises:
        FacelitError: A variable is not set, or empty where the path begins; there is no such user; or it has a command in it.
    """
    if not ("$" in text or text.startswith("~")) or os.path.lexists(text):
        return text
    expanded = os.path.expanduser(os.path.expandvars(_WITH_DEFAULT.sub(_with_default, text)))
    if left := _LEFT.search(expanded):
        name = left[1] or left[2]
        what = f"there is no environment variable {name}. Set it, or" if name else "commands are not run."
        raise FacelitError(f"{text}: {what} {'w' if name else 'W'}rite the path out.")
    first = _FIRST.match(text)
    if first and os.environ.get(first[1]) == "" and not _WITH_DEFAULT.match(text):
        raise FacelitError(f"{text}: the environment variable {first[1]} is empty. Set it, or write the path out.")
    if user := _USER.match(expanded):
        raise FacelitError(f"{text}: there is no user {user[1]} here. Write the path out.")
    return expanded


def _with_default(found: re.Match[str]) -> str:
    value = os.environ.get(found[1])
    return found[3] if value is None or (found[2] and not value) else value
