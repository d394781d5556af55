"""Files are written whole or not at all; what is not a file is written to."""

from __future__ import annotations

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from facelit.storage.files import check_writable, replace_file, replacing


def test_a_pipe_is_written_to_and_stays(tmp_path: Path) -> None:
    """As root, in a container, `--report /dev/null` would have put a file in its place, for all programs."""
    pipe, link = tmp_path / "pipe", tmp_path / "link"  # /dev/stdout is a link to one
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    with ThreadPoolExecutor() as threads:
        for path in (pipe, link):
            check_writable(path, "report")
            read = threads.submit(pipe.read_bytes)
            with replace_file(path) as file:
                file.write(b"all of it")
            assert read.result(timeout=30) == b"all of it"
            with pytest.raises(KeyError), replacing(path):
                raise KeyError  # nothing is written: nobody reads, and it does not hang
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert link.is_symlink()
    assert sorted(tmp_path.iterdir()) == [link, pipe]
