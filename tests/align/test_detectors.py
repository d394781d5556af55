"""Detectors by name: which need a file, and what is said about a wrong one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from facelit.align import open_detector
from facelit.align.detection import Faces, search_side
from facelit.align.yunet import YuNetDetector
from facelit.errors import FacelitError


@pytest.mark.parametrize(
    ("name", "model", "words"),
    [
        ("dlib", None, "there is no detector dlib. There are: mtcnn, yunet, scrfd"),
        ("mtcnn", "{tmp}/text.onnx", "mtcnn brings its own weights"),
        ("yunet", None, "the detector yunet needs a model file.*--detector_model face_detection_yunet"),
        ("scrfd", None, r"the detector scrfd needs a model file.*--detector_model det_10g\.onnx"),
        ("scrfd", "{tmp}/absent.onnx", r"file not found: .*absent\.onnx \(option detector_model\)"),
        ("yunet", "{tmp}/text.onnx", r"text\.onnx \(option detector_model\): not a YuNet model that OpenCV .* can run"),
    ],
)
def test_wrong_files(tmp_path: Path, name: str, model: str | None, words: str) -> None:
    pytest.importorskip("cv2", reason="the extra facelit[align] is not installed")
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(FacelitError, match=words) as caught:
        open_detector(name, model=model and model.format(tmp=tmp_path))
    assert "\n" not in str(caught.value)


def test_yunet_is_for_the_cpu(tmp_path: Path) -> None:
    (tmp_path / "yunet.onnx").touch()
    with pytest.raises(FacelitError, match="yunet runs on the CPU only, not on cuda"):
        open_detector("yunet", device="cuda", model=tmp_path / "yunet.onnx")


class FakeYN:
    """OpenCV's detector: finds one face, whose numbers depend on the size it was told and on the first pixel."""

    def setInputSize(self, size: tuple[int, int]) -> None:  # noqa: N802  # OpenCV's name
        self.size = size

    def detect(self, image: np.ndarray) -> tuple[int, Any]:
        assert image.shape[1::-1] == tuple(self.size)
        if image[0, 0, 2] == 0:
            return 1, None
        blue, green, _ = image[0, 0].tolist()
        box = [10, 20, 100, 150]
        return 1, np.array(
            [[*box, *range(10), 0.9], [*box[:2], 20, 30, *range(blue, blue + 10), green / 255]], np.float32
        )


@pytest.fixture
def yunet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> YuNetDetector:
    fake = FakeYN()
    fake.setInputSize((64, 64))
    logging = SimpleNamespace(setLogLevel=lambda level: level, LOG_LEVEL_SILENT=0)
    cv2 = SimpleNamespace(
        FaceDetectorYN=SimpleNamespace(create=lambda *_: fake),
        setNumThreads=lambda count: None,
        utils=SimpleNamespace(logging=logging),
        error=RuntimeError,
    )
    monkeypatch.setattr("facelit.align.yunet.load_package", lambda name: cv2)
    return YuNetDetector(tmp_path / "yunet.onnx")


def test_what_yunet_says_is_understood(yunet: YuNetDetector) -> None:
    image = np.zeros((300, 200, 3), np.uint8)
    assert [array.shape for array in yunet.detect(image)] == [(0, 4), (0,), (0, 5, 2)]
    image[0, 0] = (9, 128, 40)  # red, green, blue
    faces = yunet.detect(image)  # the second face is below 40 pixels
    np.testing.assert_array_equal(faces.boxes, [[10, 20, 110, 170]])
    np.testing.assert_array_equal(faces.landmarks, [[[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]])
    np.testing.assert_allclose(faces.scores, [0.9])
    np.testing.assert_array_equal(YuNetDetector._search(yunet, image).landmarks[1].ravel(), np.arange(40, 50))


def test_a_large_photo_is_shrunk_for_yunet_and_its_faces_are_not(yunet: YuNetDetector) -> None:
    image = np.full((1280, 960, 3), 9, np.uint8)
    faces = yunet.detect(image)
    np.testing.assert_allclose(faces.boxes[0], [20, 40, 220, 340])
    np.testing.assert_allclose(faces.landmarks[0], 2 * np.arange(10).reshape(5, 2) + 0.5)  # centres of pixels
    assert len(faces.scores) == 2  # the second one is 40 x 60 now


@pytest.mark.parametrize(
    ("longer", "min_face", "side"), [(300, 40, 640), (1024, 40, 640), (4000, 40, 1600), (4000, 16, 4000)]
)
def test_how_far_a_photo_is_shrunk(longer: int, min_face: int, side: int) -> None:
    assert search_side(np.empty((longer, 200, 3), np.uint8), min_face) == side


def test_rows_of_faces() -> None:
    faces = Faces(
        np.arange(8, dtype=np.float32).reshape(2, 4), np.array([0.5, 0.6], np.float32), np.zeros((2, 5, 2), "f4")
    )
    assert faces.of(np.array([1])).scores.tolist() == pytest.approx([0.6])
    assert faces.of(np.array([False, False])).boxes.shape == (0, 4)
