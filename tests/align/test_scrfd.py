"""SCRFD on a small graph that the test makes: decoded as its paper and InsightFace's code have it, place by place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from facelit.align import open_detector
from facelit.align.photos import Photo
from facelit.align.scrfd import ScrfdDetector
from facelit.errors import FacelitError

onnx = pytest.importorskip("onnx", reason="the extra facelit[export] is not installed")
pytest.importorskip("onnxruntime", reason="the extra facelit[align] is not installed")

STRIDES = (8, 16, 32)


def save_model(path: Path, anchors: int = 2, size: int | None = None, kinds: int = 3, batched: bool = False) -> Path:
    """A network whose outputs are linear in the mean colours of each stride's squares."""
    rng = np.random.default_rng(5)
    nodes, outputs, weights = [], [], []
    for kind, columns in list(enumerate((1, 4, 10)))[:kinds]:
        for stride in STRIDES:
            name = f"{kind}_{stride}"
            values = rng.normal(0, 1, (anchors * columns, 3, 1, 1)) * (8 if kind == 0 else 1)
            bias = rng.uniform(1, 3, anchors * columns) if kind else np.full(anchors, -1.0)
            weights += [
                onnx.numpy_helper.from_array(values.astype(np.float32), f"w{name}"),
                onnx.numpy_helper.from_array(bias.astype(np.float32), f"b{name}"),
                onnx.numpy_helper.from_array(np.array([*([1] if batched else []), -1, columns]), f"s{name}"),
            ]
            node = onnx.helper.make_node
            nodes += [
                node("AveragePool", ["input"], [f"p{name}"], kernel_shape=[stride] * 2, strides=[stride] * 2),
                node("Conv", [f"p{name}", f"w{name}", f"b{name}"], [f"c{name}"]),
                node("Transpose", [f"c{name}"], [f"t{name}"], perm=[0, 2, 3, 1]),
                node("Reshape", [f"t{name}", f"s{name}"], [name if kind else f"r{name}"]),
            ]
            nodes += [] if kind else [node("Sigmoid", [f"r{name}"], [name])]
            outputs.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    sides = [size or "height", size or "width"]
    picture = onnx.helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, [1, 3, *sides])
    graph = onnx.helper.make_graph(nodes, "scrfd", [picture], outputs, weights)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8), path)
    return path


def literal(path: Path, image: Photo, height: int, width: int) -> list[tuple[float, list[float], list[list[float]]]]:
    """Score, box and landmarks of every face, the surest first; the picture lies in the corner of one of height x width."""
    import onnxruntime

    canvas = np.zeros((height, width, 3), np.float32)
    canvas[: image.shape[0], : image.shape[1]] = image
    blob = ((canvas - 127.5) / 128).transpose(2, 0, 1)[None].astype(np.float32)
    outputs = onnxruntime.InferenceSession(str(path)).run(None, {"input": blob})
    found = []
    for level, stride in enumerate(STRIDES):
        scores, boxes, points = (np.reshape(outputs[level + 3 * kind], (-1, n)) for kind, n in enumerate((1, 4, 10)))
        anchors = len(scores) // ((height // stride) * (width // stride))
        row = 0
        for y in range(height // stride):
            for x in range(width // stride):
                for _ in range(anchors):
                    cx, cy = x * stride, y * stride
                    if scores[row, 0] >= 0.5:
                        left, top, right, bottom = (float(value) * stride for value in boxes[row])
                        marks = [
                            [cx + float(points[row, 2 * k]) * stride, cy + float(points[row, 2 * k + 1]) * stride]
                            for k in range(5)
                        ]
                        box = [cx - left, cy - top, cx + right, cy + bottom]
                        found.append((float(scores[row, 0]), box, marks))
                    row += 1
    kept: list[tuple[float, list[float], list[list[float]]]] = []
    for one in sorted(found, key=lambda face: -face[0]):
        if all(overlap(one[1], other[1]) <= 0.4 for other in kept):
            kept.append(one)
    return kept


def overlap(a: list[float], b: list[float]) -> float:
    shared = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return shared / max(sum(areas) - shared, 1e-9)


def photo(height: int, width: int) -> Photo:
    return (
        np.random.default_rng(1)
        .integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
        .repeat(4, 0)
        .repeat(4, 1)
    )


@pytest.mark.parametrize("anchors", [1, 2])
@pytest.mark.parametrize(("size", "batched"), [(None, False), (None, True), (160, False)])
def test_faces_are_decoded_place_by_place(tmp_path: Path, anchors: int, size: int | None, batched: bool) -> None:
    path = save_model(tmp_path / "det.onnx", anchors, size, batched=batched)
    image = photo(120, 100)
    faces = ScrfdDetector(path, min_face=12).detect(image)
    expected = [
        one
        for one in literal(path, image, size or 128, size or 128)
        if max(one[1][2] - one[1][0], one[1][3] - one[1][1]) >= 12
    ]
    assert len(expected) > 10
    np.testing.assert_allclose(faces.scores, [one[0] for one in expected], atol=1e-5)
    np.testing.assert_allclose(faces.boxes, [one[1] for one in expected], atol=1e-3)
    np.testing.assert_allclose(faces.landmarks, [one[2] for one in expected], atol=1e-3)
    assert [array.dtype for array in faces] == [np.float32] * 3


def test_a_photo_that_is_larger_than_the_network_takes_is_shrunk(tmp_path: Path) -> None:
    path = save_model(tmp_path / "det.onnx", size=160)
    half = photo(100, 160)
    faces = ScrfdDetector(path, min_face=12).detect(half.repeat(2, 0).repeat(2, 1))
    expected = [one for one in literal(path, half, 160, 160) if max(one[1][2] - one[1][0], one[1][3] - one[1][1]) >= 6]
    np.testing.assert_allclose(faces.boxes, 2 * np.array([one[1] for one in expected]), atol=1e-3)
    np.testing.assert_allclose(faces.landmarks, 2 * np.array([one[2] for one in expected]) + 0.5, atol=1e-3)


def test_no_face(tmp_path: Path) -> None:
    faces = ScrfdDetector(save_model(tmp_path / "det.onnx"), min_face=10_000).detect(photo(64, 64))
    assert [array.shape for array in faces] == [(0, 4), (0,), (0, 5, 2)]


def test_other_networks_are_refused(tmp_path: Path) -> None:
    no_landmarks = save_model(tmp_path / "no_landmarks.onnx", kinds=2)
    (tmp_path / "text.onnx").write_text("hello")
    swapped = onnx.load(save_model(tmp_path / "swapped.onnx"))
    names = [output.name for output in swapped.graph.output]
    del swapped.graph.output[:]
    for name in reversed(names):
        swapped.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    onnx.save(swapped, tmp_path / "swapped.onnx")
    for path, words in (
        (
            no_landmarks,
            r"no_landmarks\.onnx \(option detector_model\): not an SCRFD model with landmarks: it has 6 outputs",
        ),
        (tmp_path / "text.onnx", r"text\.onnx: onnxruntime cannot run this file"),
        (tmp_path / "swapped.onnx", r"output 1 has the shape"),
    ):
        with pytest.raises(FacelitError, match=words) as caught:
            open_detector("scrfd", model=path)
        assert "\n" not in str(caught.value)
