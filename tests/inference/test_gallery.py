"""Search against exhaustive loops, exact and through FAISS; files and what is refused in them."""

import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from PIL import Image

import facelit
from facelit.align.photos import read_photo
from facelit.errors import FacelitError
from facelit.inference import FaceModel, Gallery
from facelit.inference.enrolment import enrol, list_people
from facelit.inference.gallery import Embeddings, mean_templates
from trained_run import TrainedRun, read, unit


def rows(count: int, length: int = 8, seed: int = 0) -> Embeddings:
    return unit(np.random.default_rng(seed).normal(size=(count, length))).astype(np.float32)


def gallery_of(embeddings: Embeddings, photos_each: int = 1) -> Gallery:
    owners = np.arange(len(embeddings)) // photos_each
    names = [f"p{number:03d}" for number in range(int(owners[-1]) + 1)]
    return Gallery(names, embeddings, owners, "print", template="mean" if photos_each == 1 else "all")


def looped_search(gallery: Gallery, query: Embeddings, k: int) -> list[tuple[str, float]]:
    """Each person's best row, row by row in float64, sorted by score and then by the order of names."""
    best: dict[int, float] = {}
    q = query.astype(np.float64)
    for owner, row in zip(gallery.owners.tolist(), gallery.embeddings.astype(np.float64), strict=True):
        score = float((row * q).sum() / np.sqrt((row * row).sum() * (q * q).sum()))
        best[owner] = max(best.get(owner, -2.0), score)
    ranked = sorted(best.items(), key=lambda item: (-round(item[1], 12), item[0]))
    return [(gallery.names[owner], score) for owner, score in ranked[:k]]


def assert_same(found: list[list[Any]], gallery: Gallery, queries: Embeddings, k: int) -> None:
    for matches, query in zip(found, queries, strict=True):
        expected = looped_search(gallery, query, k)
        assert [one.name for one in matches] == [name for name, _ in expected]
        assert [one.score for one in matches] == pytest.approx([score for _, score in expected], abs=1e-6)


@pytest.mark.parametrize("photos_each", [1, 3])
@pytest.mark.parametrize("k", [1, 4, 1000])
def test_search_is_an_exhaustive_loop(photos_each: int, k: int) -> None:
    gallery = gallery_of(rows(60), photos_each)
    queries = 3 * rows(7, seed=1)  # of any length
    assert_same(gallery.search(queries, k), gallery, queries, k)


@pytest.mark.parametrize("photos_each", [1, 2])
@pytest.mark.parametrize("index", ["exact", "faiss"])
def test_ties_go_by_the_order_of_names(photos_each: int, index: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that come many times over: the k-th of them must not depend on how they were searched."""
    pytest.importorskip("faiss")
    distinct = rows(5)
    gallery = gallery_of(distinct[np.random.default_rng(2).integers(0, 5, 600)], photos_each)
    if index == "faiss":
        monkeypatch.setattr("facelit.inference.faiss_index.WORTH_AN_INDEX", 0)
        assert gallery.use_faiss()._index is not None
    for k in (1, 3, 40, 200):
        assert_same(gallery.search(distinct, k), gallery, distinct, k)


def test_float32_does_not_choose_between_near_ties() -> None:
    """Rows that differ in the seventh digit, where the product's rounding is larger than their distance."""
    base = rows(1, 64)
    near = base + np.random.default_rng(5).normal(0, 2e-8, size=(300, 64))
    gallery = gallery_of(unit(near).astype(np.float32))
    queries = rows(20, 64, seed=6)
    for k in (1, 3):
        assert_same(gallery.search(queries, k), gallery, queries, k)


@pytest.mark.parametrize("photos_each", [1, 4])
def test_faiss_gives_the_exact_searchs_answers(photos_each: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names and scores, to the last bit."""
    pytest.importorskip("faiss")
    monkeypatch.setattr("facelit.inference.faiss_index.WORTH_AN_INDEX", 0)
    monkeypatch.setattr("facelit.inference.gallery._FIRST_ROWS", 16)
    embeddings = rows(4000, 32)
    exact, indexed = gallery_of(embeddings, photos_each), gallery_of(embeddings, photos_each).use_faiss()
    queries = np.concatenate([rows(20, 32, seed=3), embeddings[:5]])
    assert indexed._index is not None
    for k in (1, 9, 300):
        assert indexed.search(queries, k) == exact.search(queries, k)


def test_faiss_compares_a_part_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the tests above would say nothing of it."""
    pytest.importorskip("faiss")
    monkeypatch.setattr("facelit.inference.faiss_index.WORTH_AN_INDEX", 0)
    gallery = gallery_of(rows(4000, 32)).use_faiss()
    assert gallery._index is not None
    monkeypatch.setattr("facelit.inference.gallery._FIRST_ROWS", 16)
    (people,) = gallery._through_index(gallery._index, gallery.embeddings[7:8], 1)
    assert 7 in people
    assert len(people) < 1000


def test_a_small_gallery_needs_no_index(monkeypatch: pytest.MonkeyPatch) -> None:
    assert gallery_of(rows(20)).use_faiss()._index is None
    monkeypatch.setattr("facelit.inference.faiss_index.WORTH_AN_INDEX", 0)
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(FacelitError, match=r'pip install "facelit\[faiss\]"'):
        gallery_of(rows(20)).use_faiss()


def test_mean_templates_are_means_by_hand() -> None:
    embeddings, owners = rows(6), np.array([0, 0, 0, 2, 4, 4])
    expected = unit(np.stack([embeddings[:3].mean(axis=0), embeddings[3], (embeddings[4] + embeddings[5]) / 2]))
    np.testing.assert_allclose(mean_templates(embeddings, owners), expected, atol=1e-6)


def test_slips_in_a_search_are_named() -> None:
    gallery = gallery_of(rows(4))
    with pytest.raises(FacelitError, match="option k"):
        gallery.search(rows(1), 0)
    with pytest.raises(FacelitError, match="have 8 numbers"):
        gallery.search(rows(1, length=9))


@pytest.mark.parametrize("photos_each", [1, 2])
def test_a_saved_gallery_comes_back(tmp_path: Path, photos_each: int) -> None:
    gallery = gallery_of(rows(6), photos_each)
    gallery.flip_average, gallery.skipped = True, ["x.png: no face was found."]
    gallery.examples = np.arange(len(gallery) * 112 * 112 * 3, dtype=np.uint32).astype(np.uint8)
    gallery.examples = gallery.examples.reshape(-1, 112, 112, 3)
    gallery.save(tmp_path / "g.npz")
    found = Gallery.load(tmp_path / "g.npz")
    for name in ("names", "fingerprint", "flip_average", "template", "skipped"):
        assert getattr(found, name) == getattr(gallery, name)
    for name in ("embeddings", "owners", "examples"):
        np.testing.assert_array_equal(getattr(found, name), getattr(gallery, name))
    assert found.search(rows(2, seed=4), 3) == gallery.search(rows(2, seed=4), 3)
    assert [file.name for file in tmp_path.iterdir()] == ["g.npz"]


def test_other_files_are_refused(tmp_path: Path) -> None:
    """Truncated, foreign, of parts that do not fit, or with a pickle inside."""
    good = tmp_path / "good.npz"
    gallery_of(rows(6), 2).save(good)
    with np.load(good) as file:
        arrays = dict(file)
    changes = {
        "pickle": {"names": np.array(["a", "b", object()], dtype=object)},
        "owners": {"owners": np.array([0, 0, 1, 1, 2, 5])},
        "unsorted": {"owners": np.array([2, 0, 1, 1, 2, 0])},
        "dtype": {"embeddings": arrays["embeddings"].astype(np.float64)},
        "version": {"version": np.array(99)},
        "template": {"template": np.array("median")},
    }
    for name, change in changes.items():
        np.savez(tmp_path / f"{name}.npz", **{**arrays, **change}, allow_pickle=True)
    np.savez(tmp_path / "foreign.npz", names=np.array(["a"]))
    (tmp_path / "half.npz").write_bytes(good.read_bytes()[:500])
    (tmp_path / "text.npz").write_text("hello")
    for name in (*changes, "foreign", "half", "text"):
        with pytest.raises(FacelitError, match=rf"{name}\.npz: not a gallery saved by facelit"):
            Gallery.load(tmp_path / f"{name}.npz")
    with pytest.raises(FacelitError, match="gallery not found"):
        Gallery.load(tmp_path / "absent.npz")


@pytest.fixture
def people(trained: TrainedRun, tmp_path: Path) -> Path:
    """Ann with two photos (one in a folder of hers), Bob right below the root, Cid with a broken one."""
    root = tmp_path / "people"
    for name, person, number in (("Ann/x/1", 0, 1), ("Ann/2", 0, 2), ("Bob", 1, 1), ("Cid/1", 2, 1)):
        (root / f"{name}.png").parent.mkdir(parents=True, exist_ok=True)
        (root / f"{name}.png").write_bytes(trained.crop(person, number).read_bytes())
    (root / "Cid" / "notes.txt").write_text("not a photo")
    return root


def test_a_folder_of_people(trained: TrainedRun, people: Path) -> None:
    assert {name: len(ones) for name, ones in list_people(people).items()} == {"Ann": 2, "Bob": 1, "Cid": 1}
    model = facelit.load(trained.checkpoint)
    gallery = model.enrol(people, keep_examples=True)
    assert gallery.names == ["Ann", "Bob", "Cid"]
    ann = unit(trained.embed(read(trained.crop(0, 1), trained.crop(0, 2))))
    np.testing.assert_allclose(gallery.embeddings[0], unit(ann.mean(axis=0)[None])[0], atol=2e-6)
    assert gallery.examples is not None
    np.testing.assert_array_equal(gallery.examples[1], read(trained.crop(1, 1))[0])
    every = model.enrol(people, template="all")
    assert every.owners.tolist() == [0, 0, 1, 2]
    np.testing.assert_allclose(sorted(every.embeddings[:2].tolist()), sorted(ann.tolist()), atol=2e-6)


def test_bad_photos_stop_or_are_listed(trained: TrainedRun, people: Path) -> None:
    (people / "Bob.png").write_bytes(b"broken")
    model: FaceModel = facelit.load(trained.checkpoint)
    with pytest.raises(FacelitError, match=r"1 of the gallery's 4 photos .*Bob\.png: cannot read.*on_bad_photo skip"):
        model.enrol(people)
    gallery = model.enrol(people, on_bad_photo="skip", template="all", keep_examples=True)
    assert gallery.names == ["Ann", "Cid"]
    assert gallery.owners.tolist() == [0, 0, 1]
    assert len(gallery.skipped) == 1
    assert "Bob.png" in gallery.skipped[0]
    assert gallery.examples is not None
    np.testing.assert_array_equal(gallery.examples[1], read(trained.crop(2, 1))[0])


def test_nobody_to_enrol(trained: TrainedRun, tmp_path: Path) -> None:
    model = facelit.load(trained.checkpoint)
    with pytest.raises(FacelitError, match="gallery not found"):
        model.enrol(tmp_path / "absent")
    with pytest.raises(FacelitError, match="no photos here"):
        model.enrol(tmp_path)
    with pytest.raises(FacelitError, match="none of the gallery's 0 photos"):
        model.enrol({})
    (tmp_path / "a.png").write_bytes(b"broken")
    with pytest.raises(FacelitError, match=r"none of the gallery's 1 photos .*a\.png"):
        model.enrol(tmp_path, on_bad_photo="skip")


def test_people_with_photos_of_other_kinds(tmp_path: Path) -> None:
    """A photo is used whatever its suffix; one that cannot be read goes through on_bad_photo, and nobody vanishes unseen."""
    for name in ("Ann/1.jpg", "Bo.JPE", "Cy/Cy.jfif", "Di/1.CR2"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
        if not name.endswith("CR2"):
            Image.new("RGB", (112, 112)).save(tmp_path / name, "JPEG")
    people = list_people(tmp_path)
    assert list(people) == ["Ann", "Bo", "Cy", "Di"]

    def enrolled(on_bad_photo: Literal["error", "skip"]) -> Gallery:
        return enrol(
            tmp_path,
            find=lambda photo: read_photo(photo),
            embed=lambda crops: rows(len(crops)),
            template="mean",
            on_bad_photo=on_bad_photo,
            keep_examples=False,
            fingerprint="print",
            flip_average=False,
        )

    with pytest.raises(
        FacelitError, match=r"1 of the gallery's 4 photos cannot be used \(.*1\.CR2: a camera's raw file"
    ):
        enrolled("error")
    gallery = enrolled("skip")
    assert list(gallery.names) == ["Ann", "Bo", "Cy"]
    assert "1.CR2" in gallery.skipped[0]
