"""Reading the crops of a batch, and what to do with the ones that cannot be read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import simplejpeg

from facelit.data.samplers import Indices
from facelit.data.sources import IdentitySource
from facelit.errors import FacelitError
from facelit.storage.decoding import may_be_turned
from facelit.storage.images import CROP_SIZE, BadImageError, Crop

OnBadImage = Literal["error", "skip"]
_TRIES = 1000


class BadImage(NamedTuple):
    """An image that was left out of a batch: where it lies, and what is wrong with it."""

    place: str
    reason: str


class EncodedCrops:
    """A batch that is still to be decoded, on a GPU.

    Neither Lightning nor pinning touches it: the decoder takes its input from CPU memory.

    Args:
        indices: Image numbers, int64 (N,).
        files: N JPEG files' bytes; or the pixels, uint8 (112, 112, 3), of an image that is not a plain JPEG.
    """

    def __init__(self, indices: Indices, files: list[bytes | Crop]) -> None:
        self.indices = indices
        self.files = files


class BatchOfCrops(NamedTuple):
    """What a reader makes of image numbers.

    Attributes:
        images: uint8 (N, 112, 112, 3), or what a GPU makes that of.
        labels: int64 (N,).
        bad: What was replaced.
    """

    images: npt.NDArray[np.uint8] | EncodedCrops
    labels: npt.NDArray[np.int64]
    bad: tuple[BadImage, ...]


class CropReader:
    """Reads the crops of a batch from a source.

    Where an image cannot be read and may be skipped, another of the same identity stands in (if it has none that can be read, the
    next image of the set), so that batches keep their size: always the same one, whatever the number of workers.

    Args:
        source: Where crops come from.
        on_bad_image: "error" raises, "skip" replaces.
    """

    def __init__(self, source: IdentitySource, on_bad_image: OnBadImage = "error") -> None:
        self.source = source
        self.on_bad_image = on_bad_image
        self._ascending: bool | None = None

    def read(self, indices: Indices) -> BatchOfCrops:
        """Reads and decodes.

        Args:
            indices: Image numbers, int64 (N,).

        Raises:
            BadImageError: An image cannot be read, and is not to be skipped.
            FacelitError: Nothing near it can be read either.
        """
        images = np.empty((len(indices), CROP_SIZE, CROP_SIZE, 3), np.uint8)
        labels = self.source.labels[indices].astype(np.int64)
        bad: list[BadImage] = []
        for position, index in enumerate(indices.tolist()):
            try:
                self.source.read_into(index, images[position])
            except BadImageError as error:
                labels[position] = self._replace(index, images[position], error, bad)
        return BatchOfCrops(images, labels, tuple(bad))

    def read_encoded(self, indices: Indices) -> BatchOfCrops:
        """Reads without decoding what a GPU can decode; arguments and errors are those of `read`."""
        files: list[bytes | Crop] = []
        labels = self.source.labels[indices].astype(np.int64)
        bad: list[BadImage] = []
        for position, index in enumerate(indices.tolist()):
            try:
                data = bytes(self.source.encoded(index))
                if _is_plain_jpeg(data):
                    files.append(data)
                    continue
            except BadImageError:
                pass  # read once more below, where it is dealt with
            one = self.read(np.array([index]))
            assert isinstance(one.images, np.ndarray)
            files.append(one.images[0])
            labels[position] = one.labels[0]
            bad += one.bad
        return BatchOfCrops(EncodedCrops(indices, files), labels, tuple(bad))

    def _replace(self, index: int, out: Crop, error: BadImageError, bad: list[BadImage]) -> int:
        """Puts another image in a bad one's place; returns its label."""
        if self.on_bad_image == "error":
            raise BadImageError(
                error.place,
                error.reason,
                f"{error.way_out} To go on without such images: --data.on_bad_image skip (`facelit check` finds them all).",
            ) from None
        bad.append(BadImage(error.place, error.reason))
        for candidate in self._candidates(index):
            try:
                self.source.read_into(candidate, out)
            except BadImageError as other:
                bad.append(BadImage(other.place, other.reason))
            else:
                return int(self.source.labels[candidate])
        raise FacelitError(
            f"{error.place}: {error.reason}; and none of {_TRIES} images that could stand in for it can be read either. Is the disk"
            " still there?"
        )

    def _candidates(self, index: int) -> Iterator[int]:
        """The rest of the identity, then what follows in the set; each round."""
        labels = self.source.labels
        same = self._of_the_same_identity(index)
        own = np.roll(same, -int(np.searchsorted(same, index)))[1:]
        yield from own[:_TRIES].tolist()
        following = (index + np.arange(1, min(len(labels), _TRIES))) % len(labels)
        yield from np.setdiff1d(following, same, assume_unique=True).tolist()

    def _of_the_same_identity(self, index: int) -> Indices:
        """Image numbers, ascending; without a look at all labels where these ascend, as a folder's do."""
        labels = self.source.labels
        if self._ascending is None:
            self._ascending = bool((labels[:-1] <= labels[1:]).all())
        if not self._ascending:
            return np.flatnonzero(labels == labels[index])
        return np.arange(labels.searchsorted(labels[index]), labels.searchsorted(labels[index], side="right"))


def _is_plain_jpeg(data: bytes) -> bool:
    """Whether a GPU decodes it to the same crop: a colour JPEG of the right size, that no decoder might turn.

    TorchCodec turns images as Exif says, as the CPU's decoders do, but torchvision does not: a file with Exif or XMP data is left to the CPU.
    """
    if may_be_turned(data):
        return False
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return False
    return bool((height, width, colours) == (CROP_SIZE, CROP_SIZE, "YCbCr"))
