"""FaceModel against torch by hand, and against what validation wrote."""

import io
from collections.abc import Callable
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import facelit
from facelit.align import TEMPLATE, Faces
from facelit.backbones import VGG16
from facelit.errors import FacelitError
from facelit.inference import FaceModel, NoFaceError
from facelit.storage.images import BadImageError
from trained_run import TrainedRun, calibration, read, unit


@pytest.fixture(scope="module")
def model(trained: TrainedRun) -> FaceModel:
    return facelit.load(trained.checkpoint)


@pytest.fixture(scope="module")
def paths(trained: TrainedRun) -> list[Path]:
    return [trained.crop(person, number) for person in range(3) for number in (1, 2, 3)]


class Column:
    """What pandas' Series, of paths or of paths by name, is to facelit."""

    ndim = 1

    def __init__(self, values: list[Any]) -> None:
        self.values = values

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return np.array(self.values, object)

    def items(self) -> Any:
        return iter(self.values)


class PastedFaces:
    """A detector that knows where crops were pasted into a photo: whole pixels, so that warping gives them back exactly."""

    def __init__(self, *places: tuple[int, int]) -> None:
        self.places = places

    def detect(self, image: Any) -> Faces:
        corners = np.array(self.places, np.float32).reshape(-1, 2)
        boxes = np.concatenate([corners, corners + 112], axis=1)
        landmarks = TEMPLATE[None].astype(np.float32) + corners[:, None]
        return Faces(boxes, np.full(len(corners), 0.9, np.float32), landmarks.astype(np.float32))


def paste(path: Path, *crops: Path) -> Path:
    """A photo with crops beside each other, from (20, 30) on, 130 pixels apart."""
    photo = Image.new("RGB", (40 + 130 * len(crops), 180))
    for number, crop in enumerate(crops):
        photo.paste(Image.open(crop), (20 + 130 * number, 30))
    photo.save(path)
    return path


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_embeddings_are_torchs_by_hand(
    trained: TrainedRun, model: FaceModel, paths: list[Path], batch_size: int
) -> None:
    """From an array and from paths, whatever the size of a batch."""
    expected = unit(trained.embed(read(*paths)))
    found = model.embed(read(*paths), batch_size)
    assert found.dtype == np.float32
    assert found.shape == (9, model.embedding_dim) == (9, 16)
    np.testing.assert_allclose(found, expected, atol=2e-6)
    np.testing.assert_allclose(model.embed(paths, batch_size), expected, atol=2e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


def test_one_crop_and_none(trained: TrainedRun, model: FaceModel, paths: list[Path]) -> None:
    expected = unit(trained.embed(read(paths[0])))
    for one in (str(paths[0]), paths[0], read(paths[0])[0]):
        np.testing.assert_allclose(model.embed(one), expected, atol=2e-6)
    assert model.embed([]).shape == (0, 16)
    assert model.embed(np.empty((0, 112, 112, 3), np.uint8)).shape == (0, 16)


def test_flip_average_is_the_mean_before_normalising(trained: TrainedRun, model: FaceModel, paths: list[Path]) -> None:
    pixels = read(*paths)
    expected = unit((trained.embed(pixels) + trained.embed(pixels[:, :, ::-1].copy())) / 2)
    found = model.embed(pixels, flip_average=True)
    np.testing.assert_allclose(found, expected, atol=2e-6)
    assert abs(found - model.embed(pixels)).max() > 1e-4


def test_scores_and_threshold_are_validations(trained: TrainedRun, model: FaceModel) -> None:
    """Every pair of the verification set scores what validation wrote, and its threshold accepts as many as it says."""
    rows = [line.split("\t") for line in (trained.version / "tiny-scores.tsv").read_text().splitlines()[1:]]
    verdicts = [model.verify(first, second) for *_, first, second in rows]
    assert [one.score for one in verdicts] == pytest.approx([float(row[2]) for row in rows], abs=1e-6)
    entry = torch.load(trained.checkpoint, weights_only=True)["facelit"]["calibration"]["tiny"]
    point = entry["thresholds"]["best_accuracy"]
    # One pair's score is the threshold itself: rounding in another batch must not decide here.
    accepted = [one.score >= one.threshold - 1e-7 for one in verdicts]
    for kind, share in (("0", "far"), ("1", "tar")):
        ones = [yes for yes, row in zip(accepted, rows, strict=True) if row[1] == kind]
        assert sum(ones) / len(ones) == pytest.approx(point[share])
    assert verdicts[0].threshold == point["threshold"]
    assert (verdicts[0].far, verdicts[0].measured_on) == (point["far"], "tiny")
    assert verdicts[0].details.pairs == len(rows) == entry["pairs"]
    assert model.calibration == {"tiny": entry}
    assert model.step == entry["step"] == 6


def test_a_score_at_the_threshold_is_accepted(model: FaceModel, paths: list[Path]) -> None:
    score = model.verify(paths[0], paths[3], threshold=0.0).score
    assert model.verify(paths[0], paths[3], threshold=score).same
    verdict = model.verify(paths[0], paths[3], threshold=float(np.nextafter(score, 2)))
    assert not verdict.same
    assert (verdict.far, verdict.measured_on) == (None, None)


def test_verify_averages_as_the_thresholds_were_measured(
    trained: TrainedRun, paths: list[Path], tmp_path: Path
) -> None:
    kept = {**calibration(best_accuracy=0.1), "flipped": calibration(best_accuracy=0.2)["made_up"]}
    kept["flipped"]["flip_average"] = True
    both = facelit.load(trained.changed(tmp_path / "both.ckpt", facelit__calibration=kept))
    pixels = read(paths[0], paths[4])
    plain = trained.embed(pixels)
    averaged = (plain + trained.embed(pixels[:, :, ::-1].copy())) / 2
    for name, rows, threshold in ((None, plain, 0.1), ("made_up", plain, 0.1), ("flipped", averaged, 0.2)):
        verdict = both.verify(paths[0], paths[4], on=name)
        assert verdict.score == pytest.approx(float(np.prod(unit(rows), axis=0).sum()), abs=1e-6)
        assert verdict.threshold == threshold
        assert verdict.measured_on == (name or "made_up")


def test_identify_ranks_as_argsort_does(trained: TrainedRun, model: FaceModel, paths: list[Path]) -> None:
    """Against means of normalised embeddings, worked out here; below the threshold nobody is named."""
    people = {f"p{person}": [trained.crop(person, number) for number in (2, 3, 4)] for person in range(6)}
    means = unit(np.stack([unit(trained.embed(read(*ones))).mean(axis=0) for ones in people.values()]))
    scores = unit(trained.embed(read(*paths))) @ means.T
    gallery = model.enrol(people)
    limit = float(np.median(scores.max(axis=1)))
    answers = model.identify(paths, gallery, k=4, threshold=limit)
    assert [(one.photo, one.face) for one in answers] == [(number, 0) for number in range(9)]
    for answer, row in zip(answers, scores, strict=True):
        order = np.argsort(-row, kind="stable")[:4]
        assert [match.name for match in answer.matches] == [f"p{place}" for place in order]
        assert [match.score for match in answer.matches] == pytest.approx(row[order].tolist(), abs=1e-6)
        if abs(row.max() - limit) > 1e-5:
            assert answer.identity == (f"p{order[0]}" if row.max() >= limit else None)
    assert {answer.identity is None for answer in answers} == {True, False}
    for answer, path in zip(answers, paths, strict=True):
        best = answer.matches[0].score
        assert model.identify(path, gallery, threshold=best)[0].identity == answer.matches[0].name
        assert model.identify(path, gallery, threshold=float(np.nextafter(best, 2)))[0].identity is None


def test_a_gallery_of_another_checkpoint_is_refused(trained: TrainedRun, model: FaceModel, tmp_path: Path) -> None:
    gallery = model.enrol({"one": [trained.crop(0, 1)]})
    same_weights = facelit.load(trained.changed(tmp_path / "same.ckpt", facelit__calibration=...))
    assert same_weights.identify(trained.crop(0, 1), gallery, threshold=0.5)[0].identity == "one"
    state = torch.load(trained.checkpoint, weights_only=True)["state_dict"]
    state["backbone.features.0.bias"][0] += 1e-3
    other = facelit.load(trained.changed(tmp_path / "other.ckpt", state_dict=state))
    with pytest.raises(FacelitError, match=r"gallery was not made with .*other\.ckpt"):
        other.identify(trained.crop(0, 1), gallery)
    averaged = model.enrol({"one": [trained.crop(0, 1)]}, flip_average=True)
    with pytest.raises(FacelitError, match="differ in flip_average"):
        model.identify(trained.crop(0, 1), averaged)


def test_photos_are_aligned_first(trained: TrainedRun, tmp_path: Path) -> None:
    """A photo of two faces: the larger wins, "all" gives both; a photo of none is named."""
    photo = paste(tmp_path / "two.png", trained.crop(0, 1), trained.crop(5, 1))
    expected = unit(trained.embed(read(trained.crop(0, 1), trained.crop(5, 1))))
    model = facelit.load(trained.checkpoint, detector=PastedFaces((20, 30), (150, 30)))
    np.testing.assert_allclose(model.embed(photo, aligned=False, which="all"), expected, atol=2e-6)
    np.testing.assert_allclose(model.embed([photo], aligned=False), expected[:1], atol=2e-6)
    assert model.find_faces(photo).in_photo == 2
    pixels = read(photo)[0]
    np.testing.assert_allclose(model.embed(pixels, aligned=False), expected[:1], atol=2e-6)
    assert model.verify(photo, pixels, aligned=False).score == pytest.approx(1)
    gallery = model.enrol({"a": [trained.crop(0, 2)], "b": [trained.crop(5, 2)]})
    answers = model.identify([photo, photo], gallery, aligned=False, which="all", threshold=-1)
    assert [(one.photo, one.face) for one in answers] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    blind = facelit.load(trained.checkpoint, detector=PastedFaces())
    with pytest.raises(NoFaceError, match=r"two\.png: no face was found\. .*aligned"):
        blind.verify(photo, photo, aligned=False)
    with pytest.raises(BadImageError, match=r"two\.png: the image is 300x180.*aligned=False"):
        model.embed(photo)


@pytest.mark.parametrize(
    "crops",
    [
        *(np.full((112, 112, 3), value, np.float32) for value in (-1, 256, np.nan)),
        *(np.zeros(shape, np.uint8) for shape in ((112, 112, 5), (112,), (1, 1, 112, 112, 3), (112, 0, 3))),
        *(np.zeros((112, 112, 3), dtype) for dtype in (bool, complex)),
        *(np.full((112, 112, 3), value, np.int64) for value in (-1, 256)),
        *(None, 3, {"a": 1}, [[0, 1], [2, 3]], Image.fromarray(np.zeros((112, 112), np.float32))),
    ],
)
def test_what_is_no_image_is_refused_in_one_line(model: FaceModel, crops: Any) -> None:
    for call in (
        lambda: model.embed(crops),
        lambda: model.verify(crops, crops, threshold=0),
        lambda: model.enrol({"a": crops}),
    ):
        with pytest.raises(FacelitError, match=r"An image is a path|crops must be uint8 RGB of shape"):
            call()


def test_crops_of_another_size_are_refused(model: FaceModel) -> None:
    for crops in (np.zeros((1, 96, 112, 3), np.uint8), torch.zeros(3, 96, 112), Image.new("L", (112, 96))):
        with pytest.raises(FacelitError, match=r"uint8 RGB of shape \(N, 112, 112, 3\), not"):
            model.embed(crops)


def test_whatever_holds_the_same_picture(model: FaceModel, paths: list[Path]) -> None:
    """PIL images, tensors, floats, bytes: the embedding is the file's."""
    pixels = read(paths[0])[0]
    chw = torch.from_numpy(pixels).permute(2, 0, 1)
    alpha = np.concatenate([pixels, np.full((112, 112, 1), 255, np.uint8)], axis=2)
    expected = model.embed(paths[0])
    for image in (
        *(str(paths[0]), paths[0].read_bytes(), Image.open(paths[0]), pixels, alpha, pixels.transpose(2, 0, 1)),
        *(pixels / 255, (pixels / 255).astype(np.float32), pixels.astype(np.float64), pixels.astype(np.uint16) * 257),
        *(pixels.astype(np.int64), chw.int()),
        *(chw, chw / 255, chw.permute(1, 2, 0), chw[None], (chw / 255).double().requires_grad_()),
    ):
        for one in (image, [image]) if getattr(image, "ndim", 3) < 4 else (image,):
            np.testing.assert_allclose(model.embed(one), expected, atol=1e-6)
    grey = pixels[..., 1]
    expected = model.embed(np.repeat(grey[..., None], 3, axis=2))
    for image in (
        grey,
        grey[..., None],
        Image.fromarray(grey),
        Image.fromarray(grey).convert("I"),  # bytes in 32 bits: a shade of black, where 16 are assumed
        torch.from_numpy(grey.copy()),
        torch.from_numpy(grey[None] / 255),
    ):
        np.testing.assert_allclose(model.embed(image), expected, atol=1e-6)
    assert model.verify(Image.open(paths[0]), chw / 255, threshold=0.99).same
    with paths[0].open("rb") as file:
        np.testing.assert_allclose(model.embed(file), model.embed([io.BytesIO(paths[0].read_bytes())]), atol=1e-6)
    several = model.embed(paths[:2])
    for images in (
        (path for path in paths[:2]),
        map(str, paths[:2]),
        np.array(paths[:2]),
        np.array([str(path) for path in paths[:2]]),
        dict.fromkeys(paths[:2]).keys(),
        dict(enumerate(paths[:2])).values(),
        Column(paths[:2]),
    ):
        np.testing.assert_allclose(model.embed(images), several, atol=1e-6)
    assert model.embed(Image.open(paths[0]), aligned=True).shape == (1, expected.shape[1])


def test_people_in_a_dict(model: FaceModel, paths: list[Path]) -> None:
    """One photo each need no list: a path was taken for a list of letters."""
    gallery = model.enrol(
        {"a": str(paths[0]), "b": Image.open(paths[3]), "c": [paths[6], read(paths[7])[0]]}, template="all"
    )
    assert gallery.names == ["a", "b", "c"]
    assert gallery.owners.tolist() == [0, 1, 2, 2]
    assert model.enrol({7: paths[0], np.int64(8): paths[3]}).names == ["7", "8"]
    assert model.enrol(Column([("a", paths[0]), ("b", paths[3])])).names == ["a", "b"]
    rows = Column([("a", paths[0]), ("b", paths[3]), ("a", paths[1])])  # one for each photo
    expected = model.enrol({"a": paths[:2], "b": paths[3]})
    np.testing.assert_array_equal(model.enrol(rows).embeddings, expected.embeddings)


def test_slips_in_calls_are_told(model: FaceModel, paths: list[Path]) -> None:
    """What a type checker would say; without one `which`, `template` and `on_bad_photo` were taken for another value in silence."""
    one = paths[0]
    slips: list[tuple[Callable[[Any], object], Any, str]] = [
        (lambda which: model.embed(one, which=which), "big", "option which: one of largest, central, all, not 'big'"),
        (
            lambda how: model.enrol({"a": one}, template=how),
            "median",
            "option template: one of mean, all, not 'median'",
        ),
        (
            lambda how: model.enrol({"a": one}, on_bad_photo=how),
            "no",
            "option on_bad_photo: one of error, skip, not 'no'",
        ),
        (lambda name: model.enrol({name: one}), None, "people: None is not a name"),
        (lambda name: model.enrol({name: one}), "", "people: '' is not a name"),
        (model.enrol, [one], "people: a folder .*, not list"),
        (lambda gallery: model.identify(one, gallery, threshold=0), "people", "gallery: what enrol .* gives, not str"),
        (
            lambda limit: model.verify(one, one, threshold=limit),
            "high",
            "option threshold: must be between .* not high",
        ),
    ]
    for call, given, message in slips:
        with pytest.raises(FacelitError, match=message):
            call(given)
    assert model.verify(one, one, threshold=np.float32(0.5)).same


def test_files_that_are_not_open_for_bytes(model: FaceModel, paths: list[Path]) -> None:
    with paths[0].open(encoding="utf-8") as text, NamedTemporaryFile() as wrapped:
        with pytest.raises(FacelitError, match=r"the open file: cannot be read .*open\(path, 'rb'\)"):
            model.embed(text)
        wrapped.write(paths[0].read_bytes())
        wrapped.seek(0)
        np.testing.assert_allclose(model.embed(wrapped), model.embed(paths[0]), atol=1e-6)
    with pytest.raises(FacelitError, match=r"the open file: cannot be read .*closed"):
        model.embed(text)


def test_loading_leaves_the_random_state_alone(trained: TrainedRun) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    facelit.load(trained.checkpoint)
    assert torch.equal(torch.get_rng_state(), before)


def test_nothing_is_downloaded(trained: TrainedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that training started from ImageNet's weights has its own by now."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a download")

    monkeypatch.setattr("facelit.backbones.vgg._imagenet_features", refuse)
    path = trained.changed(tmp_path / "i.ckpt", hyper_parameters__backbone__init_args__weights="imagenet")
    assert facelit.load(path).embed(read(trained.crop(0, 1))).shape == (1, 16)


@pytest.mark.parametrize(
    "class_path",
    [
        "os.system",
        "torch.nn.Linear",
        "facelit.storage.processes.default_jobs",
        "facelit.nowhere.Net",
        "facelit.backbones.nn",
        "facelit.training.recognizer.LightningModule",
        "Net",
        "facelit.optim.CenterSGD",
    ],
)
def test_a_strange_class_is_refused_unless_handed_over(trained: TrainedRun, tmp_path: Path, class_path: str) -> None:
    path = trained.changed(tmp_path / "strange.ckpt", hyper_parameters__backbone__class_path=class_path)
    with pytest.raises(FacelitError, match="which is not part of facelit"):
        facelit.load(path)
    backbone = VGG16(embedding_dim=16, batch_norm=True, width=0.01)
    found = facelit.load(path, backbone=backbone).embed(read(trained.crop(0, 1)))
    np.testing.assert_allclose(found, unit(trained.embed(read(trained.crop(0, 1)))), atol=2e-6)


def test_what_does_not_fit_is_named(trained: TrainedRun, tmp_path: Path) -> None:
    with pytest.raises(FacelitError, match="checkpoint not found"):
        facelit.load(tmp_path / "absent.ckpt")
    with pytest.raises(FacelitError, match=r"does not say how its backbone is built.*backbone="):
        facelit.load(trained.changed(tmp_path / "a.ckpt", hyper_parameters=...))
    with pytest.raises(FacelitError, match="no backbone in this checkpoint"):
        facelit.load(trained.changed(tmp_path / "b.ckpt", state_dict={"x": torch.zeros(1)}))
    with pytest.raises(FacelitError, match="does not fit its backbone"):
        facelit.load(trained.checkpoint, backbone=VGG16(embedding_dim=8, batch_norm=True, width=0.01))
    wrong = trained.changed(tmp_path / "c.ckpt", hyper_parameters__backbone__init_args={"width": -1})
    with pytest.raises(FacelitError, match=r"VGG16 cannot be built \(width=-1"):
        facelit.load(wrong)
    with pytest.raises(FacelitError, match="option device: nonsense cannot be used"):
        facelit.load(trained.checkpoint, device="nonsense")
    broken = facelit.load(trained.checkpoint)
    next(broken.backbone.parameters()).data.fill_(float("nan"))
    with pytest.raises(FacelitError, match="1 embeddings are NaN or infinite"):
        broken.embed(read(trained.crop(0, 1)))
