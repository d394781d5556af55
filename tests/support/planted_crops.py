"""Sets of crops with and without defects, for the tests of `facelit check`; and its report."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def face(seed: int, size: tuple[int, int] = (112, 112)) -> Image.Image:
    """Coloured blobs that no other seed has; `size` is (width, height)."""
    small = np.random.default_rng(seed).integers(0, 256, (7, 7, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def save(image: Image.Image, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path


def clean_tree(root: Path, people: int = 3, images: int = 3) -> Path:
    """JPEG, PNG and WebP files of distinct pixels."""
    for number in range(people * images):
        person, image = divmod(number, images)
        suffix = ("jpg", "png", "webp")[number % 3]
        save(face(number), root / f"person_{person}" / f"{image}.{suffix}")
    return root


def plant(root: Path, verification: Path) -> None:
    """One of every defect, beside clean images."""
    clean_tree(root)
    for name in ("Ada_Lovelace", "Alan_Turing"):
        for number in (1, 2):
            image = face(1000 + number + 10 * len(name))
            save(image, verification / name / f"{name}_{number:04d}.jpg")
    (root / "person_0" / "text.jpg").write_text("this is not an image\n")
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(5).integers(0, 256, (112, 112, 3), dtype=np.uint8)).save(whole, "jpeg")
    (root / "person_0" / "cut.jpg").write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    (root / "person_1" / "empty.png").write_bytes(b"")
    save(face(100, (96, 128)), root / "person_1" / "wide.jpg")
    save(face(101).convert("L"), root / "person_1" / "grey.jpg")
    save(face(102).convert("L").convert("RGB"), root / "person_2" / "grey.png")
    shutil.copy(root / "person_2" / "0.jpg", root / "person_2" / "copy.jpg")
    shutil.copy(root / "person_0" / "1.png", root / "person_1" / "stray.png")
    save(Image.open(root / "person_0" / "0.jpg"), root / "person_2" / "reencoded.png")
    save(face(103), root / "lonely" / "0.jpg")
    for number in (104, 105):
        save(face(number), root / "ada lovelace" / f"{number}.jpg")
    save(face(106), root / "someone_else" / "0.jpg")
    shutil.copy(verification / "Alan_Turing" / "Alan_Turing_0002.jpg", root / "someone_else" / "1.jpg")


def items(report: str | Path) -> dict[str, list[dict[str, Any]]]:
    findings = json.loads(Path(report).read_text())["findings"]
    return {finding["key"]: finding["items"] for finding in findings}
