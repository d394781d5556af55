"""Which of several faces, where it is in the photo, and from which pixels its crop is made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from facelit.align import TEMPLATE, Faces, align_photo, estimate_similarity, warp
from facelit.align.aligning import choose_faces, find_faces
from facelit.align.photos import Photo
from facelit.storage.images import BadImageError
from fake_detector import FakeDetector, draw, landmarks_of, save

# Centres at (20, 20), (60, 45), (50, 51), (52, 50); areas 400, 900, 64, 64.
FOUR = Faces(
    np.array([[10, 10, 30, 30], [45, 30, 75, 60], [46, 47, 54, 55], [48, 46, 56, 54]], np.float32),
    np.array([0.99, 0.8, 0.7, 0.9], np.float32),
    np.zeros((4, 5, 2), np.float32),
)


def test_largest_central_and_all() -> None:
    assert choose_faces(FOUR, "largest", (100, 100)).tolist() == [1]
    assert choose_faces(FOUR, "central", (100, 100)).tolist() == [2]
    assert choose_faces(FOUR, "central", (104, 100)).tolist() == [3]
    assert choose_faces(FOUR, "central", (40, 40)).tolist() == [0]
    assert choose_faces(FOUR, "all", (100, 100)).tolist() == [1, 0, 3, 2]  # the surer one of equals first
    for which in ("largest", "central", "all"):
        assert choose_faces(Faces.none(), which, (100, 100)).tolist() == []


def test_align_photo_takes_files_and_pixels(tmp_path: Path) -> None:
    photo, detector = draw(3), FakeDetector()
    for given in (photo, save(tmp_path / "three.png", 3), str(tmp_path / "three.png")):
        (face,) = align_photo(given, detector)
        np.testing.assert_array_equal(face.landmarks, landmarks_of(0))
        np.testing.assert_array_equal(face.crop, warp(photo, estimate_similarity(landmarks_of(0))))
        assert face.score == pytest.approx(0.9)
        np.testing.assert_allclose(face.box, [*landmarks_of(0).min(0) - 5, *landmarks_of(0).max(0) + 5])
    faces = align_photo(photo, detector, "all")
    for number, face in enumerate(faces):
        np.testing.assert_array_equal(face.landmarks, landmarks_of(number))
    assert len(faces) == 3
    assert align_photo(draw(0), detector) == []
    with pytest.raises(BadImageError):
        align_photo(tmp_path / "absent.png", detector)


class SpotDetector:
    """Finds bright spots near the places where a photo of 600x500 has them; remembers how large the picture was."""

    def __init__(self, places: np.ndarray) -> None:
        self.places = places

    def detect(self, image: Photo) -> Faces:
        self.size = image.shape[1::-1]
        zoom = self.size[0] / 600
        y, x = np.mgrid[: image.shape[0], : image.shape[1]]
        points = []
        for place in self.places * zoom:
            weight = image[..., 0] * (np.maximum(np.abs(x - place[0]), np.abs(y - place[1])) < 14 * zoom)
            points.append([(x * weight).sum() / weight.sum(), (y * weight).sum() / weight.sum()])
        box = np.array([[0, 0, self.size[0] / 2, self.size[1]]], np.float32)
        return Faces(box, np.ones(1, np.float32), np.array([points], np.float32))


@pytest.mark.parametrize("max_side", [0, 300, 150, 4000])
def test_a_shrunk_photo_is_searched_and_the_original_is_cropped(max_side: int) -> None:
    photo = np.zeros((500, 600, 3), np.uint8)
    places = (TEMPLATE * 3 + [50, 60]).round().astype(int)
    for x, y in places:
        photo[y - 10 : y + 11, x - 10 : x + 11] = 250
    detector = SpotDetector(places)
    (face,) = align_photo(photo, detector, max_side=max_side)
    assert max(detector.size) == (max_side if 0 < max_side < 600 else 600)
    assert np.abs(face.landmarks - places).max() < 0.3  # half a pixel of the small picture would be one or two
    np.testing.assert_allclose(face.box, [0, 0, 300, 500], atol=2)
    np.testing.assert_array_equal(face.crop, warp(photo, estimate_similarity(face.landmarks)))


class BatchDetector(FakeDetector):
    def detect_many(self, images: list[Photo]) -> list[Faces]:
        self.batches = [*getattr(self, "batches", []), len(images)]
        return [super(BatchDetector, self).detect(image) for image in images]


def test_a_detector_of_batches_gets_all_photos_at_once() -> None:
    photos = [draw(number, number) for number in (2, 0, 1)]
    detector = BatchDetector()
    assert [len(faces.scores) for faces in find_faces(photos, detector)] == [2, 0, 1]
    assert detector.batches == [3, 1]


class ShyDetector:
    """Finds the brightest spot, unless it is within 30 pixels of the picture's edge; and a ghost in the upper left corner of padded ones."""

    def __init__(self) -> None:
        self.sizes: list[tuple[int, int]] = []

    def detect(self, image: Photo) -> Faces:
        height, width = image.shape[:2]
        self.sizes.append((width, height))
        y, x = np.unravel_index(int(image[..., 0].argmax()), (height, width))
        spots = [(x, y)] if min(x, y, width - 1 - x, height - 1 - y) >= 30 else []
        spots += [(8, 8)] if len(self.sizes) > 1 else []
        if not spots:
            return Faces.none()
        points = np.array([np.array([[-5, -5], [5, -5], [0, 0], [-4, 5], [4, 5]]) + spot for spot in spots], np.float32)
        boxes = np.concatenate([points.min(1) - 1, points.max(1) + 1], axis=1)
        return Faces(boxes, np.full(len(spots), 0.8, np.float32), points)


@pytest.mark.parametrize(("zoom", "max_side"), [(1, 0), (3, 120)])
def test_a_face_at_the_edge_is_found_where_the_photo_is_searched_again(zoom: int, max_side: int) -> None:
    photo = np.zeros((100, 120, 3), np.uint8)
    photo[97, 60] = 255
    detector = ShyDetector()
    (faces,) = find_faces([photo.repeat(zoom, 0).repeat(zoom, 1)], detector, max_side)
    assert detector.sizes == [(120, 100), (220, 200)]
    assert len(faces.scores) == 1  # no ghost: its centre lies outside the photo
    np.testing.assert_allclose((faces.landmarks[0, 2] + 0.5) / zoom, [60.5, 97.5], atol=0.01)
    np.testing.assert_allclose(faces.boxes[0] / zoom, [54, 91, 66, 103], atol=0.01)


@pytest.mark.parametrize(
    ("size", "spot"),
    [((120, 100), (117, 97)), ((60, 100), (30, 97)), ((40, 200), (20, 188)), ((44, 44), (22, 22))],
    ids=["a corner", "three edges", "a narrow strip", "hardly larger than the face"],
)
def test_a_face_that_touches_several_edges(size: tuple[int, int], spot: tuple[int, int]) -> None:
    """Landmarks beyond the photo's edges are kept as they are found, and a crop is made of them."""
    photo = np.zeros((size[1], size[0], 3), np.uint8)
    photo[spot[1], spot[0]] = 255
    (face,) = align_photo(photo, ShyDetector(), max_side=0)
    np.testing.assert_array_equal(face.landmarks[2], spot)
    np.testing.assert_array_equal(face.landmarks[4], np.add(spot, (4, 5)))
    assert face.crop.shape == (112, 112, 3)


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (2, 2)])
def test_photos_smaller_than_any_face(size: tuple[int, int]) -> None:
    assert align_photo(np.zeros((*size, 3), np.uint8), ShyDetector()) == []


def test_a_photo_with_a_face_is_searched_once() -> None:
    photo = np.zeros((100, 120, 3), np.uint8)
    photo[50, 60] = 255
    detector = ShyDetector()
    (faces,) = find_faces([photo], detector)
    assert detector.sizes == [(120, 100)]
    np.testing.assert_array_equal(faces.landmarks[0, 2], [60, 50])


def test_of_several_photos_those_without_a_face_are_searched_again() -> None:
    detector = BatchDetector()
    assert [len(faces.scores) for faces in find_faces([draw(0), draw(1), draw(0)], detector)] == [0, 1, 0]
    assert detector.batches == [3, 2]
