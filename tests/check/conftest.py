"""Every test runs in a folder of its own, where `check` leaves its report."""

from __future__ import annotations

from pathlib import Path

import pytest

from facelit.tools import check as tool
from numbered_people import People
from planted_crops import plant


@pytest.fixture(autouse=True)
def _in_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def planted(tmp_path: Path) -> tuple[Path, Path]:
    root, verification = tmp_path / "faces", tmp_path / "verification"
    plant(root, verification)
    return root, verification


@pytest.fixture
def people(monkeypatch: pytest.MonkeyPatch) -> People:
    made = People()
    monkeypatch.setattr(tool, "_open_network", lambda checkpoint, device: made.embed)
    return made
