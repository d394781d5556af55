"""Text files that people write (lists of names, pairs, landmarks), and text for lines that hold names whatever is in them."""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Iterable, Sequence

from facelit.errors import FacelitError

_BREAKS = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_text(path: str | os.PathLike[str], kind: str, option: str, errors: str = "strict") -> str:
    """A text file's content, without the byte order mark that Windows programs put first.

    Args:
        path: The file: UTF-8; or UTF-16 where a byte order mark says so.
        kind: What it should be ("pairs file"), for messages.
        option: The option that named it, for messages.
        errors: What to do with bytes that are not text; see `bytes.decode`.

    Returns:
        The text, with line ends of every kind as LF.

    Raises:
        FacelitError: The file is missing, cannot be read, or is not text in one of these.
    """
    try:
        with open(path, "rb") as file:
            data = file.read()
    except FileNotFoundError:
        raise FacelitError(f"{kind} not found: {os.fspath(path)} (option {option}).") from None
    except OSError as error:
        raise FacelitError(
            f"{os.fspath(path)}: cannot read this {kind} ({error.strerror or error}; option {option})."
        ) from None
    try:
        text = data.decode("utf-16" if data.startswith(_UTF_16) else "utf-8-sig", errors)
        if "\0" in text:  # UTF-16 without a mark, UTF-32, or no text
            raise ValueError
    except ValueError:
        raise FacelitError(
            f"{os.fspath(path)}: this is not a text file in UTF-8; a {kind} is (option {option}). An editor saves it as that; so does"
            " `iconv -f CODEPAGE -t UTF-8 OLD > NEW`."
        ) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def unquoted(field: str) -> str:
    """A field of a line without the space around it, and without the quotes that spreadsheets and `ls -Q` put there."""
    field = field.strip()
    return field[1:-1].replace('""', '"') if len(field) > 1 and field[0] == field[-1] == '"' else field


def one_line(text: str) -> str:
    """A message or result on one line: line breaks in it, and signs that would move a terminal's cursor, are escaped as in Python.

    A file's name may hold all of them, and a person's is a folder's.
    """
    return _BREAKS.sub(lambda found: found.group().encode("unicode_escape").decode(), text)


def table_of(rows: Iterable[Sequence[str]]) -> bytes:
    """Rows of fields as a text file: a line each, tabs between; backslashes, tabs and line breaks inside fields are escaped as in Python."""
    lines = "".join("\t".join(map(field, row)) + "\n" for row in rows)
    return lines.encode("utf-8", "surrogateescape")


def field(text: str) -> str:
    """Fit for a field of a line in such a table."""
    return text.translate({ord("\\"): r"\\", ord("\t"): r"\t", ord("\n"): r"\n", ord("\r"): r"\r"})
