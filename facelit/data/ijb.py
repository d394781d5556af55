"""IJB-B and IJB-C in the layout of InsightFace's meta files: images, landmarks, templates, pairs, galleries and probes."""

from __future__ import annotations

import csv
import hashlib
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn

import numpy as np
import numpy.typing as npt

from facelit.errors import FacelitError
from facelit.storage.text import read_text
from facelit.verification.evaluation import Progress
from facelit.verification.template_evaluation import ListedTemplates
from facelit.verification.templates import ListedPairs, TemplateRows

Protocol = Literal["IJBB", "IJBC"]
Part = Literal["1:1", "1:N"]

_MEDIA, _LANDMARKS, _PAIRS = "face_tid_mid.txt", "name_5pts_score.txt", "template_pair_label.txt"
_GALLERIES, _PROBES = ("1N_gallery_G1.csv", "1N_gallery_G2.csv"), "1N_probe_mixed.csv"
_CROPS = "loose_crop"
_ROWS, _SHOWN = 1_000_000, 3


@dataclass(frozen=True, eq=False)
class TemplateSet:
    """A set of templates, with what is measured on them. Everything is in an order that does not depend on the files'.

    Attributes:
        name: "IJB-B" or "IJB-C".
        paths: The N images.
        landmarks: In each image's pixels, float32 (N, 5, 2).
        scores: Detection scores, float32 (N,).
        template_ids: Of the T templates, rising, int64 (T,).
        rows: Which images make up which template.
        pairs: For 1:1; None where it was not asked for.
        galleries: For 1:N, by name; empty where it was not asked for.
        probes: Likewise; None.
        digest: Of names and landmarks: equal for images that give equal crops.
    """

    name: str
    paths: list[Path]
    landmarks: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    template_ids: npt.NDArray[np.int64]
    rows: TemplateRows
    pairs: ListedPairs | None
    galleries: dict[str, ListedTemplates]
    probes: ListedTemplates | None
    digest: str


def read_ijb(
    root: str | os.PathLike[str],
    protocol: Protocol | None = None,
    only: Part | None = None,
    progress: Progress = lambda text, total: nullcontext(lambda done: None),
) -> TemplateSet:
    """Reads the files; images are not opened.

    Args:
        root: The folder with `meta` and `loose_crop`, or the one with IJBB or IJBC in it.
        protocol: Which set; by default the one that is there.
        only: "1:1" does without gallery and probe files, "1:N" without the pairs.
        progress: Shows how far reading the pairs is.

    Raises:
        FacelitError: Files are missing or malformed, or do not belong together.
    """
    folder, protocol = _find(Path(root), protocol)
    prefix = folder / "meta" / f"{protocol.lower()}_"
    files = _require(folder, protocol, only)
    names, landmarks, scores = _read_landmarks(Path(f"{prefix}{_LANDMARKS}"))
    template_ids, rows, used = _read_media(Path(f"{prefix}{_MEDIA}"), names, f"{prefix.name}{_LANDMARKS}")
    names = [names[number] for number in used]
    landmarks, scores = landmarks[used], scores[used]
    pairs, probes = None, None
    galleries: dict[str, ListedTemplates] = {}
    if only != "1:N":
        pairs = _read_pairs(files[_PAIRS], template_ids, progress)
    if only != "1:1":
        for file in _GALLERIES:
            path = files[file]
            galleries[path.stem.rpartition("_")[2]] = _read_templates(path, template_ids, is_gallery=True)
        probes = _read_templates(files[_PROBES], template_ids, is_gallery=False)
    digest = hashlib.sha256("\n".join(names).encode("utf-8", "surrogateescape"))
    digest.update(np.ascontiguousarray(landmarks, "<f4").tobytes())
    return TemplateSet(
        f"IJB-{protocol[-1]}",
        [folder / _CROPS / name for name in names],
        landmarks,
        scores,
        template_ids,
        rows,
        pairs,
        galleries,
        probes,
        digest.hexdigest()[:32],
    )


def _find(root: Path, protocol: Protocol | None) -> tuple[Path, Protocol]:
    """The folder that holds `meta`, and the set's name."""
    if not root.is_dir():
        raise FacelitError(f"folder not found: {root}. {_layout(root, protocol or 'IJBC')}")
    wanted: list[Protocol] = ["IJBB", "IJBC"] if protocol is None else [protocol]
    found = [
        (folder, name)
        for name in wanted
        for folder in (root, root / name)
        if any((folder / "meta").glob(f"{name.lower()}_*"))
    ]
    if not found:
        raise FacelitError(f"{root}: no meta files of {' or '.join(wanted)} here. {_layout(root, wanted[-1])}")
    if len(found) > 1:
        raise FacelitError(
            f"{root}: holds {' and '.join(name for _, name in found)}. Choose one: --protocol {found[0][1]}."
        )
    return found[0]


def _layout(folder: Path, protocol: str) -> str:
    return (
        f"Expected: {folder}/{_CROPS}/1.jpg, ... and, in {folder}/meta,"
        f" {', '.join(f'{protocol.lower()}_{name}' for name in (_MEDIA, _LANDMARKS, _PAIRS, *_GALLERIES, _PROBES))} (docs/ijb.md)."
    )


def _require(folder: Path, protocol: Protocol, only: Part | None) -> dict[str, Path]:
    """The files, by their names less the prefix; IJB-B's galleries are called S1 and S2."""
    wanted = [_MEDIA, _LANDMARKS]
    wanted += [_PAIRS] * (only != "1:N") + [*_GALLERIES, _PROBES] * (only != "1:1")
    found = {}
    for name in wanted:
        paths = [folder / "meta" / f"{protocol.lower()}_{one}" for one in (name, name.replace("_G", "_S"))]
        found[name] = next((path for path in paths if path.is_file()), paths[0])
    if missing := [name for name, path in found.items() if not path.is_file()]:
        names = ", ".join(found[name].name for name in missing)
        rest = {_PAIRS} if missing == [_PAIRS] else {*_GALLERIES, _PROBES}
        way_out = (
            f" Without: --only {'1:N' if rest == {_PAIRS} else '1:1'}." if only is None and set(missing) <= rest else ""
        )
        raise FacelitError(f"{folder / 'meta'}: {names} missing.{way_out} {_layout(folder, protocol)}")
    if not (folder / _CROPS).is_dir():
        raise FacelitError(f"folder not found: {folder / _CROPS}. {_layout(folder, protocol)}")
    return found


def _lines(path: Path, kind: str) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, with their numbers."""
    for number, line in enumerate(read_text(path, kind, "root", errors="surrogateescape").split("\n"), start=1):
        if line.strip():
            yield number, line.strip()


def _read_landmarks(path: Path) -> tuple[list[str], npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Names, in an order of their own, landmarks and scores."""
    found: dict[str, tuple[float, ...]] = {}
    for line, text in _lines(path, "file of landmarks"):
        fields = text.split()
        try:
            numbers = tuple(map(float, fields[1:]))
        except ValueError:
            numbers = ()
        if len(numbers) != 11:
            _refuse(
                path,
                line,
                text,
                "1.jpg x1 y1 x2 y2 x3 y3 x4 y4 x5 y5 score",
                "an image, five points and a detection score",
            )
        if not np.isfinite(numbers).all():
            what = "score" if np.isfinite(numbers[:10]).all() else "point"
            raise FacelitError(f"{path}, line {line}: the {what} of {fields[0]} is not a finite number. Mend the line.")
        if numbers[10] < 0:
            raise FacelitError(
                f"{path}, line {line}: the score of {fields[0]} is {numbers[10]:g}; a detection score is not below 0."
            )
        if os.path.isabs(fields[0]) or ".." in fields[0].replace("\\", "/").split("/"):
            raise FacelitError(f"{path}, line {line}: {fields[0]} leads out of the folder {_CROPS}.")
        if found.setdefault(fields[0], numbers) != numbers:
            raise FacelitError(
                f"{path}, line {line}: {fields[0]} has other points in an earlier line. Keep one of them."
            )
    if not found:
        raise FacelitError(f"{path}: is empty.")
    names = sorted(found, key=lambda name: (len(name), name))
    table = np.array([found[name] for name in names], np.float32)
    return names, table[:, :10].reshape(-1, 5, 2), table[:, 10]


def _read_media(
    path: Path, names: Sequence[str], landmarks: str
) -> tuple[npt.NDArray[np.int64], TemplateRows, npt.NDArray[np.int64]]:
    """The templates' numbers, which images they are made of, and which of `names` are among these."""
    number_of = {name: number for number, name in enumerate(names)}
    listed: list[tuple[int, int, int]] = []
    unknown: dict[str, int] = {}
    for line, text in _lines(path, "list of templates"):
        fields = text.split()
        template, medium = map(_integer, fields[1:]) if len(fields) == 3 else (None, None)
        if template is None or medium is None:
            _refuse(path, line, text, "1.jpg 1 69544", "an image, its template and its medium")
        image = number_of.get(fields[0])
        if image is None:
            unknown[fields[0]] = line
        else:
            listed.append((template, medium, image))
    if unknown:
        some = ", ".join(list(unknown)[:_SHOWN])
        raise FacelitError(
            f"{path}: no line in {landmarks} for {len(unknown):,} of its images ({some}). Do the files belong together?"
        )
    if not listed:
        raise FacelitError(f"{path}: is empty.")
    listed.sort()
    columns = np.array(listed, np.int64).T
    template_ids, templates = np.unique(columns[0], return_inverse=True)
    used, images = np.unique(columns[2], return_inverse=True)
    return template_ids, TemplateRows(templates, columns[1], images), used


def _read_pairs(path: Path, template_ids: npt.NDArray[np.int64], progress: Progress) -> ListedPairs:
    """Millions of lines: checked block by block, and line by line only where something is wrong."""
    first, second, labels = [], [], []
    size = path.stat().st_size
    try:
        with (
            open(path, encoding="utf-8-sig") as file,
            progress("Reading pairs", size) as show,
            warnings.catch_warnings(),
        ):
            warnings.filterwarnings("ignore", ".*contained no data")  # blank lines, and the end
            while len(rows := np.loadtxt(file, np.int64, comments=None, max_rows=_ROWS, ndmin=2)):
                if rows.shape[1] != 3 or not np.isin(rows[:, 2], (0, 1)).all():
                    _explain_pairs(path)
                first.append(_places(path, rows[:, 0], template_ids))
                second.append(_places(path, rows[:, 1], template_ids))
                labels.append(rows[:, 2] == 1)
                show(os.lseek(file.fileno(), 0, os.SEEK_CUR))
    except (ValueError, OverflowError):  # of Unicode, too
        _explain_pairs(path)
    except OSError as error:
        raise FacelitError(f"{path}: cannot read this file ({error.strerror or error}).") from None
    pairs = ListedPairs(*(np.concatenate(column) for column in (first, second, labels))) if labels else None
    if pairs is None or pairs.is_same.all() or not pairs.is_same.any():
        kind = "no" if pairs is None else "no impostor" if pairs.is_same.all() else "no genuine"
        raise FacelitError(
            f"{path}: {kind} pairs here; 1:1 takes pairs labelled 1 (same person) and 0 (different people)."
        )
    return pairs


def _places(path: Path, numbers: npt.NDArray[np.int64], template_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
    """Where templates stand among all."""
    places = np.minimum(np.searchsorted(template_ids, numbers), len(template_ids) - 1)
    unknown = np.unique(numbers[template_ids[places] != numbers])
    if len(unknown):
        some = ", ".join(map(str, unknown[:_SHOWN]))
        raise FacelitError(
            f"{path}: no image in *_{_MEDIA} for {len(unknown):,} of its templates ({some}). Do the files belong together?"
        )
    return places.astype(np.int32)


def _explain_pairs(path: Path) -> NoReturn:
    """Finds the line that is wrong."""
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        for line, text in enumerate(file, start=1):
            fields = text.split()
            if fields and (len(fields) != 3 or None in map(_integer, fields)):
                _refuse(path, line, text.strip(), "1 11065 1", "two templates and a label")
            if fields and int(fields[2]) not in (0, 1):
                raise FacelitError(
                    f"{path}, line {line}: the label is {fields[2]}; it must be 1 (same person) or 0 (different people)."
                )
    raise FacelitError(f"{path}: this is not a text file in UTF-8.")


def _read_templates(path: Path, template_ids: npt.NDArray[np.int64], is_gallery: bool) -> ListedTemplates:
    """A CSV with a line for each image: TEMPLATE_ID and SUBJECT_ID are columns of these names, or the first two."""
    subject_of: dict[int, int] = {}
    columns = (0, 1)
    rows = csv.reader(read_text(path, "list of templates", "root", errors="surrogateescape").split("\n"), strict=True)
    try:
        for line, row in enumerate(rows, start=1):
            if not any(map(str.strip, row)):
                continue
            fields = [field.strip() for field in row]
            if line == 1 and _integer(fields[0]) is None:
                names = [field.upper() for field in fields]
                if {"TEMPLATE_ID", "SUBJECT_ID"} <= set(names):
                    columns = (names.index("TEMPLATE_ID"), names.index("SUBJECT_ID"))
                continue
            template, subject = (_integer(fields[at]) if at < len(fields) else None for at in columns)
            if template is None or subject is None:
                _refuse(
                    path,
                    line,
                    ",".join(row),
                    "TEMPLATE_ID,SUBJECT_ID,FILENAME",
                    "numbers of a template and of its subject, and more",
                )
            if subject_of.setdefault(template, subject) != subject:
                raise FacelitError(
                    f"{path}, line {line}: template {template} is of subject {subject}, but of {subject_of[template]} before."
                )
    except csv.Error as error:
        raise FacelitError(f"{path}: cannot read this CSV file ({error}).") from None
    if not subject_of:
        raise FacelitError(f"{path}: no templates here.")
    templates, subjects = (np.array(column, np.int64) for column in zip(*sorted(subject_of.items()), strict=True))
    if is_gallery:
        several, counts = np.unique(subjects, return_counts=True)
        if (counts > 1).any():
            subject = int(several[counts > 1][0])
            both = ", ".join(map(str, templates[subjects == subject][:_SHOWN]))
            raise FacelitError(
                f"{path}: subjects with several templates: {int((counts > 1).sum()):,} (subject {subject}: {both}). A gallery has one of each."
            )
    return ListedTemplates(_places(path, templates, template_ids).astype(np.int64), subjects)


def _integer(text: str) -> int | None:
    return int(text) if text.removeprefix("-").isdecimal() and text.isascii() and len(text) <= 18 else None


def _refuse(path: Path, line: int, text: str, form: str, words: str) -> NoReturn:
    raise FacelitError(f"{path}, line {line}: expected `{form}` ({words}), found {text[:80]!r}.")
