"""A start that is stopped while it writes its configuration leaves no half of one."""

import errno
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from facelit.cli.saved_config import SaveRunConfig


class Parser:
    """Writes as jsonargparse's does, and perhaps not to the end."""

    def __init__(self, full: bool) -> None:
        self.full = full

    def save(self, config: str, path: str, **options: Any) -> None:
        Path(path).write_text(config[:2] if self.full else config)
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")


def start(folder: Path, full: bool = False) -> None:
    strategy = SimpleNamespace(broadcast=lambda value: value)
    trainer: Any = SimpleNamespace(log_dir=str(folder), is_global_zero=True, strategy=strategy)
    callback = SaveRunConfig(Parser(full), "whole")  # type: ignore[arg-type]  # as much of one as is used
    callback.setup(trainer, None, "fit")
    callback.setup(trainer, None, "fit")


def test_whole_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / ".config.yaml.77.tmp").write_text("wh")
    with pytest.raises(OSError, match="No space left"):
        start(tmp_path, full=True)
    assert not [*tmp_path.iterdir()]
    start(tmp_path)
    start(tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "config.yaml": "whole",
        "config-resumed-1.yaml": "whole",
    }
