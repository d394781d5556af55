"""Reading the text files that people write: lists of names, pairs, landmarks."""

from __future__ import annotations

import codecs
import os

from facelit.errors import FacelitError

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
