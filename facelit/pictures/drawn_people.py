"""Who is drawn, as numbers: people, and the circumstances of their photos.

An `Identity` holds what all images of a person have in common, a `Shot` what differs between them. Lengths are in units of half the
crop.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Colour = npt.NDArray[np.float32]
"""RGB from 0 to 255, float32, shape (3,); the background's two are (2, 3)."""

_HAIR_STYLES = ("bald", "short", "fringe", "parted", "long", "curly")
_SKINS = np.array(
    [[246, 214, 190], [229, 184, 150], [203, 150, 112], [160, 108, 76], [112, 72, 50], [84, 54, 40]],
    np.float32,
)
_HAIRS = np.array(
    [[28, 22, 20], [62, 40, 26], [110, 72, 40], [196, 154, 88], [150, 66, 34], [150, 150, 150]], np.float32
)
_IRISES = np.array([[70, 46, 28], [104, 74, 40], [86, 120, 70], [74, 118, 160], [120, 130, 136]], np.float32)


@dataclass(frozen=True)
class Identity:
    """The features common to all images of a person; lengths in units of half the crop."""

    width: float
    height: float
    jaw: float
    chin: float
    eye_distance: float
    eye_height: float
    eye_width: float
    eye_open: float
    eye_tilt: float
    brow_gap: float
    brow_thick: float
    brow_tilt: float
    brow_arch: float
    nose_length: float
    nose_width: float
    mouth_height: float
    mouth_width: float
    lip_upper: float
    lip_lower: float
    ears: float
    hairline: float
    hair: str
    hair_side: float
    beard: float
    moustache: float
    glasses: bool
    wrinkles: float
    skin: Colour
    hair_colour: Colour
    iris: Colour
    lips: Colour
    moles: npt.NDArray[np.float32]
    freckles: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Shot:
    """The circumstances that differ from image to image."""

    yaw: float
    pitch: float
    roll: float
    zoom: float
    shift: tuple[float, float]
    smile: float
    mouth_open: float
    brow_raise: float
    blink: float
    gaze: tuple[float, float]
    light: tuple[float, float]
    contrast: float
    gain: float
    tint: Colour
    blur: float
    noise: float
    gray: bool
    background: Colour
    clothes: Colour
    occlusion: str
    patch: tuple[float, float, float, float]
    wears_glasses: bool
    noise_seed: int


def draw_identity(rng: np.random.Generator) -> Identity:
    """Draws a random person."""

    def between(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    skin = _blend(_SKINS, between(0, len(_SKINS) - 1)) * rng.uniform(0.95, 1.05, 3)
    hair_colour = _HAIRS[rng.integers(len(_HAIRS))] * rng.uniform(0.8, 1.2)
    bearded = rng.random() < 0.4
    num_moles = int(rng.integers(0, 4))
    return Identity(
        width=between(0.50, 0.66),
        height=between(0.70, 0.82),
        jaw=between(0.02, 0.42),
        chin=between(2.0, 3.2),
        eye_distance=between(0.19, 0.285),
        eye_height=between(-0.14, 0.0),
        eye_width=between(0.085, 0.135),
        eye_open=between(0.034, 0.072),
        eye_tilt=between(-0.35, 0.35),
        brow_gap=between(0.085, 0.16),
        brow_thick=between(0.014, 0.042),
        brow_tilt=between(-0.25, 0.3),
        brow_arch=between(0.0, 0.06),
        nose_length=between(0.24, 0.40),
        nose_width=between(0.07, 0.15),
        mouth_height=between(0.40, 0.52),
        mouth_width=between(0.15, 0.27),
        lip_upper=between(0.018, 0.052),
        lip_lower=between(0.026, 0.068),
        ears=between(0.05, 0.13),
        hairline=between(-0.62, -0.36),
        hair=str(rng.choice(_HAIR_STYLES)),
        hair_side=float(rng.choice([-1.0, 1.0])),
        beard=between(0.35, 0.95) if bearded else 0.0,
        moustache=between(0.4, 0.95) if rng.random() < (0.6 if bearded else 0.08) else 0.0,
        glasses=bool(rng.random() < 0.2),
        wrinkles=max(0.0, between(-0.6, 1.0)),
        skin=skin.astype(np.float32),
        hair_colour=hair_colour.astype(np.float32),
        iris=_IRISES[rng.integers(len(_IRISES))],
        lips=(skin * [0.86, 0.58, 0.58] * rng.uniform(0.85, 1.1)).astype(np.float32),
        moles=rng.uniform([-0.38, -0.35], [0.38, 0.6], (num_moles, 2)).astype(np.float32),
        freckles=rng.normal([0, 0.14], [0.2, 0.07], (24 if rng.random() < 0.15 else 0, 2)).astype(np.float32),
    )


def draw_shot(rng: np.random.Generator, identity: Identity) -> Shot:
    """Draws random circumstances for an image of a person."""
    occlusion = str(rng.choice(["none", "patch", "scarf", "shades"], p=[0.82, 0.1, 0.04, 0.04]))
    return Shot(
        yaw=float(np.clip(rng.normal(0, 0.45), -1, 1)),
        pitch=float(np.clip(rng.normal(0, 0.4), -1, 1)),
        roll=float(rng.normal(0, 0.08)),
        zoom=float(rng.uniform(0.93, 1.1)),
        shift=(float(rng.normal(0, 0.03)), float(rng.normal(0, 0.03))),
        smile=float(rng.uniform(-0.5, 1.0)),
        mouth_open=float(max(0.0, rng.uniform(-0.8, 1.0))),
        brow_raise=float(rng.uniform(-0.025, 0.04)),
        blink=float(rng.uniform(0.65, 1.1)) if rng.random() > 0.06 else 0.12,
        gaze=(float(rng.uniform(-0.5, 0.5)), float(rng.uniform(-0.3, 0.3))),
        light=(float(rng.uniform(-1, 1)), float(rng.uniform(-1, 0.4))),
        contrast=float(rng.uniform(0.1, 0.75)),
        gain=float(rng.uniform(0.62, 1.22)),
        tint=rng.uniform(0.86, 1.12, 3).astype(np.float32),
        blur=float(rng.uniform(0, 1)) if rng.random() < 0.5 else 0.0,
        noise=float(rng.uniform(1, 9)),
        gray=bool(rng.random() < 0.08),
        background=(rng.uniform(25, 215, (2, 1)) + rng.uniform(-45, 45, (2, 3))).astype(np.float32),
        clothes=(rng.uniform(25, 200) + rng.uniform(-55, 55, 3)).clip(10, 235).astype(np.float32),
        occlusion=occlusion,
        patch=(
            float(rng.uniform(-0.8, 0.8)),
            float(rng.uniform(-0.7, 0.9)),
            float(rng.uniform(0.12, 0.3)),
            float(rng.uniform(0.12, 0.3)),
        ),
        wears_glasses=bool(rng.random() < (0.8 if identity.glasses else 0.04)),
        noise_seed=int(rng.integers(2**31)),
    )


def _blend(palette: npt.NDArray[np.float32], place: float) -> Colour:
    """Interpolates between two neighbouring colours of a palette."""
    left = min(int(place), len(palette) - 2)
    colour: Colour = palette[left] + (palette[left + 1] - palette[left]) * np.float32(place - left)
    return colour
