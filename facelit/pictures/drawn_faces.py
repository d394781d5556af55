"""Images of drawn people by their numbers; without torch, so that processes which draw start at once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from facelit.pictures.drawn_people import Identity, draw_identity, draw_shot
from facelit.pictures.face_drawing import render
from facelit.storage.images import Crop

FaceKey = tuple[int, int, int]
"""Seed, number of the person, number of the image."""


def draw_face(seed: int, identity: int, image: int) -> Crop:
    """Draws one image of one person, always with the same bytes.

    Args:
        seed: The random seed; each seed has its own people.
        identity: The number of the person.
        image: The number of the person's image.

    Returns:
        uint8 RGB, shape (112, 112, 3).
    """
    person = _identity(seed, identity)
    shot = draw_shot(np.random.default_rng([seed, identity, 1 + image]), person)
    return render(person, shot)


def draw_faces(keys: Sequence[FaceKey]) -> npt.NDArray[np.uint8]:
    """Draws several: uint8 RGB, shape (len(keys), 112, 112, 3)."""
    return np.stack([draw_face(*key) for key in keys])


@lru_cache(maxsize=64)
def _identity(seed: int, identity: int) -> Identity:
    return draw_identity(np.random.default_rng([seed, identity, 0]))
