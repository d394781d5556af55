"""Whether a checkpoint, or a threshold in it, comes from facelit's drawn faces: neither says anything about photos."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from facelit.checkpoints import CHECKPOINT_KEY
from facelit.inference.run_folder import config_files, parse_config, run_folder_of

_DRAWN = "facelit.data.Synthetic", "facelit.data.synthetic."


class Drawings(NamedTuple):
    """What of a checkpoint comes from drawings, as far as is known.

    Attributes:
        trained: Whether it was trained on them.
        measured: The verification sets of its thresholds that are drawings.
    """

    trained: bool = False
    measured: frozenset[str] = frozenset()


def find_drawings(checkpoint: Mapping[str, Any], path: Path) -> Drawings:
    """Reads it from the checkpoint and, as those of earlier versions do not say, from the configuration in its run's folder.

    Args:
        checkpoint: What `read_checkpoint` gives.
        path: The file.
    """
    own = checkpoint.get(CHECKPOINT_KEY, {})
    # Files beside an imported network are not its run's.
    data = {} if own.get("imported") else _data_of(run_folder_of(path))
    sets = data.get("verification")
    configured = {name for name, source in sets.items() if _is_drawn(source)} if isinstance(sets, Mapping) else set()
    measured = (name for name, entry in own.get("calibration", {}).items() if entry.get("drawn") or name in configured)
    return Drawings(bool(own.get("drawn")) or _is_drawn(data.get("train")), frozenset(measured))


def _data_of(run_folder: Path) -> Mapping[str, Any]:
    try:
        configs = config_files(run_folder)
        data = parse_config(configs[-1].read_text(encoding="utf-8")).get("data") if configs else None
    except (OSError, UnicodeDecodeError):
        return {}
    return data if isinstance(data, Mapping) else {}


def _is_drawn(source: Any) -> bool:
    return isinstance(source, Mapping) and str(source.get("class_path")).startswith(_DRAWN)
