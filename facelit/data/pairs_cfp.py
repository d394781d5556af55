"""Celebrities in Frontal-Profile (CFP), as its authors lay it out."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Literal

import numpy as np

from facelit.data.sources import VerificationSource
from facelit.errors import FacelitError
from facelit.storage.images import Crop, is_image, read_crop
from facelit.storage.text import read_text

_OPTION = "protocol of data.verification"


class PairsCFP(VerificationSource):
    """CFP: crops in `root/001/frontal/01.jpg` and `root/001/profile/01.jpg`, pairs in the authors' folder `Protocol`.

    The ten splits are the folds. `Pair_list_F.txt` and `Pair_list_P.txt` number the frontal and the profile images;
    `Split/FF/01/same.txt` has a genuine pair of two such numbers on each line, `diff.txt` the impostor pairs. In FP the first of
    two numbers is a frontal image, the second a profile.

    Args:
        root: Folder of crops with the layout of CFP's `Data/Images`, which `facelit align` keeps.
        protocol: CFP's folder `Protocol`.
        kind: "FF", frontal with frontal; or "FP", frontal with profile.
        allow_missing: Leave out pairs whose images are absent (their count is logged) instead of stopping.
        resize: Resize images of another size to 112x112 instead of refusing them.

    Raises:
        FacelitError: A folder or a file of the protocol is missing or malformed, or images are absent.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        protocol: str | os.PathLike[str],
        kind: Literal["FF", "FP"] = "FP",
        allow_missing: bool = False,
        resize: bool = False,
    ) -> None:
        self.root, self.resize = Path(root), resize
        if kind not in ("FF", "FP"):
            raise FacelitError(f"kind={kind}: CFP's pairs are FF (frontal, frontal) or FP (frontal, profile).")
        if not self.root.is_dir():
            raise FacelitError(f"verification folder not found: {self.root} (option root of data.verification).")
        lists = {pose: _image_list(Path(protocol) / f"Pair_list_{pose}.txt") for pose in sorted(set(kind))}
        splits = sorted(path for path in Path(protocol, "Split", kind).glob("[0-9]*") if path.is_dir())
        if len(splits) < 2:
            raise FacelitError(f"{Path(protocol, 'Split', kind)}: no splits 01, 02, ... here (option {_OPTION}).")
        listed = [
            (lists[kind[0]].get(first), lists[kind[1]].get(second), is_same, fold)
            for fold, split in enumerate(splits, start=1)
            for name, is_same in (("same.txt", True), ("diff.txt", False))
            for first, second in _numbers(split / name)
        ]
        if unknown := sum(first is None or second is None for first, second, *_ in listed):
            raise FacelitError(f"{protocol}: {unknown} of its pairs name images that its lists do not have.")
        if twice := [first for first, second, is_same, _ in listed if is_same and first == second]:
            raise FacelitError(f"{protocol}: pairs {twice[0]} with itself as a genuine pair ({len(twice)} such pairs).")
        paths = {image: self._find(image) for images in lists.values() for image in images.values()}
        wanted = {image for first, second, *_ in listed for image in (first, second)}
        missing = sorted(image for image in wanted if image is not None and paths[image] is None)
        if missing and not allow_missing:
            raise FacelitError(
                f"{protocol}: {len(missing)} of its {len(wanted)} images are absent below {self.root} ({', '.join(missing[:3])}, ...)."
                " Check the folder: it holds 001/frontal/01.jpg, as CFP's Data/Images does (option root); or leave those pairs out with `allow_missing: true`."
            )
        usable = [pair for pair in listed if paths[str(pair[0])] and paths[str(pair[1])]]
        names = sorted({str(image) for pair in usable for image in pair[:2]})
        number = {name: position for position, name in enumerate(names)}
        super().__init__(
            names=[str(paths[name]) for name in names],
            first=np.array([number[str(pair[0])] for pair in usable], np.int64),
            second=np.array([number[str(pair[1])] for pair in usable], np.int64),
            is_same=np.array([pair[2] for pair in usable], np.bool_),
            folds=np.array([pair[3] for pair in usable], np.int64),
            num_missing_pairs=len(listed) - len(usable),
        )
        for fold in range(1, len(splits) + 1):
            kinds = self.is_same[self.folds == fold]
            if not len(kinds) or kinds.all() or not kinds.any():
                raise FacelitError(f"{protocol}: split {fold} of {kind} has no genuine or no impostor pair left.")

    def image(self, number: int) -> Crop:
        """Reads crop `number`, uint8 RGB (112, 112, 3)."""
        return read_crop(self.names[number], self.resize)

    def _find(self, image: str) -> str | None:
        """An image `001/frontal/01`, whatever its suffix; its pose's folder may be `Frontal`, too."""
        folder, _, stem = image.rpartition("/")
        person, _, pose = folder.partition("/")
        path = self.root / folder
        if not path.is_dir():
            path = self.root / person / pose.capitalize()
        files = sorted(os.listdir(path)) if path.is_dir() else []
        found = next((file for file in files if is_image(file) and os.path.splitext(file)[0] == stem), None)
        return None if found is None else str(path / found)


def _image_list(path: Path) -> dict[int, str]:
    """Images by their numbers: `1 ../Data/Images/001/frontal/01.jpg` as 1 and `001/frontal/01`."""
    found: dict[int, str] = {}
    for line, row in enumerate(read_text(path, "CFP's list of images", _OPTION).splitlines(), start=1):
        match = re.fullmatch(r"(\d{1,9})\s+(?:.*[/\\])?(\w+)[/\\](\w+)[/\\](\w+)\.\w+", row.strip(), re.ASCII)
        if match:
            found[int(match[1])] = "/".join(match.groups()[1:])
        elif row.strip():
            raise FacelitError(
                f"{path}, line {line}: expected `1 ../Data/Images/001/frontal/01.jpg`, found {row[:80]!r}."
            )
    return found


def _numbers(path: Path) -> list[tuple[int, int]]:
    found = []
    for line, row in enumerate(read_text(path, "CFP's list of pairs", _OPTION).splitlines(), start=1):
        match = re.fullmatch(r"(\d{1,9})\s*[,\s]\s*(\d{1,9})", row.strip(), re.ASCII)
        if match:
            found.append((int(match[1]), int(match[2])))
        elif row.strip():
            raise FacelitError(f"{path}, line {line}: expected two numbers as in `1,2`, found {row[:80]!r}.")
    return found
