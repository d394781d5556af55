"""Draws a face from numbers: flat layers with soft edges, in numpy, at 112x112.

Coordinates are u to the right and v downwards, both from -1 to 1 over the crop, before the head is moved.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from facelit.pictures.drawn_people import Colour, Identity, Shot
from facelit.storage.images import CROP_SIZE, Crop

Grid = npt.NDArray[np.floating[Any]]  # float32 throughout; products with Python floats are typed as float64

_AXIS = ((np.arange(CROP_SIZE) + 0.5) / CROP_SIZE * 2 - 1).astype(np.float32)
_U, _V = np.meshgrid(_AXIS, _AXIS)
_PIXEL = 2 / CROP_SIZE


def render(identity: Identity, shot: Shot) -> Crop:
    """Draws one image.

    Returns:
        uint8 RGB, shape (112, 112, 3).
    """
    # Python floats, not NumPy scalars: float64 scalars would turn every grid into float64 (NEP 50).
    cos, sin = math.cos(shot.roll) / shot.zoom, math.sin(shot.roll) / shot.zoom
    u = cos * (_U - shot.shift[0]) + sin * (_V - shot.shift[1])
    v = cos * (_V - shot.shift[1]) - sin * (_U - shot.shift[0])
    start, end = shot.background
    canvas = _Canvas(start + (end - start) * ((_U + _V)[..., None] / 4 + np.float32(0.5)))
    _draw_behind(canvas, identity, shot, u, v)
    head = _head(identity, u, v)
    skin = identity.skin * _skin_light(identity, shot, u, v)[..., None]
    canvas.paint(_soft(head), skin)
    skin = np.minimum(skin, 255)
    # Inner features turn with the head: they shift most where the head comes closest to the camera.
    bulge = np.clip(1 - (u / identity.width) ** 2 - (v / 0.95) ** 2, 0, 1)
    x, y = u - 0.17 * shot.yaw * bulge, v - 0.11 * shot.pitch * bulge
    _draw_skin_marks(canvas, identity, head, x, y)
    _draw_beard(canvas, identity, head, x, y)
    _draw_nose(canvas, identity, shot, x, y)
    _draw_mouth(canvas, identity, shot, x, y)
    for side in (-1.0, 1.0):
        _draw_eye(canvas, identity, shot, side, x, y)
    if shot.wears_glasses or shot.occlusion == "shades":
        _draw_glasses(canvas, identity, x, y, dark=shot.occlusion == "shades")
    _draw_hair(canvas, identity, u, v)
    _draw_occlusion(canvas, shot, u, v)
    return _photograph(canvas.pixels, shot)


class _Canvas:
    """Pixels that are painted in layers."""

    def __init__(self, pixels: Grid) -> None:
        self.pixels = pixels

    def near(
        self, x: Grid, y: Grid, centre: tuple[float, float], reach: tuple[float, float]
    ) -> tuple[_Canvas, Grid, Grid]:
        """The part around a small feature, with its coordinates: drawing only there is much cheaper."""
        inside = (np.abs(x - centre[0]) < reach[0]) & (np.abs(y - centre[1]) < reach[1])
        rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
        if not len(rows):
            return _Canvas(self.pixels[:1, :1]), x[:1, :1], y[:1, :1]
        box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        return _Canvas(self.pixels[box]), x[box], y[box]

    def paint(self, mask: Grid, colour: Grid) -> None:
        """Paints a colour, (3,) or (H, W, 3), with opacities (H, W), within their bounding box."""
        rows, columns = np.flatnonzero(mask.max(axis=1) > 0.004), np.flatnonzero(mask.max(axis=0) > 0.004)
        if len(rows) and len(columns):
            box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            layer = colour[box] if colour.ndim == 3 else colour
            self.pixels[box] += (layer - self.pixels[box]) * mask[box][..., None]


def _draw_behind(canvas: _Canvas, person: Identity, shot: Shot, u: Grid, v: Grid) -> None:
    """Draws what is behind the face: long hair, neck, clothes, ears."""
    if person.hair == "long":
        behind = _ellipse(u, v, 0, 0.05, person.width + 0.17, person.height + 0.2)
        canvas.paint(_soft(np.maximum(behind, v - 0.98)), person.hair_colour * 0.75)
    canvas.paint(_soft(_ellipse(u, v, 0, 0.85, person.width * 0.62, 0.45)), person.skin * 0.68)
    canvas.paint(_soft(_ellipse(u, v, 0, 1.45, 1.15, 0.52)), shot.clothes)
    for side in (-1.0, 1.0):
        centre = (side * (person.width + 0.01), 0.06)
        beside, near_u, near_v = canvas.near(u, v, centre, (person.ears + 0.04, 0.2))
        beside.paint(_soft(_ellipse(near_u, near_v, *centre, person.ears, 0.16)), person.skin * 0.82)


def _head(person: Identity, u: Grid, v: Grid) -> Grid:
    """Signed distance to the outline: an ellipse above, narrowed towards the chin by the jaw."""
    lower = np.clip((v + 0.05) / person.height, 0, 1)
    half_width = person.width * (1 - person.jaw * lower**person.chin)
    distance: Grid = (np.sqrt((u / half_width) ** 2 + (v / (person.height + 0.08)) ** 2) - 1) * np.float32(0.6)
    return distance


def _skin_light(person: Identity, shot: Shot, u: Grid, v: Grid) -> Grid:
    """Lambert's law on an ellipsoid, softened, and darker towards the outline."""
    nx, ny = u / (person.width + 0.12), v / (person.height + 0.25)
    nz = np.sqrt(np.clip(1 - nx**2 - ny**2, 0.02, 1))
    lit = (shot.light[0] * nx + shot.light[1] * ny + 0.9 * nz) / 1.2
    light: Grid = (1 + shot.contrast * (lit - 0.62) - 0.12 * (1 - nz)).astype(np.float32)
    return light


def _draw_skin_marks(canvas: _Canvas, person: Identity, head: Grid, x: Grid, y: Grid) -> None:
    inside = _soft(head + 0.03)
    for side in (-1.0, 1.0):
        cheek = np.exp(-(((x - side * 0.27) / 0.13) ** 2) - ((y - 0.22) / 0.1) ** 2)
        canvas.paint(0.16 * cheek * inside, person.skin * _rgb(1.0, 0.66, 0.62))
        if person.wrinkles > 0.3:
            fold = np.abs(x - side * (0.15 + 0.35 * (y - 0.2))) - 0.006
            within = inside * _soft(np.abs(y - 0.33) - 0.1)
            canvas.paint(0.45 * person.wrinkles * _soft(fold, 2) * within, person.skin * 0.62)
    for mark_u, mark_v in person.moles:
        spot, spot_x, spot_y = canvas.near(x, y, (mark_u, mark_v), (0.06, 0.06))
        spot.paint(0.85 * _soft(_ellipse(spot_x, spot_y, mark_u, mark_v, 0.02, 0.02)), person.skin * 0.32)
    if len(person.freckles):
        nearest = np.full_like(x, 9)
        for mark_u, mark_v in person.freckles:
            nearest = np.minimum(nearest, (x - mark_u) ** 2 + (y - mark_v) ** 2)
        canvas.paint(0.5 * _soft(np.sqrt(nearest) - 0.01) * inside, person.skin * _rgb(0.7, 0.52, 0.42))


def _draw_beard(canvas: _Canvas, person: Identity, head: Grid, x: Grid, y: Grid) -> None:
    colour = person.hair_colour * 0.6 + person.skin * 0.12
    if person.beard:
        edge = 0.2 + 0.5 * np.clip(0.35 - np.abs(x), 0, 1)  # lower under the mouth than along the jaw
        region = np.clip((y - edge) / 0.12, 0, 1) * _soft(head + 0.01)
        canvas.paint((person.beard * region).astype(np.float32), colour)
    if person.moustache:
        middle = person.mouth_height - 0.085
        strip = _ellipse(x, y - 0.35 * x**2, 0, middle, person.mouth_width * 0.95, 0.05)
        canvas.paint(person.moustache * _soft(strip, 2), colour)


def _draw_nose(canvas: _Canvas, person: Identity, shot: Shot, x: Grid, y: Grid) -> None:
    """Draws a lit ridge, a shadow on the side away from the light, wings and nostrils."""
    canvas, x, y = canvas.near(x, y, (0, 0.2), (0.24, 0.45))
    skin, lit = canvas.pixels.copy(), np.minimum(canvas.pixels * 1.2, 255)
    top, tip = person.eye_height + 0.02, person.eye_height + person.nose_length
    along = np.clip((y - top) / (tip - top), 0, 1)
    half = person.nose_width * (0.28 + 0.55 * along)
    within = _soft(np.maximum(top - y, y - tip), 3)
    away = -1.0 if shot.light[0] > 0 else 1.0
    shadow = np.exp(-(((x - away * half) / 0.035) ** 2)) * within
    canvas.paint((0.34 * shadow).astype(np.float32), skin * 0.66)
    canvas.paint((0.3 * np.exp(-((x / 0.03) ** 2)) * within).astype(np.float32), lit)
    canvas.paint(0.55 * _soft(_ellipse(x, y, 0, tip, person.nose_width, 0.062), 3), skin * 0.93)
    canvas.paint(0.5 * _soft(_ellipse(x, y, 0, tip - 0.03, person.nose_width * 0.45, 0.04), 4), lit)
    rim = _soft(np.abs(_ellipse(x, y, 0, tip - 0.01, person.nose_width, 0.066)) - 0.004, 1.5)
    canvas.paint(0.5 * rim * (y > tip - 0.03), skin * 0.62)
    for side in (-1.0, 1.0):
        nostril = _ellipse(x, y, side * person.nose_width * 0.48, tip + 0.03, person.nose_width * 0.26, 0.017)
        canvas.paint(0.75 * _soft(nostril), person.skin * 0.3)


def _draw_mouth(canvas: _Canvas, person: Identity, shot: Shot, x: Grid, y: Grid) -> None:
    canvas, x, y = canvas.near(x, y, (0, person.mouth_height), (0.36, 0.22))
    width = person.mouth_width * (1 + 0.14 * shot.smile)
    # A smile lifts the corners: the mouth's middle line is a parabola.
    line = y - person.mouth_height + 0.055 * shot.smile * ((x / width) ** 2 - 0.4)
    taper = np.sqrt(np.clip(1 - (x / width) ** 2, 0, 1))
    gap = 0.07 * shot.mouth_open * taper
    bow = 1 - 0.3 * np.exp(-((x / 0.03) ** 2))  # the dip in the middle of the upper lip
    inside = _soft(np.abs(x) - width)
    canvas.paint(inside * _soft(np.abs(line) - gap - 0.004), _rgb(52, 18, 20))
    if shot.mouth_open > 0.15:
        teeth = np.maximum(np.abs(line + 0.4 * gap) - 0.5 * gap, np.abs(x) - 0.8 * width)
        canvas.paint(0.9 * inside * _soft(teeth), _rgb(232, 226, 214))
    upper = np.maximum(line + gap, -(line + gap + person.lip_upper * taper * bow))
    lower = np.maximum(-(line - gap), line - gap - person.lip_lower * taper)
    canvas.paint(inside * _soft(upper) * (taper > 0), person.lips * 0.86)
    canvas.paint(inside * _soft(lower) * (taper > 0), person.lips)
    gloss = np.exp(-((x / (0.5 * width)) ** 2) - ((line - gap - 0.45 * person.lip_lower) / 0.012) ** 2)
    canvas.paint((0.22 * gloss).astype(np.float32), _rgb(255, 225, 220))


def _draw_eye(canvas: _Canvas, person: Identity, shot: Shot, side: float, x: Grid, y: Grid) -> None:
    centre = side * person.eye_distance
    canvas, x, y = canvas.near(x, y, (centre, person.eye_height), (0.27, 0.28))
    ex, ey = (x - centre) * side, y - person.eye_height
    tilted = ey + person.eye_tilt * 0.35 * ex
    opening = person.eye_open * shot.blink
    socket = np.exp(-((ex / 0.16) ** 2) - ((ey + 0.02) / 0.1) ** 2)
    canvas.paint((0.24 * socket).astype(np.float32), person.skin * 0.55)
    almond = np.sqrt(np.clip(1 - (ex / person.eye_width) ** 2, 0, 1)) ** 1.3
    lid = np.maximum(np.abs(tilted) - opening * almond, np.abs(ex) - person.eye_width)
    white = _soft(lid)
    canvas.paint(white, _rgb(238, 234, 228))
    gaze_x, gaze_y = shot.gaze[0] * 0.03 * side, shot.gaze[1] * 0.015
    radius = 0.052
    canvas.paint(white * _soft(_ellipse(ex, tilted, gaze_x, gaze_y, radius, radius)), person.iris)
    pupil = _ellipse(ex, tilted, gaze_x, gaze_y, 0.45 * radius, 0.45 * radius)
    canvas.paint(white * _soft(pupil), _rgb(12, 10, 10))
    glint = _ellipse(ex * side, tilted, gaze_x * side + 0.016, gaze_y - 0.016, 0.012, 0.012)
    canvas.paint(0.9 * white * _soft(glint), _rgb(255, 255, 255))
    within = _soft(np.abs(ex) - person.eye_width * 1.04)
    canvas.paint(0.85 * within * _soft(np.abs(tilted + opening * almond) - 0.011), _rgb(36, 26, 24))
    canvas.paint(0.35 * within * _soft(np.abs(tilted - opening * almond) - 0.006), person.skin * 0.45)
    canvas.paint(0.3 * within * _soft(np.abs(tilted + opening * almond + 0.035) - 0.006), person.skin * 0.5)
    arch = person.brow_arch * (1 - (ex / 0.15) ** 2)
    brow_line = ey + person.brow_gap + shot.brow_raise + person.brow_tilt * ex + arch
    thickness = person.brow_thick * np.clip(1.15 - 2.2 * np.clip(ex, 0, 1), 0.3, 1.15)
    brow = np.maximum(np.abs(brow_line) - thickness, np.abs(ex) - person.eye_width * 1.35)
    canvas.paint(0.85 * _soft(brow, 1.6), person.hair_colour * 0.62 + person.skin * 0.06)


def _draw_glasses(canvas: _Canvas, person: Identity, x: Grid, y: Grid, dark: bool) -> None:
    frame = _rgb(24, 22, 26)
    for side in (-1.0, 1.0):
        lens = _ellipse(x, y, side * person.eye_distance, person.eye_height + 0.015, 0.165, 0.125)
        if dark:
            canvas.paint(0.94 * _soft(lens), _rgb(20, 20, 26))
        canvas.paint(0.9 * _soft(np.abs(lens) - 0.012), frame)
    bridge = np.maximum(np.abs(y - person.eye_height + 0.01) - 0.011, np.abs(x) - (person.eye_distance - 0.155))
    canvas.paint(0.9 * _soft(bridge), frame)


def _draw_hair(canvas: _Canvas, person: Identity, u: Grid, v: Grid) -> None:
    """Draws the hair in front of the face: the part of a cap above the style's hairline."""
    if person.hair == "bald":
        return
    volume = {"short": 0.06, "fringe": 0.1, "parted": 0.1, "long": 0.13, "curly": 0.17}[person.hair]
    cap = _ellipse(u, v, 0, -0.06, person.width + volume, person.height + volume)
    if person.hair == "curly":
        cap = cap + 0.03 * np.sin(np.arctan2(v, u) * 22) * np.float32(1.0)
    line = _hairline(person, u)
    # At the sides of the forehead the hair follows the head's outline down.
    sideburn = 0.1 if person.hair in ("short", "fringe", "parted", "curly") else 0.75
    beside = np.maximum(person.width * 0.93 - np.abs(u), v - sideburn)
    front = np.maximum(cap, np.minimum(v - line, beside))
    strands = 1 + 0.14 * np.sin(38 * u + 9 * np.sin(4 * v)) * np.float32(1.0)
    shade = (strands * (0.85 - 0.3 * v)).astype(np.float32)
    canvas.paint(_soft(front, 1.4), person.hair_colour * shade[..., None])


def _hairline(person: Identity, u: Grid) -> Grid:
    """The lower edge of the hair over the forehead, for each column."""
    line: Grid
    if person.hair == "fringe":
        line = person.hairline + 0.16 + 0.02 * np.sin(u * 30)
    elif person.hair == "parted":
        line = person.hairline + 0.26 * np.abs(u * person.hair_side + 0.3)
    elif person.hair == "curly":
        line = person.hairline + 0.5 * u**2 + 0.02 * np.sin(u * 40)
    else:
        line = person.hairline + {"short": 0.45, "long": 0.9}[person.hair] * u**2
    return line


def _draw_occlusion(canvas: _Canvas, shot: Shot, u: Grid, v: Grid) -> None:
    if shot.occlusion == "scarf":
        canvas.paint(_soft(0.34 + 0.06 * np.cos(3 * u) - v, 2), shot.clothes * (0.9 + 0.1 * np.sin(25 * v))[..., None])
    elif shot.occlusion == "patch":
        centre_u, centre_v, half_width, half_height = shot.patch
        patch = np.maximum(np.abs(u - centre_u) - half_width, np.abs(v - centre_v) - half_height)
        canvas.paint(_soft(patch), shot.clothes)


def _photograph(pixels: Grid, shot: Shot) -> Crop:
    """Applies exposure, tint, blur and sensor noise."""
    pixels = pixels * (shot.gain * shot.tint)
    if shot.gray:
        pixels = np.repeat(pixels @ _rgb(0.299, 0.587, 0.114)[:, None], 3, axis=2)
    if shot.blur:
        side = np.float32(shot.blur / 3)
        for axis in (0, 1):
            pixels = (1 - 2 * side) * pixels + side * (np.roll(pixels, 1, axis) + np.roll(pixels, -1, axis))
    noise = np.random.default_rng(shot.noise_seed).standard_normal(pixels.shape, dtype=np.float32)
    noise *= np.float32(shot.noise)
    noise += pixels
    return np.clip(noise, 0, 255, out=noise).astype(np.uint8)


def _ellipse(u: Grid, v: Grid, centre_u: float, centre_v: float, half_width: float, half_height: float) -> Grid:
    """The approximate signed distance to an ellipse, negative inside."""
    radius = np.sqrt(((u - centre_u) / half_width) ** 2 + ((v - centre_v) / half_height) ** 2)
    distance: Grid = (radius - 1) * np.float32(min(half_width, half_height))
    return distance


def _soft(distance: Grid, width: float = 1.0) -> Grid:
    """Opacity from a signed distance: an edge `width` pixels wide."""
    opacity: Grid = np.clip(0.5 - distance / np.float32(_PIXEL * width), 0, 1).astype(np.float32)
    return opacity


def _rgb(red: float, green: float, blue: float) -> Colour:
    return np.array([red, green, blue], np.float32)
