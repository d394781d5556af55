"""Aligning a tree of photos: on all cores, restartable, and with an account of every photo."""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image

from facelit.align import journal
from facelit.align.aligning import Which, align_face, choose_faces, find_faces
from facelit.align.detection import Detector, Faces
from facelit.align.journal import Journal, Outcome, replace_bytes
from facelit.align.landmark_file import Landmarks
from facelit.align.photo_tree import PhotoTree
from facelit.align.photos import Photo, read_photo
from facelit.align.template import estimate_similarity, warp
from facelit.errors import FacelitError
from facelit.storage import processes
from facelit.storage.images import BadImageError, Crop
from facelit.storage.processes import count_one, run_in_processes
from facelit.storage.progress import progress_bar

CropFormat = Literal["jpg", "png"]

_CHUNK = 8
"""Photos that a process takes at a time: as many are finished, for each process, before the program stops."""
_BATCH_PIXELS = 32_000_000
"""Photos that are searched at once have no more pixels than this together, or are one."""


class Options(NamedTuple):
    """How photos become crops; part of what a folder of crops remembers of itself.

    Attributes:
        which: Which face, where there are several.
        max_side: Longer side of the picture in which faces are looked for, in pixels; 0: the photo as it is.
        format: Of the crops.
        quality: Of JPEG crops, 1 to 100.
        batch: Photos that are searched at once; it changes no crop.
    """

    which: Which = "largest"
    max_side: int = 1024
    format: CropFormat = "jpg"
    quality: int = 95
    batch: int = 1


class Result(NamedTuple):
    """What became of photos.

    Attributes:
        outcomes: Of every photo of the tree, in its order, whenever it was done.
        num_new: How many were done in this run.
        gone: Of photos that are no longer there; their crops are.
    """

    outcomes: list[Outcome]
    num_new: int
    gone: list[Outcome]


class _Task(NamedTuple):
    """A photo to do.

    Attributes:
        photo: Its path relative to SRC.
        stamp: See `Outcome`.
        stem: Path of its crop relative to DST, without a suffix.
        landmarks: If they are given.
        old_crops: Those that it has from an earlier run.
    """

    photo: str
    stamp: tuple[int, int]
    stem: str
    landmarks: Landmarks | None
    old_crops: tuple[str, ...]


class _Work(NamedTuple):
    """What all processes need to know. Without a detector the landmarks are those of the tasks."""

    source: Path
    target: Path
    options: Options
    open_detector: Callable[[], Detector] | None


def align_folder(
    tree: PhotoTree,
    target: Path,
    options: Options,
    open_detector: Callable[[], Detector] | None,
    landmarks: dict[str, Landmarks] | None = None,
    jobs: int = 1,
) -> Result:
    """Aligns the photos of a tree that have not been aligned yet.

    Args:
        tree: The photos.
        target: A folder for which `journal.begin` was called, and that is `journal.locked`.
        options: How.
        open_detector: Called once in each process; can be pickled. None where there are landmarks.
        landmarks: By the photo's path relative to the tree; photos that have none count as without a face.
        jobs: Number of processes.

    Returns:
        What became of every photo, also in earlier runs.

    Raises:
        FacelitError: A crop cannot be written.
    """
    known = journal.read(target)
    stamps = {photo: _stamp(tree.root / photo) for photo in tree.stems}
    done = {
        photo: known[photo] for photo, stamp in stamps.items() if photo in known and _holds(known[photo], stamp, target)
    }
    todo = [
        _Task(
            photo,
            stamps[photo],
            stem,
            None if landmarks is None else landmarks.get(photo),
            known[photo].crops if photo in known else (),
        )
        for photo, stem in tree.stems.items()
        if photo not in done
    ]
    size = max(_CHUNK, options.batch)
    chunks = [todo[start : start + size] for start in range(0, len(todo), size)]
    work = _Work(tree.root, target, options, open_detector)
    with progress_bar(f"Aligning {tree.root}", len(todo)) as show:
        for outcomes in run_in_processes(_align_chunk, chunks, jobs, show, work):
            done.update((outcome.photo, outcome) for outcome in outcomes)
    _close()
    if len(done) < len(tree.stems):
        raise FacelitError(f"{target}: a process was told to stop. Run the same command again: it goes on from there.")
    result = Result(
        [done[photo] for photo in tree.stems],
        len(todo),
        [outcome for photo, outcome in known.items() if photo not in tree.stems and outcome.crops],
    )
    try:
        journal.compact(target, result.outcomes + result.gone)
    except OSError as error:
        raise _cannot_write(target, error) from None
    return result


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return 0, 0  # a link to nowhere: reading it will say so
    return status.st_size, status.st_mtime_ns


def _holds(outcome: Outcome, stamp: tuple[int, int], target: Path) -> bool:
    """Whether a photo need not be done again. What could not be read may be readable now."""
    return not outcome.reason and outcome.stamp == stamp and all((target / crop).is_file() for crop in outcome.crops)


# In the processes that work


class _Worker:
    """What a process keeps from one chunk to the next."""

    def __init__(self, work: _Work) -> None:
        self.work = work
        self.journal = Journal(work.target)
        self.detector = None if work.open_detector is None else work.open_detector()
        self.stopping = False
        if multiprocessing.parent_process() is not None:
            # Ctrl-C reaches all processes: this one puts down what it has in hand, and the first one tells the user.
            signal.signal(signal.SIGINT, self._stop)
            threading.Thread(target=_end_with_parent, daemon=True).start()

    def _stop(self, number: int, frame: Any) -> None:
        self.stopping = True


_worker: _Worker | None = None


def _end_with_parent() -> None:
    """A process whose parent was killed would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _close() -> None:
    global _worker
    if _worker is not None:
        _worker.journal.close()
    _worker = None


def _align_chunk(tasks: list[_Task]) -> list[Outcome]:
    global _worker
    if _worker is None or _worker.work is not processes.shared:
        _close()
        _worker = _Worker(processes.shared)
    outcomes = []
    for batch in _batches(tasks, _worker):
        for outcome in _align_batch(batch, _worker):
            try:
                _worker.journal.write(outcome)
            except OSError as error:
                raise _cannot_write(_worker.journal.path, error) from None
            outcomes.append(outcome)
            count_one()
    return outcomes


class _Read(NamedTuple):
    """A photo that was read, or why it could not be."""

    task: _Task
    pixels: Photo | None
    reason: str = ""


def _batches(tasks: list[_Task], worker: _Worker) -> Iterator[list[_Read]]:
    """Reads photos, as many together as the detector takes at once and the memory holds."""
    batch: list[_Read] = []
    pixels = 0
    for task in tasks:
        if worker.stopping:
            break
        try:
            one = _Read(task, read_photo(worker.work.source / task.photo))
        except BadImageError as error:
            one = _Read(task, None, error.reason)
        pixels += 0 if one.pixels is None else one.pixels.size // 3
        if batch and (len(batch) >= worker.work.options.batch or pixels > _BATCH_PIXELS):
            yield batch
            batch, pixels = [], 0 if one.pixels is None else one.pixels.size // 3
        batch.append(one)
    if batch:
        yield batch


def _align_batch(batch: list[_Read], worker: _Worker) -> Iterator[Outcome]:
    """Finds faces, and writes their crops."""
    options, detector = worker.work.options, worker.detector
    photos = [one.pixels for one in batch if one.pixels is not None]
    found = iter([Faces.none()] * len(photos) if detector is None else find_faces(photos, detector, options.max_side))
    for one in batch:
        if one.pixels is None:
            yield Outcome(one.task.photo, one.task.stamp, 0, (), one.reason)
        elif detector is None:
            landmarks = one.task.landmarks
            crops = [] if landmarks is None else [warp(one.pixels, estimate_similarity(landmarks))]
            yield _written(one.task, len(crops), crops, worker.work)
        else:
            faces = next(found)
            chosen = choose_faces(faces, options.which, (one.pixels.shape[1], one.pixels.shape[0]))
            crops = [align_face(one.pixels, faces, int(number)).crop for number in chosen]
            yield _written(one.task, len(faces.scores), crops, worker.work)


def _written(task: _Task, num_faces: int, crops: list[Crop], work: _Work) -> Outcome:
    """Writes the crops of a photo: the first under its name, the others with `_face2` and so on behind it."""
    names = []
    for number, crop in enumerate(crops, start=1):
        name = f"{task.stem}{f'_face{number}' if number > 1 else ''}.{work.options.format}"
        path = work.target / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_bytes(work.target, path, encode_crop(crop, work.options.format, work.options.quality))
        except OSError as error:
            raise _cannot_write(path, error) from None
        names.append(name)
    for name in set(task.old_crops).difference(names):  # the photo has changed
        (work.target / name).unlink(missing_ok=True)
    return Outcome(task.photo, task.stamp, num_faces, tuple(names))


def encode_crop(crop: Crop, format: CropFormat, quality: int) -> bytes:
    """A crop as a file's bytes.

    Args:
        crop: uint8 RGB, shape (112, 112, 3).
        format: "jpg" (colours at full resolution from quality 90 on) or "png".
        quality: 1 to 100.
    """
    file = io.BytesIO()
    image = Image.fromarray(np.ascontiguousarray(crop))
    if format == "png":
        image.save(file, "PNG")
    else:
        image.save(file, "JPEG", quality=quality, subsampling=0 if quality >= 90 else 2)
    return file.getvalue()


def _cannot_write(path: Path, error: OSError) -> FacelitError:
    return FacelitError(
        f"{path}: cannot write this file ({error.strerror or error}). Nothing is lost: mend that, and run the same command again."
    )


def detector_opener(name: str, min_face: int, device: Literal["cpu", "cuda"]) -> Callable[[], Detector]:
    """`open_detector` with its arguments, for `align_folder`."""
    from facelit.align.detectors import open_detector

    return partial(open_detector, name, min_face, device)
