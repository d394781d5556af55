"""Reading batches: straight into place, and what stands in for a bad image."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from facelit.data import FaceDataModule, IdentityFolder, gpu_decoding
from facelit.data.batches import TrainBatch, TrainImages, as_tensor
from facelit.data.gpu_decoding import GpuDecoder
from facelit.data.reading import CropReader, EncodedCrops
from facelit.data.samplers import BatchRequest
from facelit.data.sources import IdentitySource
from facelit.errors import FacelitError
from facelit.storage.images import BadImageError, Crop

CPU = torch.device("cpu")


class Flat(IdentitySource):
    """Image i is a crop of value i; some cannot be read."""

    def __init__(self, labels: Sequence[int], bad: Sequence[int] = ()) -> None:
        self._labels = np.array(labels, np.int32)
        self.bad = set(bad)

    @property
    def labels(self) -> npt.NDArray[np.int32]:
        return self._labels

    @property
    def identities(self) -> list[str]:
        return [str(number) for number in range(self._labels.max() + 1)]

    def image(self, index: int) -> Crop:
        if index in self.bad:
            raise BadImageError(self.name(index), "is broken")
        return np.full((112, 112, 3), index, np.uint8)

    def name(self, index: int) -> str:
        return f"image {index}"


def values(images: object) -> list[int]:
    assert isinstance(images, np.ndarray)
    assert (images == images[:, :1, :1, :1]).all()
    return images[:, 0, 0, 0].tolist()


def test_bad_images_are_errors_that_name_the_way_out() -> None:
    reader = CropReader(Flat([0, 0, 1, 1], bad=[2]))
    with pytest.raises(BadImageError, match=r"image 2: is broken.*--data\.on_bad_image skip"):
        reader.read(np.array([0, 2]))


def test_another_image_of_the_identity_stands_in() -> None:
    reader = CropReader(Flat([0, 0, 0, 1, 1, 2], bad=[1, 4]), "skip")
    batch = reader.read(np.array([1, 4, 5, 0]))
    assert values(batch.images) == [2, 3, 5, 0]
    assert batch.labels.tolist() == [0, 1, 2, 0]
    assert batch.labels.dtype == np.int64
    assert batch.bad == (("image 1", "is broken"), ("image 4", "is broken"))


def test_unsorted_labels() -> None:
    batch = CropReader(Flat([2, 0, 1, 0, 2, 0], bad=[3]), "skip").read(np.array([3]))
    assert values(batch.images) == [5]
    assert batch.labels.tolist() == [0]


def test_a_whole_identity_that_is_bad_gives_way_to_the_next() -> None:
    batch = CropReader(Flat([0, 0, 1, 1, 2], bad=[2, 3]), "skip").read(np.array([3]))
    assert values(batch.images) == [4]
    assert batch.labels.tolist() == [2]
    assert [place for place, _ in batch.bad] == ["image 3", "image 2"]


@given(labels=st.lists(st.integers(0, 4), min_size=1, max_size=20), ascending=st.booleans(), data=st.data())
def test_the_order_of_stand_ins(labels: list[int], ascending: bool, data: st.DataObject) -> None:
    """The identity's next images, round to its first, then the others that follow, round to the set's first."""
    labels = sorted(labels) if ascending else labels
    index = data.draw(st.integers(0, len(labels) - 1))
    circle = [(index + step) % len(labels) for step in range(1, len(labels))]
    own = [number for number in circle if labels[number] == labels[index]]
    others = [number for number in circle if labels[number] != labels[index]]
    assert list(CropReader(Flat(labels), "skip")._candidates(index)) == own + others


class Watched(np.ndarray):
    """Counts comparisons with all labels."""

    comparisons = 0

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: object, **options: object) -> object:
        Watched.comparisons += 1
        plain = [np.asarray(one) if isinstance(one, Watched) else one for one in inputs]
        return getattr(ufunc, method)(*plain, **options)


def test_ascending_labels_are_looked_through_once() -> None:
    source = Flat([0, 0, 1, 1, 2, 2], bad=[1, 3, 5])
    source._labels = source._labels.view(Watched)
    Watched.comparisons = 0
    assert values(CropReader(source, "skip").read(np.array([1, 3, 5])).images) == [0, 2, 4]
    assert Watched.comparisons == 1


def test_nothing_left_to_read() -> None:
    with pytest.raises(FacelitError, match="Is the disk"):
        CropReader(Flat([0, 0, 1], bad=[0, 1, 2]), "skip").read(np.array([1]))


@pytest.fixture(scope="module")
def crops(tmp_path_factory: pytest.TempPathFactory) -> IdentityFolder:
    """Colour, grey and progressive JPEGs and a PNG."""
    root = tmp_path_factory.mktemp("crops")
    rng = np.random.default_rng(0)
    for identity in ("a", "b"):
        (root / identity).mkdir()
        for number in range(4):
            smooth = rng.integers(0, 255, (7, 7, 3), dtype=np.uint8)
            image = Image.fromarray(smooth).resize((112, 112), Image.Resampling.BICUBIC)
            if number == 1:
                image = image.convert("L")
            suffix, options = ("png", {}) if number == 2 else ("jpg", {"progressive": number == 3})
            image.save(root / identity / f"{number}.{suffix}", **options)
    return IdentityFolder(root)


def test_read_into_gives_the_pixels_of_image(crops: IdentityFolder) -> None:
    """The fast way, into the batch, against PIL."""
    batch = CropReader(crops).read(np.arange(8))
    assert isinstance(batch.images, np.ndarray)
    for index in range(8):
        expected = np.asarray(Image.open(crops.name(index)).convert("RGB"))
        np.testing.assert_array_equal(batch.images[index], expected)
        np.testing.assert_array_equal(crops.image(index), expected)


def test_decoding_on_the_device(crops: IdentityFolder) -> None:
    """With the CPU in the GPU's place, torchvision's decoder gives what the workers' gives."""
    request = BatchRequest(np.array([5, 0, 2, 3, 1]), 0, 5)
    reader = CropReader(crops)
    encoded = TrainImages(reader, seed=1, encoded=True)[request]
    assert isinstance(encoded.images, EncodedCrops)
    assert [type(file) for file in encoded.images.files] == [np.ndarray, bytes, np.ndarray, bytes, np.ndarray]
    decoder = GpuDecoder(reader, CPU)
    assert decoder.name == "torchvision"
    decoded = decoder.decode(encoded, encoded.images)
    plain = TrainImages(reader, seed=1)[request]
    assert isinstance(decoded.images, torch.Tensor)
    assert isinstance(plain.images, torch.Tensor)
    assert (decoded.images.int() - plain.images.int()).abs().max() <= 1
    assert decoded.images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(decoded.labels, plain.labels)
    assert torch.equal(decoded.draws, plain.draws)


def test_what_the_device_cannot_decode_is_read_again(crops: IdentityFolder, tmp_path: Path) -> None:
    """A JPEG whose head is sound and whose data is not: named, or replaced."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(2):
            (tmp_path / name / f"{number}.jpg").write_bytes(bytes(crops.encoded(0)))
    good = (tmp_path / "a" / "0.jpg").read_bytes()
    (tmp_path / "a" / "0.jpg").write_bytes(good[:-200])
    broken = IdentityFolder(tmp_path)
    request = BatchRequest(np.arange(4), 0, 4)
    strict = CropReader(broken)
    batch = TrainImages(strict, 0, encoded=True)[request]
    assert isinstance(batch.images, EncodedCrops)
    with pytest.raises(BadImageError, match=r"a/0\.jpg"):
        GpuDecoder(strict, CPU).decode(batch, batch.images)
    lenient = GpuDecoder(CropReader(broken, "skip"), CPU).decode(batch, batch.images)
    assert isinstance(lenient.images, torch.Tensor)
    assert torch.equal(lenient.images[0], as_tensor(broken.image(1)[None])[0])
    assert [place for place, _ in lenient.bad] == [broken.name(0)]


def with_decoder(monkeypatch: pytest.MonkeyPatch, decode: gpu_decoding.Decode) -> None:
    """One that takes TorchCodec's place."""
    monkeypatch.setattr(gpu_decoding, "_torchcodec", lambda: decode)


def failing_after_the_first(error: RuntimeError) -> gpu_decoding.Decode:
    calls: list[int] = []

    def decode(jpegs: list[bytes], device: torch.device) -> list[torch.Tensor]:
        calls.append(len(jpegs))
        if len(calls) > 1:
            raise error
        return [torch.zeros(3, 112, 112, dtype=torch.uint8, device=device)]

    return decode


def test_a_decoder_that_fails_for_no_reason_is_named_once(
    crops: IdentityFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with_decoder(monkeypatch, failing_after_the_first(RuntimeError("nvjpeg is busy\nand so on")))
    reader = CropReader(crops)
    decoder = GpuDecoder(reader, CPU)
    batch = TrainImages(reader, 0, encoded=True)[BatchRequest(np.arange(4), 0, 4)]
    assert isinstance(batch.images, EncodedCrops)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            decoded = decoder.decode(batch, batch.images)
            assert torch.equal(decoded.images, TrainImages(reader, 0)[BatchRequest(np.arange(4), 0, 4)].images)
    (record,) = caplog.records
    assert "TorchCodec failed to decode" in record.message
    assert "(nvjpeg is busy)" in record.message


def test_a_full_device_is_not_taken_for_a_broken_image(crops: IdentityFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    with_decoder(monkeypatch, failing_after_the_first(torch.OutOfMemoryError("full")))
    reader = CropReader(crops)
    decoder = GpuDecoder(reader, CPU)
    batch = TrainImages(reader, 0, encoded=True)[BatchRequest(np.arange(4), 0, 4)]
    assert isinstance(batch.images, EncodedCrops)
    with pytest.raises(torch.OutOfMemoryError):
        decoder.decode(batch, batch.images)


def test_without_a_decoder_the_start_says_what_is_missing(
    crops: IdentityFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent() -> gpu_decoding.Decode:
        raise ImportError("No module named 'torchcodec'")

    monkeypatch.setattr(gpu_decoding, "_torchcodec", absent)
    # The "meta" device stands in for a GPU that this torchvision was built without.
    monkeypatch.setattr(gpu_decoding, "_torchvision", lambda: lambda jpegs, _: [torch.zeros(3, 112, 112)])
    with pytest.raises(FacelitError) as caught:
        GpuDecoder(CropReader(crops), torch.device("meta"))
    message = str(caught.value)
    assert "decode_on_gpu" in message
    assert "TorchCodec: No module named 'torchcodec'" in message
    assert "torchvision: returns pixels (3, 112, 112) on cpu" in message
    assert "pip install" in message


def test_exif_goes_to_the_workers(tmp_path: Path) -> None:
    """TorchCodec would turn it, as the CPU does; torchvision would not."""
    pixels = Image.fromarray(np.linspace(0, 255, 112 * 112 * 3).astype(np.uint8).reshape(112, 112, 3))
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        pixels.save(tmp_path / name / "plain.jpg")
        pixels.save(tmp_path / name / "turned.jpg", exif=exif)
    reader = CropReader(IdentityFolder(tmp_path))
    encoded, plain = reader.read_encoded(np.arange(4)).images, reader.read(np.arange(4)).images
    assert isinstance(encoded, EncodedCrops)
    assert [type(file) for file in encoded.files] == [bytes, np.ndarray] * 2
    np.testing.assert_array_equal(encoded.files[1], plain[1])
    np.testing.assert_array_equal(plain[1], np.rot90(plain[0], -1))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"max_bad_share": 7.0}, r"max_bad_share.*0 to 1.*got 7\.0"),
        ({"max_bad_share": -1.0}, r"max_bad_share.*got -1\.0"),
        ({"max_bad_share": float("nan")}, "max_bad_share.*got nan"),
        ({"on_bad_image": "ignore"}, "on_bad_image.*error, skip.*got ignore"),
        ({"num_workers": -2}, "num_workers.*got -2"),
    ],
)
def test_options_out_of_range(options: dict[str, object], named: str) -> None:
    with pytest.raises(FacelitError, match=named):
        FaceDataModule(**options)


def test_a_batch_survives_the_way_from_a_worker(crops: IdentityFolder) -> None:
    loader = torch.utils.data.DataLoader(
        TrainImages(CropReader(crops), 3),
        batch_size=None,
        sampler=[BatchRequest(np.array([1, 2]), 0, 2)],
        num_workers=1,
    )
    (batch,) = loader
    assert isinstance(batch, TrainBatch)
    assert not batch.bad
    assert batch.images.shape == (2, 3, 112, 112)
