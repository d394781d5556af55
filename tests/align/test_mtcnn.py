"""MTCNN on real photos, where its package and LFW are at hand; and what is said where the package is not."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from facelit.align import Faces, align_photo, open_detector, read_photo
from facelit.align.aligning import choose_faces, find_faces
from facelit.align.boxes import overlaps, suppress
from facelit.align.landmark_file import parse_lines, read_landmarks
from facelit.align.mtcnn import MtcnnDetector
from facelit.errors import FacelitError
from facelit.storage.images import read_crop

MIRRORED = [1, 0, 2, 4, 3]


@pytest.fixture(scope="module")
def detector() -> MtcnnDetector:
    pytest.importorskip("mtcnnruntime", reason="the extra facelit[align] is not installed")
    return MtcnnDetector()


@pytest.fixture(scope="module")
def reference(lfw: Path) -> dict[Path, np.ndarray]:
    rows = read_landmarks(lfw / "raw_250_landmarks.tsv")
    return {lfw / "raw_250" / name: parse_lines(rows[name]).landmarks[0] for name in list(rows)[::100]}


def central(faces: Faces, size: tuple[int, int] = (250, 250)) -> np.ndarray:
    return faces.landmarks[int(choose_faces(faces, "central", size)[0])]


@pytest.mark.lfw
def test_landmarks_are_where_another_mtcnn_saw_them(detector: MtcnnDetector, reference: dict[Path, np.ndarray]) -> None:
    apart = [central(detector.detect(read_photo(path))) - landmarks for path, landmarks in reference.items()]
    errors = np.linalg.norm(apart, axis=2).mean(axis=1)
    assert np.median(errors) < 1.5
    assert errors.max() < 4
    assert np.abs(np.median(apart, axis=(0, 1))).max() < 0.4


@pytest.mark.lfw
def test_crops_look_like_the_reference(detector: MtcnnDetector, reference: dict[Path, np.ndarray], lfw: Path) -> None:
    path = next(iter(reference))
    (face,) = align_photo(path, detector)
    expected = read_crop(lfw / "aligned_112" / path.relative_to(lfw / "raw_250"))
    near, far = (np.abs(face.crop.astype(int) - np.roll(expected, shift, (0, 1))).mean() for shift in ((0, 0), (4, 4)))
    assert near < 0.6 * far


@pytest.mark.lfw
def test_a_mirrored_photo_has_mirrored_landmarks(detector: MtcnnDetector, reference: dict[Path, np.ndarray]) -> None:
    sums = []
    for path in reference:
        photo = read_photo(path)
        here, there = (central(detector.detect(p)) for p in (photo, np.ascontiguousarray(photo[:, ::-1])))
        sums.append(here[:, 0] + there[MIRRORED, 0])
    # One pixel too far to the right in either: facelit.align.mtcnn says why it stays.
    assert abs(np.median(sums) - (249 + 2)) < 1.0


@pytest.mark.lfw
def test_a_face_at_the_photos_edge(detector: MtcnnDetector, reference: dict[Path, np.ndarray]) -> None:
    errors = []
    for path, landmarks in reference.items():
        left = int(landmarks[:, 0].min()) - 12  # half of the cheek is gone
        faces = detector.detect(np.ascontiguousarray(read_photo(path)[:, left:]))
        if len(faces.scores):
            errors.append(np.abs(central(faces, (250 - left, 250)) + np.array([left, 0]) - landmarks).mean())
    assert len(errors) >= 7
    assert np.median(errors) < 2.5


@pytest.mark.lfw
def test_faces_that_fill_the_photo(detector: MtcnnDetector, reference: dict[Path, np.ndarray]) -> None:
    at_once, errors = 0, []
    for path, landmarks in reference.items():
        (left, top), (right, bottom) = (landmarks.min(0) - 15).astype(int), (landmarks.max(0) + 15).astype(int)
        photo = np.ascontiguousarray(read_photo(path)[top:bottom, left:right])
        at_once += len(detector.detect(photo).scores) > 0
        (faces,) = find_faces([photo], detector)
        if len(faces.scores):
            errors.append(np.linalg.norm(faces.landmarks[0] + [left, top] - landmarks, axis=1).mean())
    assert at_once < 5  # without padding
    assert len(errors) >= 9
    assert np.median(errors) < 3


@pytest.mark.lfw
def test_many_at_once_are_the_same(detector: MtcnnDetector, reference: dict[Path, np.ndarray]) -> None:
    photos = [read_photo(path) for path in list(reference)[:4]]
    photos[2:2] = [np.zeros((90, 70, 3), np.uint8), photos[0][40:220, 30:].copy()]
    many = detector.detect_many(photos)
    for photo, faces in zip(photos, many, strict=True):
        alone = detector.detect(photo)
        assert len(alone.scores) == len(faces.scores)
        for one, other in zip(alone, faces, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-3)


@pytest.mark.lfw
def test_types(detector: MtcnnDetector, reference: dict[Path, np.ndarray]) -> None:
    faces = detector.detect(read_photo(next(iter(reference))))
    assert [(array.dtype, array.shape[1:]) for array in faces] == [("f4", (4,)), ("f4", ()), ("f4", (5, 2))]
    assert (faces.landmarks % 1 != 0).any()  # not rounded to whole pixels


@pytest.mark.parametrize("shape", [(300, 200), (40, 40), (39, 500), (1, 1), (12, 3000)])
def test_photos_without_a_face(detector: MtcnnDetector, shape: tuple[int, int]) -> None:
    faces = detector.detect(np.full((*shape, 3), 128, np.uint8))
    assert [array.shape for array in faces] == [(0, 4), (0,), (0, 5, 2)]


def test_no_photos(detector: MtcnnDetector) -> None:
    assert detector.detect_many([]) == []


def test_suppression_by_hand() -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30], [2, 2, 4, 4]], float)
    scores = np.array([0.8, 0.9, 0.5, 0.7])
    np.testing.assert_allclose(overlaps(boxes[0], boxes), [1, 0.9, 0, 0.04])
    np.testing.assert_allclose(overlaps(boxes[0], boxes, of_smaller=True), [1, 1, 0, 1])
    assert suppress(boxes, scores, 0.7).tolist() == [1, 3, 2]
    assert suppress(boxes, scores, 0.7, of_smaller=True).tolist() == [1, 2]
    assert suppress(boxes, scores, 0.95).tolist() == [1, 0, 3, 2]
    assert suppress(boxes[:0], scores[:0], 0.5).tolist() == []


@pytest.mark.parametrize("absent", ["mtcnnruntime", "onnxruntime", "cv2"])
def test_an_absent_package_names_the_extra(monkeypatch: pytest.MonkeyPatch, absent: str) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == absent else find(name))
    if absent != "mtcnnruntime":
        monkeypatch.setitem(sys.modules, absent, None)
    with pytest.raises(FacelitError, match=r'pip install "facelit\[align\]"') as caught:
        open_detector()
    assert "\n" not in str(caught.value)


def test_wrong_options() -> None:
    with pytest.raises(FacelitError, match=r"there is no detector dlib\. There are: mtcnn, yunet, scrfd"):
        open_detector("dlib")
    with pytest.raises(FacelitError, match="at least 12 pixels, not 11"):
        open_detector(min_face=11)


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra facelit[align] is not installed")
    pytest.importorskip("mtcnnruntime", reason="the extra facelit[align] is not installed")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(FacelitError, match="option device: this onnxruntime has no CUDA"):
        open_detector(device="cuda")
