"""Aligning a tree of photos: on all cores, restartable, and with an account of every photo."""

from __future__ import annotations

import io
import multiprocessing
import signal
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image

from facelit.align import journal
from facelit.align.aligning import MAX_SIDE, Which, align_face, choose_faces, find_faces
from facelit.align.detection import Detector, Faces
from facelit.align.journal import Journal, Outcome, replace_bytes
from facelit.align.landmark_file import Lines, face_lines, parse_lines
from facelit.align.photo_tree import PhotoTree
from facelit.align.photos import Photo, read_photo
from facelit.align.template import Border
from facelit.errors import FacelitError
from facelit.storage import processes
from facelit.storage.images import BadImageError, Crop
from facelit.storage.processes import count_one, run_in_processes
from facelit.storage.progress import progress_bar

CropFormat = Literal["jpg", "png"]

_CHUNK = 8
"""Photos that a process takes at a time: as many are finished, for each process, before the program stops."""
_ELSEWHERE = "its landmarks lie outside: they are another picture's, or this one had another size"
_BATCH_PIXELS = 32_000_000
"""Photos that are searched at once have no more pixels than this together, or are one."""


class Options(NamedTuple):
    """How photos become crops; part of what a folder of crops remembers about itself.

    Attributes:
        which: Which face, where there are several.
        max_side: Longer side of the picture in which faces are looked for, in pixels; 0: the photo as it is.
        format: Of the crops.
        quality: Of JPEG crops, 1 to 100.
        border: What a crop shows beyond the photo's edge.
        batch: Photos that are searched at once; it changes no crop.
    """

    which: Which = "largest"
    max_side: int = MAX_SIDE
    format: CropFormat = "jpg"
    quality: int = 95
    border: Border = "black"
    batch: int = 1

    @property
    def crops(self) -> dict[str, Any]:
        """What decides how crops are made of the faces that were found, by option."""
        quality = self.quality if self.format == "jpg" else None
        return {"which": self.which, "border": self.border, "format": self.format, "quality": quality}

    @property
    def made(self) -> str:
        """The same in a word; see `Outcome`."""
        return "-".join(str(value) for value in self.crops.values() if value is not None)


class Result(NamedTuple):
    """What became of photos.

    Attributes:
        outcomes: Of every photo of the tree, whenever it was done; those of kinds that cannot be read come last.
        num_new: How many were read in this run.
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
        known: Its faces, if they need not be looked for.
        old_crops: The crops that it has from an earlier run.
    """

    photo: str
    stamp: tuple[int, int]
    stem: str
    known: Lines | None
    old_crops: tuple[str, ...]


class _Work(NamedTuple):
    """What all processes need to know."""

    source: Path
    target: Path
    options: Options
    open_detector: Callable[[], Detector] | None


def align_folder(
    tree: PhotoTree,
    target: Path,
    options: Options,
    open_detector: Callable[[], Detector] | None,
    landmarks: dict[str, Lines] | None = None,
    jobs: int = 1,
) -> Result:
    """Aligns the photos of a tree that have not been aligned yet, or were cropped with other options.

    Faces that were found in an earlier run are not looked for again unless the photo has changed.

    Args:
        tree: The photos.
        target: A folder for which `journal.begin` was called, and that is `journal.locked`.
        options: How.
        open_detector: Called once in each process that searches; can be pickled. None if landmarks are given.
        landmarks: Faces by the photo's path relative to the tree; other photos count as without a face.
        jobs: Number of processes.

    Returns:
        What became of every photo, also in earlier runs.

    Raises:
        FacelitError: A crop cannot be written.
    """
    known = journal.read(target)
    done, todo = {}, []
    for photo, stem in tree.stems.items():
        stamp, earlier = _stamp(tree.root / photo), known.get(photo)
        if earlier is not None and _holds(earlier, stamp, options, target):
            done[photo] = earlier
            continue
        faces = landmarks.get(photo, ()) if landmarks is not None else _found_before(earlier, stamp)
        todo.append(_Task(photo, stamp, stem, faces, earlier.crops if earlier else ()))
    size = max(_CHUNK, options.batch)
    chunks = [todo[start : start + size] for start in range(0, len(todo), size)]
    work = _Work(tree.root, target, options, open_detector)
    with progress_bar(f"Aligning {tree.root}", len(todo)) as show:
        for outcomes in run_in_processes(_align_chunk, chunks, jobs, show, work):
            done.update((outcome.photo, outcome) for outcome in outcomes)
    _close()
    if len(done) < len(tree.stems):
        raise FacelitError(f"{target}: a process was told to stop. Run the same command again: it goes on from there.")
    unreadable = [Outcome(photo, (0, 0), reason=reason) for photo, reason in tree.unreadable.items()]
    result = Result(
        [done[photo] for photo in tree.stems] + unreadable,
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


def _holds(outcome: Outcome, stamp: tuple[int, int], options: Options, target: Path) -> bool:
    """Whether a photo need not be done again. What could not be read may be readable now."""
    return (
        not outcome.reason
        and outcome.stamp == stamp
        and outcome.made in ("", options.made)
        and all((target / crop).is_file() for crop in outcome.crops)
    )


def _found_before(earlier: Outcome | None, stamp: tuple[int, int]) -> Lines | None:
    """The faces that an earlier run found in a photo that is still the same."""
    return None if earlier is None or earlier.reason or earlier.stamp != stamp else earlier.found


# In the processes that work


class _Worker:
    """What a process keeps from one chunk to the next."""

    def __init__(self, work: _Work) -> None:
        self.work = work
        self.journal = Journal(work.target)
        self.stopping = False
        if multiprocessing.parent_process() is not None:
            # Ctrl-C reaches all processes: this one puts down what it has in hand, and the first one tells the user.
            signal.signal(signal.SIGINT, self._stop)

    @cached_property
    def detector(self) -> Detector:
        """Opened when the first photo has to be searched."""
        assert self.work.open_detector is not None
        return self.work.open_detector()

    def _stop(self, number: int, frame: Any) -> None:
        self.stopping = True


_worker: _Worker | None = None


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
    options = worker.work.options
    unsearched = [one.pixels for one in batch if one.pixels is not None and one.task.known is None]
    found = iter(find_faces(unsearched, worker.detector, options.max_side) if unsearched else [])
    for one in batch:
        if one.pixels is None:
            yield Outcome(one.task.photo, one.task.stamp, reason=one.reason)
            continue
        # Crops are made from what is written down, so that they come out the same when they are made again.
        lines = one.task.known if one.task.known is not None else face_lines(next(found))
        faces = parse_lines(lines)
        if _lies_outside(faces, one.pixels):
            yield Outcome(one.task.photo, one.task.stamp, reason=_ELSEWHERE)
            continue
        chosen = choose_faces(faces, options.which, (one.pixels.shape[1], one.pixels.shape[0]))
        aligned = [align_face(one.pixels, faces, int(number), options.border) for number in chosen]
        names = _write_crops(one.task, [face.crop for face in aligned], worker.work)
        beyond = sum(face.beyond for face in aligned) / max(1, len(aligned))
        made = options.made if names else ""
        yield Outcome(one.task.photo, one.task.stamp, lines, names, made, round(beyond, 4))


def _lies_outside(faces: Faces, photo: Photo) -> bool:
    """Whether a face lies beyond the photo, where none is found: a file's landmarks may be those of another picture of this name."""
    size = np.array(photo.shape[1::-1])
    return bool(((faces.boxes[:, :2] > size) | (faces.boxes[:, 2:] < 0)).any())


def _write_crops(task: _Task, crops: list[Crop], work: _Work) -> tuple[str, ...]:
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
    for name in set(task.old_crops).difference(names):  # the photo or an option has changed
        (work.target / name).unlink(missing_ok=True)
    return tuple(names)


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


def detector_opener(
    name: str, min_face: int, device: Literal["cpu", "cuda"], model: str | None = None
) -> Callable[[], Detector]:
    """`open_detector` with its arguments, for `align_folder`."""
    from facelit.align.detectors import open_detector

    return partial(open_detector, name, min_face, device, model)
