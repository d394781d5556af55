"""`facelit.load` turns a checkpoint into an object that embeds, verifies and identifies."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from facelit.backbones.pieces import embed_in_pieces
from facelit.checkpoints import CHECKPOINT_KEY, read_checkpoint
from facelit.errors import FacelitError
from facelit.inference.checkpoint import restore_backbone
from facelit.inference.drawings import Drawings, find_drawings
from facelit.inference.enrolment import OnBadPhoto, People, as_people, enrol
from facelit.inference.gallery import Gallery, Match, Template
from facelit.inference.photos import Crops, FaceFinder, FoundFaces, Photo, Which, as_photos, check_crops, place_of
from facelit.inference.thresholds import Threshold, averages_mirror_images, choose_threshold
from facelit.storage.images import CROP_SIZE
from facelit.verification.embeddings import cosine_scores

if TYPE_CHECKING:
    from facelit.align import Detector

Embeddings = npt.NDArray[np.float32]


class Verdict(NamedTuple):
    """Whether two photos show the same person.

    `score` is their cosine similarity, `same` whether it is at least `threshold`; `far` is the share of impostor pairs that
    this threshold accepted on the verification set `measured_on` (both None for a threshold set by the caller), and `details`
    is everything known about the threshold.
    """

    score: float
    same: bool
    threshold: float
    far: float | None
    measured_on: str | None
    details: Threshold


class Identification(NamedTuple):
    """Who is in a photo.

    `matches` are the most similar people in the gallery, best first; `identity` is the name of the first, or None (unknown) if
    its score is below the threshold. `photo` is the index of the photo, `face` the index of the face in it, both from 0.
    """

    photo: int
    face: int
    identity: str | None
    matches: list[Match]
    threshold: Threshold


def load(
    checkpoint: str | Path,
    device: str | torch.device | None = None,
    backbone: nn.Module | None = None,
    detector: Detector | None = None,
) -> FaceModel:
    """Loads a trained network for inference, without Lightning; nothing is downloaded, and no code in the file is executed.

    Args:
        checkpoint: A `.ckpt` that `fit` wrote.
        device: The device for the network, for example "cpu" or "cuda"; by default a GPU if there is one.
        backbone: The network itself, if its class is not part of facelit; its weights come from the checkpoint.
        detector: Finds faces in unaligned photos; by default `facelit.align.open_detector()`, opened when first needed.

    Raises:
        FacelitError: The file does not exist, is damaged or not a checkpoint of facelit's, its network is unknown, or there is
            no such device.
    """
    path = Path(checkpoint)
    content = read_checkpoint(path)
    network = restore_backbone(content, str(path), backbone)
    # As in training: another memory layout rounds differently.
    channels_last = bool(content.get("hyper_parameters", {}).get("channels_last", True))
    if channels_last:
        network = network.to(memory_format=torch.channels_last)
    calibration = content.get(CHECKPOINT_KEY, {}).get("calibration", {})
    step = int(content.get("global_step", 0))
    drawings = find_drawings(content, path)
    return FaceModel(_move(network, device), path, calibration, step, channels_last, detector, drawings)


class FaceModel:
    """A trained network with the thresholds of its checkpoint. Created by `facelit.load`.

    Attributes:
        backbone: Maps float images in [-1, 1], (N, 3, 112, 112), to embeddings (N, D), not normalised; eval mode, float32.
        checkpoint_path: The file it was loaded from.
        calibration: Thresholds by verification set, see `facelit.verification.calibration`; empty if the checkpoint has none.
        step: The training step of the weights.
        channels_last: Whether images are in the channels-last memory format, as in training.
        finder: Finds the faces in photos that are not aligned.
        drawings: What of it, weights or thresholds, comes from drawn faces and does not hold for photos.
    """

    def __init__(
        self,
        backbone: nn.Module,
        checkpoint_path: Path,
        calibration: dict[str, Any],
        step: int,
        channels_last: bool = True,
        detector: Detector | None = None,
        drawings: Drawings | None = None,
    ) -> None:
        self.drawings = drawings or Drawings()
        self.backbone = backbone
        self.checkpoint_path = checkpoint_path
        self.calibration = calibration
        self.step = step
        self.channels_last = channels_last
        self.finder = FaceFinder(detector)
        self._embedding_dim: int | None = getattr(backbone, "embedding_dim", None)
        self._fingerprint: str | None = None

    @property
    def embedding_dim(self) -> int:
        """The length of an embedding, D."""
        if self._embedding_dim is None:
            self._embedding_dim = int(
                self._embed_batch(np.zeros((1, CROP_SIZE, CROP_SIZE, 3), np.uint8), False).shape[1]
            )
        return self._embedding_dim

    @property
    def flip_average(self) -> bool:
        """Whether the checkpoint's (first set of) thresholds apply to embeddings averaged with the mirror image's."""
        return averages_mirror_images(self.calibration)

    @property
    def fingerprint(self) -> str:
        """A hash of the weights: equal for checkpoints with the same backbone weights, whatever else they contain."""
        if self._fingerprint is None:
            digest = hashlib.sha256()
            for name, value in sorted(self.backbone.state_dict().items()):
                digest.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
                digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
            self._fingerprint = digest.hexdigest()[:32]
        return self._fingerprint

    def embed(
        self,
        images: Photo | Sequence[Photo],
        batch_size: int = 64,
        flip_average: bool = False,
        aligned: bool = True,
        which: Which = "largest",
        normalise: bool = True,
    ) -> Embeddings:
        """Embeds faces.

        Args:
            images: Crops, uint8 RGB (N, 112, 112, 3) or (112, 112, 3); or paths of crops; or photos unless `aligned`. PIL images,
                tensors, grey pixels and floats are converted: `facelit.inference.pixels.to_pixels`.
            batch_size: The number of crops that go through the network at once.
            flip_average: Whether to average each crop's embedding with its mirror image's; see the attribute `flip_average`.
            aligned: Whether the images are aligned crops. Otherwise faces are detected first.
            which: The face to use in a photo that is not aligned: "largest", "central", or "all" (then N counts faces, not
                photos).
            normalise: Whether embeddings get unit length; without, their length is the network's.

        Returns:
            float32 (N, D), L2-normalised unless told otherwise.

        Raises:
            BadImageError: An image cannot be read, is not a crop, or shows no face.
            FacelitError: The array has the wrong type or shape, or the network returns NaN or infinity.
        """
        raw = self._embed_raw(images, batch_size, flip_average, aligned, which)
        return (F.normalize(raw, dim=1) if normalise else raw).numpy()

    def verify(
        self,
        a: Photo,
        b: Photo,
        threshold: float | None = None,
        at: str = "best_accuracy",
        on: str | None = None,
        aligned: bool = True,
        which: Which = "largest",
    ) -> Verdict:
        """Tells whether two photos show the same person.

        The score is computed as in validation: the cosine similarity of the embeddings, averaged with the mirror images' if
        the checkpoint's thresholds were measured that way.

        Args:
            a: A crop, or a photo unless `aligned`: path or pixels.
            b: The other one.
            threshold: The lowest score, between -1 and 1, of a pair that is the same person; by default one of the checkpoint's
                thresholds.
            at: Which of the checkpoint's thresholds: "best_accuracy", "far_1e-2" or "far_1e-3".
            on: The verification set on which that threshold was measured; by default the first.
            aligned: Whether both are crops already.
            which: The face to use in a photo that is not aligned: "largest" or "central".

        Raises:
            FacelitError: There is no such threshold, or a photo cannot be used.
        """
        limit = self.choose_threshold(threshold, at, on)
        flip = averages_mirror_images(self.calibration, on)
        raw = torch.cat([self._embed_raw([photo], 1, flip, aligned, which)[:1] for photo in (a, b)])
        score = float(cosine_scores(raw, np.array([0]), np.array([1]))[0])
        return Verdict(score, score >= limit.value, limit.value, limit.far, limit.measured_on, limit)

    def enrol(
        self,
        people: str | Path | People,
        template: Template = "mean",
        flip_average: bool | None = None,
        aligned: bool = True,
        which: Which = "largest",
        on_bad_photo: OnBadPhoto = "error",
        keep_examples: bool = False,
    ) -> Gallery:
        """Makes a gallery of people to identify.

        Args:
            people: A folder `root/<person>/<photo>` (a photo directly below the root is a person named after the file); or
                photos by name.
            template: How a person with several photos is compared: "mean", by the normalised mean of the normalised embeddings;
                or "all", by the most similar photo.
            flip_average: Whether to average embeddings with the mirror image's; by default as for the checkpoint's thresholds.
            aligned: Whether the photos are crops already.
            which: The face to use in a photo that is not aligned: "largest" or "central".
            on_bad_photo: "error" stops and names the photos that cannot be read or show no face; "skip" leaves them out and
                lists them in the gallery's `skipped`.
            keep_examples: Whether to keep a crop of each person, for pictures.

        Raises:
            FacelitError: There are no photos, or some cannot be used.
        """
        flip = self.flip_average if flip_average is None else flip_average

        def embed(crops: Crops) -> Embeddings:
            return self.embed(crops, flip_average=flip)

        several: dict[str, int] = {}

        def find(photo: Photo) -> Crops:
            found = self.finder.find(photo, aligned, which)
            if found.in_photo > 1:
                several[place_of(photo)] = found.in_photo
            return found.crops[0]

        gallery = enrol(as_people(people), find, embed, template, on_bad_photo, keep_examples, self.fingerprint, flip)
        gallery.several = several
        return gallery

    def identify(
        self,
        photos: Photo | Sequence[Photo],
        gallery: Gallery,
        k: int = 5,
        threshold: float | None = None,
        at: str = "best_accuracy",
        on: str | None = None,
        aligned: bool = True,
        which: Which = "largest",
    ) -> list[Identification]:
        """Tells who is in the photos.

        Args:
            photos: Crops, or photos unless `aligned`: paths or pixels.
            gallery: A gallery made with the same weights.
            k: The most people to list for each face.
            threshold: As in `verify`.
            at: As in `verify`.
            on: As in `verify`.
            aligned: Whether the photos are crops already.
            which: The face to use in a photo that is not aligned: "largest", "central", or "all" for an answer for each face.

        Returns:
            One answer for each face, photo by photo.

        Raises:
            FacelitError: The gallery was made with another network, there is no such threshold, or a photo cannot be used.
        """
        if not isinstance(gallery, Gallery):
            raise FacelitError(f"gallery: what enrol or Gallery.load gives, not {type(gallery).__name__}.")
        gallery.check_fingerprint(self.fingerprint, self.checkpoint_path)
        limit = self.choose_threshold(threshold, at, on)
        if limit.at is not None and averages_mirror_images(self.calibration, on) != gallery.flip_average:
            raise FacelitError(
                f"the thresholds of {limit.measured_on} and the gallery differ in flip_average (averaging with mirror images):"
                " enrol the photos again."
            )
        answers = []
        for number, photo in enumerate(as_photos(photos)):
            queries = self._embed_raw([photo], 64, gallery.flip_average, aligned, which).numpy()
            for face, matches in enumerate(gallery.search(queries, k)):
                known = bool(matches) and matches[0].score >= limit.value
                answers.append(Identification(number, face, matches[0].name if known else None, matches, limit))
        return answers

    def choose_threshold(
        self, threshold: float | None = None, at: str = "best_accuracy", on: str | None = None
    ) -> Threshold:
        """Returns the threshold that `verify` and `identify` would use with these arguments, and how it was measured."""
        return choose_threshold(self.calibration, threshold, at, on, self.checkpoint_path)

    def find_faces(self, photo: Photo, aligned: bool = False, which: Which = "largest") -> FoundFaces:
        """Returns the crops of a photo's faces, and how many faces there are; see `FaceFinder.find`."""
        return self.finder.find(photo, aligned, which)

    def _embed_raw(
        self, images: Photo | Sequence[Photo], batch_size: int, flip_average: bool, aligned: bool, which: Which
    ) -> Tensor:
        """As `embed`, but not normalised; a tensor on the CPU."""
        if batch_size < 1:
            raise FacelitError(f"option batch_size: must be at least 1, not {batch_size}.")
        rows = [self._embed_batch(crops, flip_average) for crops in self._batches(images, batch_size, aligned, which)]
        if not rows:
            return torch.empty(0, self.embedding_dim)
        embeddings = torch.cat(rows)
        broken = int((~torch.isfinite(embeddings).all(dim=1)).sum())
        if broken:
            raise FacelitError(
                f"{self.checkpoint_path}: {broken} embeddings are NaN or infinite: the network is broken."
            )
        return embeddings

    def _batches(
        self, images: Photo | Sequence[Photo], batch_size: int, aligned: bool, which: Which
    ) -> Iterator[Crops]:
        if aligned and isinstance(images, np.ndarray) and images.dtype == np.uint8 and images.shape[-1] == 3:
            crops = check_crops(images[None] if images.ndim == 3 else images)
            for start in range(0, len(crops), batch_size):
                yield crops[start : start + batch_size]
            return
        faces = (crop for photo in as_photos(images) for crop in self.finder.find(photo, aligned, which).crops)
        while batch := list(islice(faces, batch_size)):
            yield np.stack(batch)

    @torch.inference_mode()
    def _embed_batch(self, crops: Crops, flip_average: bool) -> Tensor:
        device = next(self.backbone.parameters()).device
        images = torch.from_numpy(np.ascontiguousarray(crops)).permute(0, 3, 1, 2).to(device)
        images = images.to(torch.float32).sub_(127.5).div_(127.5)
        embeddings = self._forward(images)
        if flip_average:
            embeddings = (embeddings + self._forward(images.flip(3))) / 2
        return embeddings.cpu()

    def _forward(self, images: Tensor) -> Tensor:
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        return embed_in_pieces(self.backbone, images).float()


def _move(network: nn.Module, device: str | torch.device | None) -> nn.Module:
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return network.to(device)
    except (RuntimeError, AssertionError) as error:
        raise FacelitError(f"option device: {device} cannot be used ({str(error).splitlines()[0][:120]}).") from None
