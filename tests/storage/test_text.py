"""Names are somebody else's text: whatever is in them, a line stays a line and a table a table."""

from __future__ import annotations

import csv
import io
import re
import sys

from facelit.storage.text import one_line, table_of

BREAKS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
"""All at which Python breaks a text into lines."""


def test_a_line_stays_one_and_moves_no_cursor() -> None:
    line = one_line(f"a{BREAKS}\x1b[2Jb\x9b2J\x7f")
    assert line.splitlines() == [line]
    assert line.isprintable()
    assert line.encode().decode("unicode_escape") == f"a{BREAKS}\x1b[2Jb\x9b2J\x7f"
    plain = "José\t李 \\n 🙂"
    assert one_line(plain) == plain
    breaks = {sign for sign in map(chr, range(sys.maxunicode + 1)) if len(f"a{sign}b".splitlines()) > 1}
    assert breaks == set(BREAKS)


def test_a_table_is_read_back_by_others() -> None:
    rows = [["photo", "reason"], ["a\tb\\n\n.png", "no"], [f"x{BREAKS}", ""], ["\udcff", "é"]]
    text = table_of(rows).decode("utf-8", "surrogateescape")
    read = csv.reader(io.StringIO(text, newline=""), delimiter="\t", quoting=csv.QUOTE_NONE, lineterminator="\n")
    signs = {r"\\": "\\", r"\t": "\t", r"\n": "\n", r"\r": "\r"}
    assert [[re.sub(r"\\.", lambda found: signs[found.group()], part) for part in row] for row in read] == rows
