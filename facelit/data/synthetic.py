"""Built-in faces: a procedural training set and verification set, for a first run without downloads.

They are drawings. A network that tells them apart has learned nothing about people, but shows that everything works.
"""

from __future__ import annotations

import math
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from rich.progress import track

from facelit.data.sources import IdentitySource, VerificationSource
from facelit.errors import FacelitError
from facelit.pictures.drawn_faces import FaceKey, draw_face, draw_faces
from facelit.storage.images import CROP_SIZE, Crop

_HELD_OUT = 1_000_000
"""The number of the first verification identity: training sets stay below."""
_WORTH_A_BAR = 500
"""Fewer images than this are drawn without a progress bar."""
_WORTH_A_POOL = 1000
"""Fewer images than this, of 7 ms each, are not worth further processes."""
_CHUNK = 100
"""The number of images that a process draws at a time."""


class SyntheticFaces(IdentitySource):
    """Drawn faces to train on.

    Args:
        num_identities: The number of people.
        images_per_identity: The number of images of each.
        seed: The random seed; each seed has its own people.

    Raises:
        ValueError: A number is out of range.
    """

    def __init__(self, num_identities: int = 200, images_per_identity: int = 20, seed: int = 0) -> None:
        if not 2 <= num_identities <= _HELD_OUT or images_per_identity < 1:
            raise ValueError(
                f"SyntheticFaces needs 2 to {_HELD_OUT} identities of at least 1 image, not {num_identities} of"
                f" {images_per_identity}"
            )
        self.images_per_identity = images_per_identity
        self.seed = seed
        self._names = [_identity_name(number) for number in range(num_identities)]
        self._labels = np.repeat(np.arange(num_identities, dtype=np.int64), images_per_identity)
        self._drawn: npt.NDArray[np.uint8] | None = None

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """The identity number of each image, int64 (num_images,)."""
        return self._labels

    @property
    def identities(self) -> Sequence[str]:
        """`synthetic_00000000`, ..."""
        return self._names

    def image(self, index: int) -> Crop:
        """Image `index`, uint8 RGB (112, 112, 3)."""
        return draw_face(*self._key(index)) if self._drawn is None else self._drawn[index]

    def name(self, index: int) -> str:
        """The name that the image's file would have."""
        _, identity, image = self._key(index)
        return _image_name(identity, image)

    def prepare(self) -> None:
        """Draws all images once, into memory."""
        if self._drawn is None:
            self._drawn = _draw_all([self._key(index) for index in range(len(self))])

    def _key(self, index: int) -> FaceKey:
        identity, image = divmod(index, self.images_per_identity)
        return self.seed, identity, image


class SyntheticPairs(VerificationSource):
    """Pairs of drawn faces, of people that no `SyntheticFaces` contains, in LFW's fold format.

    Like LFW's, folds share no people. In each fold the genuine pairs precede the impostor pairs.

    Args:
        folds: The number of folds.
        pairs_per_fold: The number of genuine pairs in each fold, and of impostor pairs.
        images_per_identity: The number of images of each person to draw pairs from.
        seed: The random seed; each seed has its own people.

    Raises:
        ValueError: A number is too small.
    """

    def __init__(self, folds: int = 10, pairs_per_fold: int = 100, images_per_identity: int = 4, seed: int = 0) -> None:
        if folds < 2 or pairs_per_fold < 2 or images_per_identity < 2:
            raise ValueError("SyntheticPairs needs at least 2 folds, 2 pairs per fold and 2 images per identity")
        rng = np.random.default_rng([seed, _HELD_OUT])
        people = _people_per_fold(pairs_per_fold, images_per_identity)
        rows = [
            _fold_pairs(rng, np.arange(people) + fold * people, pairs_per_fold, images_per_identity)
            for fold in range(folds)
        ]
        keys, places = np.unique(np.concatenate(rows).reshape(-1, 2), axis=0, return_inverse=True)
        pairs = places.reshape(-1, 2)
        self._keys: list[FaceKey] = [(seed, _HELD_OUT + int(person), int(image)) for person, image in keys]
        self._drawn: npt.NDArray[np.uint8] | None = None
        super().__init__(
            names=[_image_name(identity, image) for _, identity, image in self._keys],
            first=pairs[:, 0].astype(np.int64),
            second=pairs[:, 1].astype(np.int64),
            is_same=np.tile(np.repeat([True, False], pairs_per_fold), folds),
            folds=np.repeat(np.arange(1, folds + 1), 2 * pairs_per_fold),
        )

    def image(self, number: int) -> Crop:
        """Image `number`, uint8 RGB (112, 112, 3)."""
        return draw_face(*self._keys[number]) if self._drawn is None else self._drawn[number]

    def prepare(self) -> None:
        """Draws all images once, into memory."""
        if self._drawn is None:
            self._drawn = _draw_all(self._keys)


def is_drawn(source: object) -> bool:
    """Whether a training or verification set consists of drawings: what is learned or measured on it does not hold for photos."""
    return isinstance(source, SyntheticFaces | SyntheticPairs)


def write_identity_tree(faces: SyntheticFaces, root: Path) -> Path:
    """Writes a training set as `root/<identity>/<image>.png`, VGGFace2's layout; returns `root`."""
    for index in range(len(faces)):
        _write(faces.image(index), root / faces.name(index))
    return root


def write_lfw_tree(pairs: SyntheticPairs, root: Path) -> Path:
    """Writes a verification set in LFW's layout, `root/<Name>/<Name>_0001.png`, with `root/pairs.txt`.

    Returns:
        The pairs file's path.
    """
    for number, name in enumerate(pairs.names):
        _write(pairs.image(number), root / name)
    num_folds = len(np.unique(pairs.folds))
    rows = [f"{num_folds}\t{len(pairs.folds) // num_folds // 2}"]
    for first, second, same in zip(pairs.first, pairs.second, pairs.is_same, strict=True):
        (name, number), (other, other_number) = (_split_name(pairs.names[image]) for image in (first, second))
        columns = (name, number, other_number) if same else (name, number, other, other_number)
        rows.append("\t".join(map(str, columns)))
    path = root / "pairs.txt"
    path.write_text("\n".join(rows) + "\n")
    return path


def _people_per_fold(count: int, images: int) -> int:
    """Half as many people as genuine pairs, or more if needed for distinct genuine pairs."""
    return max(2, count // 2, math.ceil(count / math.comb(images, 2)))


def _fold_pairs(
    rng: np.random.Generator, people: npt.NDArray[np.int64], count: int, images: int
) -> npt.NDArray[np.int64]:
    """Distinct genuine, then impostor pairs as rows ((person, image), (person, image)): (2 * count, 2, 2)."""
    one, other = np.triu_indices(images, 1)
    person, shots = np.divmod(rng.choice(len(people) * len(one), count, replace=False), len(one))
    genuine = np.stack([people[person], one[shots], people[person], other[shots]], 1)
    left, right = np.triu_indices(len(people), 1)
    couple, shots = np.divmod(rng.choice(len(left) * images**2, count, replace=False), images**2)
    impostor = np.stack([people[left[couple]], shots // images, people[right[couple]], shots % images], 1)
    return np.concatenate([genuine, impostor]).reshape(-1, 2, 2)


def _draw_all(keys: list[FaceKey]) -> npt.NDArray[np.uint8]:
    """Draws all images, (num_images, 112, 112, 3); if there are many, with a progress bar and on all cores."""
    drawn = np.empty((len(keys), CROP_SIZE, CROP_SIZE, 3), np.uint8)
    chunks = [keys[start : start + _CHUNK] for start in range(0, len(keys), _CHUNK)]
    done = 0
    with ExitStack() as stack:
        drawings = _drawings(chunks, stack, min(8, os.cpu_count() or 1))
        quiet = len(keys) < _WORTH_A_BAR
        try:
            for images in track(drawings, "Drawing faces", total=len(chunks), transient=True, disable=quiet):
                drawn[done : done + len(images)] = images
                done += len(images)
        except BrokenProcessPool as error:
            raise FacelitError(
                "the processes that draw the built-in faces died. In your own script, put the code to run under"
                ' `if __name__ == "__main__":`; otherwise the machine may be short of memory.'
            ) from error
    return drawn


def _drawings(chunks: list[list[FaceKey]], stack: ExitStack, workers: int) -> Iterator[npt.NDArray[np.uint8]]:
    if workers == 1 or len(chunks) * _CHUNK < _WORTH_A_POOL:
        return map(draw_faces, chunks)
    # Not forked: torch and Lightning may have started threads by now. What draws imports neither.
    spawn = multiprocessing.get_context("spawn")
    return stack.enter_context(ProcessPoolExecutor(workers, mp_context=spawn)).map(draw_faces, chunks)


def _identity_name(identity: int) -> str:
    return f"synthetic_{identity:08d}"


def _image_name(identity: int, image: int) -> str:
    name = _identity_name(identity)
    return f"{name}/{name}_{image + 1:04d}.png"


def _split_name(path: str) -> tuple[str, int]:
    """Splits `name/name_0001.png` into name and number."""
    name, _, number = Path(path).stem.rpartition("_")
    return name, int(number)


def _write(image: Crop, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
