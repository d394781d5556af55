"""A small set in the layout of InsightFace's IJB meta files, written from the format's description, and its figures by plain loops."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np

PEOPLE, IMAGES = 8, 6
TEMPLATE = [(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)]


@dataclass
class Layout:
    """What the files say: subjects 0 to 2 are in one gallery, 3 to 5 in the other, 6 and 7 in none.

    Template 100 + s is subject s's in a gallery: images 0 and 1, of one video, and 2. Template 1000 + 10 s + n is a probe: image n,
    and, for odd n, image n - 1 of another medium.
    """

    points: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)
    media: list[tuple[str, int, int]] = field(default_factory=list)
    pairs: list[tuple[int, int, int]] = field(default_factory=list)
    galleries: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    probes: list[tuple[int, int]] = field(default_factory=list)

    def write(self, folder: Path, protocol: str = "ijbc", shuffle: int | None = None, end: str = "\n") -> Path:
        """Writes all files but the images; `shuffle` is the seed of another order of all lines."""
        meta = folder / "meta"
        meta.mkdir(parents=True, exist_ok=True)
        (folder / "loose_crop").mkdir(exist_ok=True)
        rng = random.Random(shuffle)

        def lines(name: str, rows: list[str], heading: str = "") -> None:
            if shuffle is not None:
                rng.shuffle(rows)
            text = end.join([heading] * bool(heading) + rows) + end
            (meta / f"{protocol}_{name}").write_bytes(text.encode())

        lines("face_tid_mid.txt", [f"{name} {template} {medium}" for name, template, medium in self.media])
        faces = []
        for name, points in self.points.items():
            numbers = " ".join(f"{x:.4f} {y:.4f}" for x, y in points)
            faces.append(f"{name} {numbers} {self.scores[name]:.3f}")
        lines("name_5pts_score.txt", faces)
        lines("template_pair_label.txt", [f"{a} {b} {label}" for a, b, label in self.pairs])
        for name, rows in (*self.galleries.items(), ("probe_mixed", self.probes)):
            file = f"1N_{name}.csv" if name == "probe_mixed" else f"1N_gallery_{name}.csv"
            images = [f"{t},{s},img/{image}" for t, s in rows for image, template, _ in self.media if template == t]
            lines(file, images, "TEMPLATE_ID,SUBJECT_ID,FILENAME")
        return folder


def make_layout() -> Layout:
    """Images `1.png` to `48.png`, each with its face at another place."""
    layout = Layout()
    gallery: dict[int, int] = {}
    probes: dict[int, int] = {}
    for subject, number in product(range(PEOPLE), range(IMAGES)):
        name = image_name(subject, number)
        x, y = shift(subject, number)
        layout.points[name] = [(px + x, py + y) for px, py in TEMPLATE]
        layout.scores[name] = round(0.2 + 0.1 * ((3 * subject + 5 * number) % 8), 3)
        if number < 3 and subject < 6:
            gallery[100 + subject] = subject
            layout.media.append((name, 100 + subject, 7 if number < 2 else 8))
        template = 1000 + 10 * subject + number
        probes[template] = subject
        layout.media.append((name, template, 1))
        if number % 2:
            layout.media.append((image_name(subject, number - 1), template, 2))
    layout.probes = list(probes.items())
    layout.galleries = {"G1": [], "G2": []}
    for template, subject in gallery.items():
        layout.galleries["G1" if subject < 3 else "G2"].append((template, subject))
    listed = [*product(gallery, probes), *combinations(probes, 2)]
    subject_of = gallery | probes
    layout.pairs = [(a, b, int(subject_of[a] == subject_of[b])) for a, b in listed]
    return layout


def image_name(subject: int, number: int) -> str:
    return f"{1 + IMAGES * subject + number}.png"


def shift(subject: int, number: int) -> tuple[int, int]:
    """Where in its image a crop's upper left corner lies."""
    return 5 + subject, 3 + 2 * number


def literal_template(
    rows: list[tuple[str, int, int]], template: int, embeddings: dict[str, Any], weights: dict[str, float]
) -> Any:
    """Images of a medium averaged, media summed, unit length; float64."""
    of_medium: dict[int, list[Any]] = {}
    for name, one, medium in rows:
        if one == template:
            of_medium.setdefault(medium, []).append(weights[name] * np.asarray(embeddings[name], np.float64))
    total = sum(sum(images) / len(images) for images in of_medium.values())
    return total / np.sqrt((total**2).sum())


def literal_tar(genuine: list[float], impostor: list[float], target: float) -> float:
    """Of every score as a threshold, the largest TAR whose FAR is at most the target."""
    best = 0.0
    for limit in genuine:
        if sum(score >= limit for score in impostor) <= target * len(impostor) + 1e-9:
            best = max(best, sum(score >= limit for score in genuine) / len(genuine))
    return best


@dataclass
class LiteralSearch:
    """Ranks of the searches for somebody enrolled, their scores, and the best scores of strangers, probe by probe."""

    ranks: list[int]
    own: list[float]
    strangers: list[float]

    def rank(self, k: int) -> float:
        return sum(rank <= k for rank in self.ranks) / len(self.ranks)

    def tpir(self, target: float) -> float:
        """Of every score as a threshold, the largest TPIR whose FPIR is at most the target."""
        best = 0.0
        for limit in self.own:
            if sum(score >= limit for score in self.strangers) <= target * len(self.strangers) + 1e-9:
                found = sum(rank == 1 and score >= limit for rank, score in zip(self.ranks, self.own, strict=True))
                best = max(best, found / len(self.own))
        return best


def literal_search(
    gallery: list[tuple[int, int]], probes: list[tuple[int, int]], templates: dict[int, Any]
) -> LiteralSearch:
    result = LiteralSearch([], [], [])
    for probe, subject in probes:
        scores = {s: float(np.dot(templates[probe], templates[t])) for t, s in gallery}
        if subject in scores:
            own = scores.pop(subject)
            result.own.append(own)
            result.ranks.append(1 + sum(score >= own for score in scores.values()))
        else:
            result.strangers.append(max(scores.values()))
    return result
