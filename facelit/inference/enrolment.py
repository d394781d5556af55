"""Turns photos of people into a gallery."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any, Literal

import numpy as np

from facelit.errors import FacelitError
from facelit.inference.gallery import Embeddings, Gallery, Template, mean_templates
from facelit.inference.photos import Crops, Photo, as_photos, check_choice
from facelit.storage.images import BadImageError, Crop
from facelit.storage.open import why_no_files
from facelit.storage.people import comparable
from facelit.storage.photo_files import photo_files
from facelit.storage.progress import progress_bar
from facelit.storage.walking import is_folder, is_hidden

People = Mapping[str, Photo | Sequence[Photo]]
"""Photos by the name of the person: one, or several."""

OnBadPhoto = Literal["error", "skip"]
_BATCH, _SHOWN, _WORTH_A_BAR = 64, 3, 100


def as_people(people: Any) -> Path | People:
    """A folder's path, or photos by name.

    Raises:
        FacelitError: It is something else.
    """
    if isinstance(people, (str, os.PathLike)):
        return Path(people)
    if isinstance(people, Mapping):
        return people
    # A pandas Series, which may name a person several times.
    if hasattr(people, "items") and getattr(people, "ndim", 1) == 1:
        by_name: dict[Any, list[Photo]] = {}
        for name, photos in people.items():
            by_name.setdefault(name, []).extend(as_photos(photos))
        return by_name
    raise FacelitError(
        f"people: a folder root/<person>/<photo>, or photos by name ({{'Ann': ['a.jpg', 'b.jpg']}}), not {type(people).__name__}."
    )


def list_people(root: Path) -> dict[str, list[Path]]:
    """Lists the photos of each person in a folder, people and photos sorted by name.

    A person is a folder directly below the root, with all photos in it at any depth; or a single photo directly below the root. A
    folder without any photo is a person, too, with an empty list.

    Raises:
        FacelitError: The folder does not exist, or holds no photo.
    """
    if not root.is_dir():
        raise FacelitError(
            f"gallery not found: {root}. Name a folder root/<person>/<photo>, or a saved gallery (.npz)."
        )
    people: dict[str, list[Path]] = {}
    for path in photo_files(root):
        inside = path.relative_to(root)
        people.setdefault(inside.parts[0] if len(inside.parts) > 1 else inside.stem, []).append(path)
    if not people:
        raise FacelitError(
            f"{root}: no photos here. The expected layout is root/<person>/<photo>. {why_no_files(root)}".rstrip()
        )
    for entry in os.scandir(root):
        if is_folder(entry) and not is_hidden(entry.name):
            people.setdefault(entry.name, [])
    return dict(sorted(people.items()))


def enrol(
    people: Path | People,
    find: Callable[[Photo], Crop],
    embed: Callable[[Crops], Embeddings],
    template: Template,
    on_bad_photo: OnBadPhoto,
    keep_examples: bool,
    fingerprint: str,
    flip_average: bool,
) -> Gallery:
    """Makes a gallery; see `FaceModel.enrol`.

    Args:
        people: A folder, or photos by name.
        find: Returns the crop of a photo, uint8 RGB (112, 112, 3).
        embed: Maps crops (N, 112, 112, 3) to L2-normalised embeddings (N, D).
        template: How a person with several photos is represented.
        on_bad_photo: What to do about photos that cannot be used.
        keep_examples: Whether one crop of each person is kept.
        fingerprint: The network's fingerprint.
        flip_average: Whether `embed` averages with mirror images.

    Raises:
        FacelitError: There are no photos, or some cannot be used.
    """
    check_choice("template", template, Template)
    check_choice("on_bad_photo", on_bad_photo, OnBadPhoto)
    listed = _one_each(list_people(people) if isinstance(people, Path) else people)
    photos = [(name, photo) for name, ones in listed.items() for photo in ones]
    names = list(listed)
    number = {name: position for position, name in enumerate(names)}
    owners: list[int] = []
    rows: list[Embeddings] = []
    faces: dict[int, list[Crop]] = {}
    base = people if isinstance(people, Path) else Path()
    skipped = [BadImageError(str(base / name), "no photo of this person") for name, ones in listed.items() if not ones]
    count = len(photos) + len(skipped)
    with progress_bar("Enrolling", len(photos), _WORTH_A_BAR) as show:
        for start in range(0, len(photos), _BATCH):
            crops = []
            for name, photo in photos[start : start + _BATCH]:
                try:
                    crops.append(find(photo))
                except BadImageError as error:
                    skipped.append(error)
                    continue
                owners.append(number[name])
                if keep_examples:
                    faces.setdefault(number[name], []).append(crops[-1])
            if crops:
                rows.append(embed(np.stack(crops)))
            show(start + _BATCH)
    _check(skipped, count, on_bad_photo)
    embeddings, owner_of = np.concatenate(rows), np.array(owners, np.int64)
    present = np.unique(owner_of)
    templates = mean_templates(embeddings, owner_of)
    examples = _examples(embeddings, owner_of, templates, faces) if keep_examples else None
    enrolled = [names[position] for position in present]
    renumbered = np.searchsorted(present, owner_of)
    if template == "mean":
        embeddings, renumbered = templates, np.arange(len(enrolled))
    return Gallery(
        enrolled, embeddings, renumbered, fingerprint, flip_average, template, examples, [str(one) for one in skipped]
    )


def _one_each(people: People) -> dict[str, list[Photo]]:
    """Names that are one person's by `facelit.storage.people.comparable` are enrolled as one, under the first spelling."""
    spelling: dict[str, str] = {}
    photos: dict[str, list[Photo]] = {}
    for key, ones in people.items():
        name = str(key) if isinstance(key, Integral) else key
        if not isinstance(name, str) or not name:
            raise FacelitError(f"people: {key!r} is not a name. Names are strings or whole numbers.")
        photos.setdefault(spelling.setdefault(comparable(name), name), []).extend(as_photos(ones))
    return photos


def _check(skipped: list[BadImageError], count: int, on_bad_photo: OnBadPhoto) -> None:
    if count == 0 or len(skipped) == count:
        first = f", for example {skipped[0].place}: {skipped[0].reason}" if skipped else ""
        raise FacelitError(f"nobody can be enrolled: none of the gallery's {count:,} photos can be used{first}.")
    if skipped and on_bad_photo == "error":
        some = "; ".join(f"{one.place}: {one.reason}" for one in skipped[:_SHOWN])
        more = "; ..." if len(skipped) > _SHOWN else ""
        raise FacelitError(
            f"{len(skipped):,} of the gallery's {count:,} photos cannot be used ({some}{more}). Fix or remove them, or go on"
            " without them: on_bad_photo skip."
        )


def _examples(embeddings: Embeddings, owners: np.ndarray, templates: Embeddings, faces: dict[int, list[Crop]]) -> Crops:
    """Picks each person's crop that is nearest to their mean."""
    chosen = []
    for template, owner in zip(templates, np.unique(owners), strict=True):
        own = embeddings[owners == owner]
        chosen.append(faces[int(owner)][int(np.argmax(own @ template))])
    return np.stack(chosen)
