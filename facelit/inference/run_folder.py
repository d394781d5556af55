"""The folder of a checkpoint's run, and the configurations in it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml


def run_folder_of(checkpoint: Path) -> Path:
    """The folder in which a checkpoint's run wrote: the one above `checkpoints/`."""
    return checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent


def config_files(run_folder: Path) -> list[Path]:
    """The configurations of a run and of its resumed parts: `config.yaml`, then `config-resumed-1.yaml`, ..."""

    def place(path: Path) -> int:
        number = re.search(r"config-resumed-(\d+)$", path.stem)
        return int(number.group(1)) if number else 0

    names = [path for path in run_folder.glob("config*.yaml") if re.fullmatch(r"config(-resumed-\d+)?", path.stem)]
    return sorted(names, key=place)


def parse_config(text: str | None) -> dict[str, Any]:
    """Parses a configuration; invalid YAML yields no facts, though the card still shows its text."""
    try:
        config = yaml.safe_load(text or "")
    except yaml.YAMLError:
        return {}
    return config if isinstance(config, dict) else {}
