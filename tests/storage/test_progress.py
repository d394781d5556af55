"""What a log file gets instead of a bar."""

from __future__ import annotations

import io

import pytest

from facelit.storage import progress
from facelit.storage.progress import progress_bar


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(progress, "monotonic", lambda: now[0])
    return now


def test_a_line_every_half_minute_where_there_is_no_terminal(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with progress_bar("Aligning", 3_840, quiet_below=20_000) as show:
        for done in range(1, 2_561):
            clock[0] += 1 / 32  # 80 seconds in all
            show(done)
    assert capsys.readouterr().err.splitlines() == [
        "Aligning: 960 of 3,840 (25 %), 32 per second, about 2 min left",
        "Aligning: 1,920 of 3,840 (50 %), 32 per second, about 60 s left",
    ]


def test_short_work_prints_nothing(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("Aligning", 100) as show:
        for done in range(101):
            clock[0] += 0.2
            show(done)
    assert capsys.readouterr() == ("", "")


def test_work_that_is_slow_or_does_not_begin(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("Packing", 1_000) as show:
        for done in (0, 1, 2, 1_000, 1_064):  # of a batch that is not full the count runs over
            clock[0] += 100
            show(done)
    assert capsys.readouterr().err.splitlines() == [
        "Packing: 0 of 1,000",
        "Packing: 1 of 1,000 (0 %), 0.3 per minute, about 55 h 30 min left",
        "Packing: 2 of 1,000 (0 %), 0.4 per minute, about 41 h 35 min left",
        "Packing: 1,000 of 1,000 (100 %), 2.5 per second, about 0 s left",
        "Packing: 1,064 of 1,000",
    ]


def test_what_an_earlier_run_has_done_says_nothing_about_the_rate(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with progress_bar("Embedding", 1_000, done=900) as show:
        clock[0] += 100
        show(910)
    assert capsys.readouterr().err == "Embedding: 910 of 1,000 (91 %), 6.0 per minute, about 15 min left\n"


@pytest.mark.parametrize(
    ("is_terminal", "variables", "draws"),
    [
        (True, {"TERM": "xterm"}, True),
        (True, {"TERM": "dumb"}, False),
        (True, {"TERM": "xterm", "NO_COLOR": "1"}, True),
        (False, {"TERM": "xterm", "FORCE_COLOR": "1"}, False),
        (False, {"TTY_COMPATIBLE": "1", "CI": "true"}, False),
    ],
)
def test_a_bar_only_where_it_can_move(
    monkeypatch: pytest.MonkeyPatch,
    clock: list[float],
    is_terminal: bool,
    variables: dict[str, str],
    draws: bool,
) -> None:
    """Rich would draw into a pipe under FORCE_COLOR, as CI sets it, and nothing at all on a dumb terminal."""
    for name in ("TERM", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "CI"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: is_terminal)
    monkeypatch.setattr("sys.stderr", stream)
    with progress_bar("Packing", 100) as show:
        clock[0] += 50
        show(50)
    printed = stream.getvalue()
    assert ("\x1b[" in printed) == draws
    assert (printed == "Packing: 50 of 100 (50 %), 1.0 per second, about 50 s left\n") == (not draws)
