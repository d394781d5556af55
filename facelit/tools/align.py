"""`facelit align`: a folder of photos to a folder of aligned 112x112 crops."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from facelit.align import journal
from facelit.align.aligning import MAX_SIDE
from facelit.align.detection import MIN_FACE, Detector
from facelit.align.detectors import DetectorName
from facelit.align.folder import Options, Result, align_folder, detector_opener
from facelit.align.landmark_file import LANDMARKS, Lines, read_landmarks
from facelit.align.photo_tree import PhotoTree, list_photos
from facelit.align.report import (
    SHEET,
    border_warning,
    print_table,
    sort_outcomes,
    write_landmarks,
    write_lists,
    write_sheet,
)
from facelit.errors import FacelitError
from facelit.pictures.contact_sheet import TILES, check_images
from facelit.storage.console import open_console
from facelit.storage.processes import default_jobs

_BATCH_ON_A_GPU = 32
_SHOWN = 3


def align(
    src: str,
    dst: str,
    which: Literal["largest", "central", "all"] = "largest",
    border: Literal["black", "replicate", "reflect"] = "black",
    landmarks: str | None = None,
    detector: DetectorName = "mtcnn",
    detector_model: str | None = None,
    min_face: int = MIN_FACE,
    max_side: int = MAX_SIDE,
    format: Literal["jpg", "png"] = "jpg",
    quality: int = 95,
    recrop: bool = False,
    sheet_images: int = TILES,
    device: Literal["cpu", "cuda"] = "cpu",
    jobs: int | None = None,
) -> int:
    """Finds the faces in photos, and warps each onto the standard 112x112 template by its five landmarks.

    Reads photos in any tree of folders and writes crops under the same names. A run that was stopped, even killed, goes on when
    the same command is given again; photos that are new or have changed since are done, the others kept. Prints a table, and
    writes into DST/.facelit-align lists of photos (aligned, several faces, beyond the edge, no face, unreadable), the landmarks,
    and a contact sheet. Exit status 1 means that some photos gave no crop.

    Args:
        src: The folder of photos; for training src/<identity>/<photo>.
        dst: The folder for the crops; new, empty, or one that this command began.
        which: The face with the largest box, the one nearest to the photo's centre, or all: further ones get _face2, _face3 and so
            on behind their name, by size.
        border: What a crop shows beyond the photo's edge: black, the photo's outermost pixels repeated, or the photo mirrored.
        landmarks: A TSV or CSV file of known landmarks to use instead of a detector: a photo's path relative to src and ten
            numbers, x and y of left eye, right eye, nose, left and right mouth corner; or align-landmarks.tsv of an earlier run.
        detector: What finds the faces; needs `pip install "facelit[align]"`. YuNet and SCRFD need a file.
        detector_model: The ONNX file of YuNet (OpenCV's model zoo) or SCRFD (InsightFace's det_*.onnx).
        min_face: Side of the smallest face to look for, in pixels of the photo after max_side; twice the size is up to four
            times faster.
        max_side: Faces are looked for in the photo shrunk to this longer side, in pixels; 0 searches it as it is. Crops are made
            from the original in any case.
        format: Of the crops.
        quality: Of jpg crops, 1 to 100.
        recrop: Where dst was made with another which, border, format or quality, make all its crops anew from the landmarks found
            before.
        sheet_images: The most photos and crops from each list in the contact sheet, 1 to 200.
        device: Where the detector runs; cuda needs onnxruntime-gpu.
        jobs: Number of processes; by default one per core (1 on a GPU).

    Returns:
        0, or 1 if a photo gave no crop.

    Raises:
        FacelitError: A path or an option is wrong, or dst cannot be written.
    """
    _check_options(Path(src), Path(dst), min_face, max_side, quality, jobs)
    check_images(sheet_images)
    known = None if landmarks is None else read_landmarks(landmarks)
    opener = None if known is not None else detector_opener(detector, min_face, device, detector_model)
    if opener is not None:
        opener()  # what is wrong with it is said before anything is written
    tree = list_photos(Path(src), several_crops=which == "all")
    if known is not None:
        _check_landmarks(landmarks, known, tree)
    used = {
        "detector": detector,
        "detector_model": _digest(detector_model),
        "min_face": min_face,
        "max_side": max_side,
    }
    search = {
        "src": str(Path(src).resolve()),
        "landmarks": _digest(landmarks),
        **(used if known is None else {}),
    }
    batch = _BATCH_ON_A_GPU if device == "cuda" else 1
    options = Options(which, max_side, format, quality, border, batch)
    journal.begin(Path(dst), search, options.crops, recrop)
    jobs = jobs or (1 if device == "cuda" else default_jobs())
    return _run(tree, Path(dst), search, options, opener, known, jobs, sheet_images)


align.examples = [  # type: ignore[attr-defined]  # read by facelit.cli.parser
    "photos crops",
    "datasets/vggface2/raw datasets/vggface2/train --min_face 60 --jobs 16",
    "datasets/lfw/raw datasets/lfw/aligned --which central --format png",
    "datasets/lfw/raw datasets/lfw/aligned --landmarks landmarks.tsv",
    "photos crops --border replicate --recrop",
    "photos crops --detector yunet --detector_model face_detection_yunet_2023mar.onnx",
]


def _digest(path: str | None) -> str | None:
    """Of a file's content."""
    return None if path is None else hashlib.blake2b(Path(path).read_bytes(), digest_size=8).hexdigest()


def _check_options(src: Path, dst: Path, min_face: int, max_side: int, quality: int, jobs: int | None) -> None:
    for option, value, least, most in (
        ("min_face", min_face, 12, None),
        ("quality", quality, 1, 100),
        ("jobs", jobs if jobs is not None else 1, 1, None),
    ):
        if value < least or (most is not None and value > most):
            allowed = f"{least} to {most}" if most else f"at least {least}"
            raise FacelitError(f"option {option}: {allowed}, not {value}.")
    if max_side != 0 and max_side < min_face:
        raise FacelitError(f"option max_side: 0, or at least min_face ({min_face}), not {max_side}.")
    inner, outer = dst.resolve(), src.resolve()
    if inner == outer or outer in inner.parents or inner in outer.parents:
        raise FacelitError(f"{dst}: SRC and DST must not contain one another. Choose another folder for the crops.")


def _check_landmarks(path: str | None, known: dict[str, Lines], tree: PhotoTree) -> None:
    strange = [name for name in known if name not in tree.stems]
    if len(strange) == len(known):
        raise FacelitError(
            f"{path} (option landmarks): none of its photos ({strange[0]}, ...) is in {tree.root}. Paths must be relative to SRC."
        )
    if strange:
        print(f"{path}: {len(strange):,} of its {len(known):,} photos are not in {tree.root} ({strange[0]}, ...).")


def _run(
    tree: PhotoTree,
    target: Path,
    search: dict[str, Any],
    options: Options,
    opener: Callable[[], Detector] | None,
    landmarks: dict[str, Lines] | None,
    jobs: int,
    sheet_images: int,
) -> int:
    """Aligns and reports; Ctrl-C ends it with a line."""
    try:
        with journal.locked(target):
            journal.remember(target, search, options.crops)
            result = align_folder(tree, target, options, opener, landmarks, jobs)
            _report(tree, target, result, options, sheet_images)
    except KeyboardInterrupt:
        print("\nStopped. What is done is kept: the same command goes on from there.")
        return 130
    lists = sort_outcomes(result.outcomes)
    return int(bool(lists["no-face"] or lists["unreadable"]))


def _report(tree: PhotoTree, target: Path, result: Result, options: Options, sheet_images: int) -> None:
    console = open_console()
    kept = len(tree.stems) - result.num_new
    crops = sum(len(outcome.crops) for outcome in result.outcomes)
    earlier = f"; {kept:,} done in earlier runs" if kept else ""
    title = f"{tree.root}: {len(result.outcomes):,} photos, {crops:,} crops in {target}{earlier}."
    console.print(title, markup=False, highlight=False, soft_wrap=True)
    print_table(console, result.outcomes)
    if options.border == "black" and (warning := border_warning(result.outcomes)):
        print(warning)
    if result.gone:
        left = sum(len(outcome.crops) for outcome in result.gone)
        print(
            f"{left:,} crop(s) belong to photos that are gone from {tree.root} ({result.gone[0].photo}, ...); they were kept."
        )
    if tree.others:
        some = ", ".join(tree.others[:_SHOWN]) + (", ..." if len(tree.others) > _SHOWN else "")
        line = f"{len(tree.others):,} file(s) there are no photos: {some}"
        console.print(line.encode("utf-8", "replace").decode(), markup=False, highlight=False, soft_wrap=True)
    write_lists(target, result.outcomes)
    if unnamed := write_landmarks(target, result.outcomes):
        print(f"{unnamed:,} photo(s) with a tab or line break in their names are left out of {LANDMARKS}.")
    folder = target / journal.FOLDER
    title = f"facelit align {tree.root}: {len(result.outcomes):,} photos"
    write_sheet(tree.root, target, result.outcomes, title, sheet_images)
    print(f"Lists: {folder / 'align-*.txt'}\nLandmarks: {folder / LANDMARKS}\nPictures: {folder / SHEET}")
