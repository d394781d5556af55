"""Every test runs in a folder of its own, where `check` leaves its report."""

from __future__ import annotations

from pathlib import Path

import pytest

from planted_crops import plant


@pytest.fixture(autouse=True)
def _in_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def planted(tmp_path: Path) -> tuple[Path, Path]:
    root, verification = tmp_path / "faces", tmp_path / "verification"
    plant(root, verification)
    return root, verification
